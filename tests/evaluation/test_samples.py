"""Drawn pictures on disk: one for each caption, drawn once, gone on with after a stop, never mixed with others."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dalle.evaluation.samples import MANIFEST, Samples
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import SamplingConfig

CAPTIONS = [f"a red circle {number}" for number in range(7)]
FACTS = {"models": {"dvae": "abc"}, "seed": 0}


@pytest.fixture(scope="module")
def dalle(checkpoints) -> DALLE:
    return DALLE.load(checkpoints)


class Stopping:
    """A DALLE that is interrupted after `after` pictures."""

    def __init__(self, dalle: DALLE, after: int):
        self.dalle, self.after = dalle, after

    def stream(self, *arguments, **settings):
        for number, result in enumerate(self.dalle.stream(*arguments, **settings)):
            if number == self.after:
                raise KeyboardInterrupt
            yield result


class Forbidden:
    """A DALLE that must not be asked."""

    def stream(self, *_, **__):
        raise AssertionError("it drew")


def pictures(samples: Samples, count: int = 7, batch_size: int = 3) -> torch.Tensor:
    return torch.cat(list(samples.batches(count, batch_size)))


def drawn(dalle, folder, captions=CAPTIONS, candidates=1, facts=FACTS, batch_size=4) -> Samples:
    samples = Samples(folder, facts)
    samples.draw(dalle, captions, SamplingConfig(candidates=candidates, keep=1, batch_size=batch_size))
    return samples


def test_there_is_a_picture_for_each_caption_and_a_line_that_says_which(dalle, tmp_path):
    samples = drawn(dalle, tmp_path)
    found = pictures(samples)
    assert found.shape == (7, 3, 8, 8)
    assert found.dtype == torch.uint8
    head, *lines = map(json.loads, (samples.folder / MANIFEST).read_text().splitlines())
    assert head == FACTS
    assert [line["caption"] for line in lines] == CAPTIONS
    result = dalle.generate(CAPTIONS[4], candidates=1, keep=1, seed=0, candidate_offset=4)
    assert np.array_equal(np.asarray(result.images[0]), found[4].permute(1, 2, 0).numpy())


def test_each_caption_has_noise_of_its_own(dalle, tmp_path):
    """The same words again give other pictures: or a set of alike captions would have one picture."""
    found = pictures(drawn(dalle, tmp_path, ["a red circle"] * 7))
    assert len({each.numpy().tobytes() for each in found}) > 4


def test_the_best_of_several_candidates_is_kept(dalle, tmp_path):
    samples = drawn(dalle, tmp_path, CAPTIONS[:2], candidates=5)
    lines = [json.loads(line) for line in (samples.folder / MANIFEST).read_text().splitlines()[1:]]
    result = dalle.generate(CAPTIONS[1], candidates=5, keep=5, seed=0, candidate_offset=5)
    assert lines[1]["candidate"] == result.candidates[0]
    assert lines[1]["score"] == pytest.approx(max(result.scores), abs=1e-5)


@pytest.mark.parametrize("after", [0, 3, 6])
def test_a_stopped_drawing_goes_on_where_it_was_and_ends_as_if_never_stopped(dalle, tmp_path, after):
    whole = drawn(dalle, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        drawn(Stopping(dalle, after), tmp_path / "stopped")
    standing = len((tmp_path / "stopped" / whole.digest / MANIFEST).read_text().splitlines()) - 1
    assert standing == after
    stopped = drawn(Stopping(dalle, 7 - after), tmp_path / "stopped")  # and draws no more than was missing
    assert pictures(stopped).equal(pictures(whole))
    assert (stopped.folder / MANIFEST).read_text() == (whole.folder / MANIFEST).read_text()


def test_a_line_that_was_cut_short_is_drawn_again(dalle, tmp_path):
    samples = drawn(dalle, tmp_path)
    manifest = samples.folder / MANIFEST
    whole = manifest.read_text()
    manifest.write_text(whole[: whole.rindex('"candidate"')])
    drawn(Stopping(dalle, 1), tmp_path)
    assert manifest.read_text() == whole


def test_what_is_drawn_is_not_drawn_again_and_more_can_follow(dalle, tmp_path):
    drawn(dalle, tmp_path, CAPTIONS[:5])
    assert len(pictures(drawn(Forbidden(), tmp_path, CAPTIONS[:5]), 5)) == 5
    assert len(pictures(drawn(Forbidden(), tmp_path, CAPTIONS[:2]), 2)) == 2
    more = drawn(Stopping(dalle, 2), tmp_path)
    assert pictures(more).equal(pictures(drawn(dalle, tmp_path / "at once")))


def test_other_facts_have_a_folder_of_their_own(dalle, tmp_path):
    one, other = drawn(dalle, tmp_path), Samples(tmp_path, {**FACTS, "seed": 1})
    assert one.folder != other.folder
    assert Samples(tmp_path, {"seed": 0, "models": {"dvae": "abc"}}).folder == one.folder  # in whatever order


def test_captions_that_changed_since_are_not_mixed_with_old_pictures(dalle, tmp_path):
    samples = drawn(dalle, tmp_path)
    with pytest.raises(ValueError, match=f"{samples.digest} holds pictures for other captions.*Remove the folder"):
        drawn(Forbidden(), tmp_path, ["another one", *CAPTIONS[1:]])


def test_a_picture_that_cannot_be_read_is_named(dalle, tmp_path):
    samples = drawn(dalle, tmp_path)
    (samples.folder / "000" / "000003.png").write_bytes(b"")
    with pytest.raises(ValueError, match="000003.png cannot be read"):
        pictures(samples)


def test_pictures_are_read_a_batch_at_a_time(dalle, tmp_path, monkeypatch):
    samples = drawn(dalle, tmp_path)
    opened: list[str] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or original(path))
    batches = samples.batches(7, 2)
    assert len(next(batches)) == 2
    assert len(opened) == 2
    assert [len(batch) for batch in batches] == [2, 2, 1]
