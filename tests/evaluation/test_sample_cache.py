"""Sample cache: one image per caption, sampled once, resumed after an interruption, never mixed with others."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dalle.evaluation.sample_cache import MANIFEST, SampleCache
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import SamplingConfig

CAPTIONS = [f"a red circle {number}" for number in range(7)]
SETTINGS = {"models": {"dvae": "abc"}, "seed": 0}


@pytest.fixture(scope="module")
def dalle(checkpoints) -> DALLE:
    return DALLE.load(checkpoints)


class InterruptedPipeline:
    """A DALLE that is interrupted after `after` all_images."""

    def __init__(self, dalle: DALLE, after: int):
        self.dalle, self.after = dalle, after

    def stream(self, *arguments, **options):
        for number, result in enumerate(self.dalle.stream(*arguments, **options)):
            if number == self.after:
                raise KeyboardInterrupt
            yield result


class UnusedPipeline:
    """Pipeline that must not be called."""

    def stream(self, *_, **__):
        raise AssertionError("stream was called")


def all_images(samples: SampleCache, count: int = 7, batch_size: int = 3) -> torch.Tensor:
    return torch.cat(list(samples.batches(count, batch_size)))


def sample(dalle, folder, captions=CAPTIONS, candidates=1, settings=SETTINGS, batch_size=4) -> SampleCache:
    samples = SampleCache(folder, settings)
    samples.sample_missing(dalle, captions, SamplingConfig(candidates=candidates, keep=1, batch_size=batch_size))
    return samples


def test_image_and_manifest_line_for_each_caption(dalle, tmp_path):
    samples = sample(dalle, tmp_path)
    images = all_images(samples)
    assert images.shape == (7, 3, 8, 8)
    assert images.dtype == torch.uint8
    head, *lines = map(json.loads, (samples.folder / MANIFEST).read_text().splitlines())
    assert head == SETTINGS
    assert [line["caption"] for line in lines] == CAPTIONS
    result = dalle.generate(CAPTIONS[4], candidates=1, keep=1, seed=0, candidate_offset=4)
    assert np.array_equal(np.asarray(result.images[0]), images[4].permute(1, 2, 0).numpy())


def test_each_caption_has_its_own_noise(dalle, tmp_path):
    """The same words again give other all_images: or a set of alike captions would have one picture."""
    images = all_images(sample(dalle, tmp_path, ["a red circle"] * 7))
    assert len({image.numpy().tobytes() for image in images}) > 4


def test_best_candidate_is_kept(dalle, tmp_path):
    samples = sample(dalle, tmp_path, CAPTIONS[:2], candidates=5)
    lines = [json.loads(line) for line in (samples.folder / MANIFEST).read_text().splitlines()[1:]]
    result = dalle.generate(CAPTIONS[1], candidates=5, keep=5, seed=0, candidate_offset=5)
    assert lines[1]["candidate"] == result.candidates[0]
    assert lines[1]["score"] == pytest.approx(max(result.scores), abs=1e-5)


@pytest.mark.parametrize("after", [0, 3, 6])
def test_interrupted_sampling_resumes_with_the_same_result(dalle, tmp_path, after):
    complete = sample(dalle, tmp_path / "complete")
    with pytest.raises(KeyboardInterrupt):
        sample(InterruptedPipeline(dalle, after), tmp_path / "resumed")
    cached = len((tmp_path / "resumed" / complete.digest / MANIFEST).read_text().splitlines()) - 1
    assert cached == after
    resumed = sample(
        InterruptedPipeline(dalle, 7 - after), tmp_path / "resumed"
    )  # which fails if it samples more than the missing images
    assert all_images(resumed).equal(all_images(complete))
    assert (resumed.folder / MANIFEST).read_text() == (complete.folder / MANIFEST).read_text()


def test_truncated_manifest_line_is_sampled_again(dalle, tmp_path):
    samples = sample(dalle, tmp_path)
    manifest = samples.folder / MANIFEST
    complete = manifest.read_text()
    manifest.write_text(complete[: complete.rindex('"candidate"')])
    sample(InterruptedPipeline(dalle, 1), tmp_path)
    assert manifest.read_text() == complete


def test_cached_images_are_not_sampled_again(dalle, tmp_path):
    sample(dalle, tmp_path, CAPTIONS[:5])
    assert len(all_images(sample(UnusedPipeline(), tmp_path, CAPTIONS[:5]), 5)) == 5
    assert len(all_images(sample(UnusedPipeline(), tmp_path, CAPTIONS[:2]), 2)) == 2
    more = sample(InterruptedPipeline(dalle, 2), tmp_path)
    assert all_images(more).equal(all_images(sample(dalle, tmp_path / "at once")))


def test_other_settings_have_another_folder(dalle, tmp_path):
    one, other = sample(dalle, tmp_path), SampleCache(tmp_path, {**SETTINGS, "seed": 1})
    assert one.folder != other.folder
    assert (
        SampleCache(tmp_path, {"seed": 0, "models": {"dvae": "abc"}}).folder == one.folder
    )  # the order of keys does not matter


def test_other_captions_raise(dalle, tmp_path):
    samples = sample(dalle, tmp_path)
    with pytest.raises(ValueError, match=f"{samples.digest} has images for other captions.*Remove the folder"):
        sample(UnusedPipeline(), tmp_path, ["another one", *CAPTIONS[1:]])


def test_unreadable_image_raises(dalle, tmp_path):
    samples = sample(dalle, tmp_path)
    (samples.folder / "000" / "000003.png").write_bytes(b"")
    with pytest.raises(ValueError, match="000003.png cannot be read"):
        all_images(samples)


def test_images_are_read_one_batch_at_a_time(dalle, tmp_path, monkeypatch):
    samples = sample(dalle, tmp_path)
    opened: list[str] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or original(path))
    batches = samples.batches(7, 2)
    assert len(next(batches)) == 2
    assert len(opened) == 2
    assert [len(batch) for batch in batches] == [2, 2, 1]
