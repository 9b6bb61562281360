"""Prompt files: one for each category that docs/prompts.md lists, readable by sample.py."""

import re
from pathlib import Path

import pytest

from dalle.cli.config_groups import CONFIG_DIR
from dalle.evaluation.capability_prompts import CAPABILITIES
from dalle.sampling.command_config import SampleCommandConfig, requested_captions
from dalle.tokenizer import CaptionTokenizer

PAGE = (Path(__file__).parents[1] / "docs" / "prompts.md").read_text(encoding="utf-8")
FILES = sorted((CONFIG_DIR / "prompts").glob("*.txt"))


def prompts(path):
    return requested_captions(SampleCommandConfig(captions_file=str(path)))


def test_every_category_has_one_file():
    assert [path.name for path in FILES] == sorted(re.findall(r"`([\w-]+\.txt)`", PAGE))
    assert len(FILES) == 11


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_categories_have_several_prompts_of_valid_length(path):
    found = prompts(path)
    assert len(found) >= 6
    tokenizer = CaptionTokenizer.train(found, 256)  # of bytes alone: no other encoding needs more tokens
    assert max(len(tokenizer.encode(prompt)) for prompt in found) <= 256


def test_prompts_are_unique():
    every = [prompt for path in FILES for prompt in prompts(path)]
    assert len(set(every)) == len(every)


def test_docs_list_every_category():
    for capability in CAPABILITIES:
        assert capability.title.split(":")[0] in PAGE
