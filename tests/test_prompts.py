"""The prompt suite: files that sample.py reads, one for each category that docs/prompts.md lists."""

import re

import pytest

from dalle.cli.config_groups import CONFIG_DIR
from dalle.evaluation.capability_prompts import CAPABILITIES
from dalle.sampling.command_config import SampleConfig, requested_captions
from dalle.tokenizer import CaptionTokenizer

PAGE = (CONFIG_DIR.parent / "docs" / "prompts.md").read_text(encoding="utf-8")
FILES = sorted((CONFIG_DIR / "prompts").glob("*.txt"))


def prompts(path):
    return requested_captions(SampleConfig(captions_file=str(path)))


def test_there_is_a_file_for_each_category_and_no_other():
    assert [path.name for path in FILES] == sorted(re.findall(r"`([\w-]+\.txt)`", PAGE))
    assert len(FILES) == 11


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_category_has_several_prompts_that_fit_into_a_caption(path):
    found = prompts(path)
    assert len(found) >= 6
    tokenizer = CaptionTokenizer.train(found, 256)  # of bytes alone: no other encoding needs more tokens
    assert max(len(tokenizer.encode(prompt)) for prompt in found) <= 256


def test_prompts_are_unique():
    every = [prompt for path in FILES for prompt in prompts(path)]
    assert len(set(every)) == len(every)


def test_the_page_lists_every_kind_of_ability():
    for capability in CAPABILITIES:
        assert capability.title.split(":")[0] in PAGE
