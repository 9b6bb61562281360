import json
import os
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from dalle import checkpoint
from dalle.data.audit.perceptual_hash import NEAR_BITS, NEAR_LEVELS
from dalle.data.blocks import BlocksConfig
from dalle.data.folder import FolderConfig
from dalle.image_conversion import to_pil_images, to_tensor
from dalle.models.clip.model import CLIP
from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.novelty import GRID_FILE, Novelty, TrainingImages, describe_nearest
from dalle.sampling.results import Result

DATA = BlocksConfig(image_size=8, train=20)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def clip(checkpoints):
    return CLIP.load(checkpoints / "clip")


def test_training_image_is_found_and_reported():
    training = TrainingImages.open(DATA)
    nearest = training.nearest(training.source[7].image, 3)
    assert nearest[0].key == "train/000007"
    assert nearest[0].is_same
    assert nearest[0].feature_distance is None
    apart = [neighbour.bits / NEAR_BITS + neighbour.levels / NEAR_LEVELS for neighbour in nearest]
    assert apart == sorted(apart)
    assert describe_nearest(nearest[0], 20) == "This image is in the training set: train/000007."


def test_new_image_is_reported_as_new():
    training = TrainingImages.open(DATA)
    checks = np.indices((8, 8)).sum(axis=0) // 2 % 2 * 255
    (nearest,) = training.nearest(Image.fromarray(checks.astype(np.uint8)).convert("RGB"))
    assert nearest.bits > NEAR_BITS
    assert describe_nearest(nearest, 20).startswith("Neither this image nor a near duplicate of it is among the 20")


def test_clip_features_rank_images_that_are_not_copies(checkpoints, clip):
    training = TrainingImages.open(DATA, clip, checkpoints / "clip")
    image = training.source[7].image
    own, *others = training.nearest(image, 20)
    assert own.key == "train/000007"
    assert own.feature_distance == pytest.approx(0, abs=2e-3)
    far = [neighbour.feature_distance for neighbour in others if not neighbour.is_near_duplicate]
    assert len(far) > 10
    assert far == sorted(far)
    pixels = clip.preprocess([image, training.source[others[-1].index].image])
    one, other = clip.encode_image(pixels).detach()
    assert others[-1].feature_distance == pytest.approx(float(1 - one @ other), abs=5e-3)


def test_features_are_cached_for_each_clip(checkpoints, clip, monkeypatch):
    first = TrainingImages.open(DATA, clip, checkpoints / "clip")
    monkeypatch.setattr(CLIP, "preprocess", None)
    again = TrainingImages.open(DATA, clip, checkpoints / "clip")
    assert np.array_equal(first.features, again.features)


def test_features_are_computed_anew_for_another_image_size(checkpoints, clip, tmp_path):
    for number, side in enumerate((40, 60)):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    data = FolderConfig(path=str(tmp_path), image_size=4, allow_missing_captions=True)
    small = TrainingImages.open(data, clip, checkpoints / "clip")
    large = TrainingImages.open(replace(data, image_size=32), clip, checkpoints / "clip")
    assert not np.array_equal(small.features, large.features)
    (own,) = large.nearest(large.source[0].image)
    assert own.feature_distance == pytest.approx(0, abs=2e-3)


def test_images_that_could_not_be_read_are_tried_again(clip, checkpoints, tmp_path):
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    data = FolderConfig(path=str(tmp_path), image_size=4, allow_missing_captions=True)
    path = tmp_path / TrainingImages.open(data).keys[1]
    content, status = path.read_bytes(), path.stat()
    shutil.rmtree("outputs")

    def write(data: bytes) -> None:
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    write(b"-" * len(content))  # as a disk that fails for a while; the digest stays
    broken = TrainingImages.open(data, clip, checkpoints / "clip")
    assert broken.hashes["readable"].tolist() == [True, False]
    assert np.any(broken.features, axis=1).tolist() == [True, False]
    write(content)
    mended = TrainingImages.open(data, clip, checkpoints / "clip")
    assert mended.hashes["readable"].all() and np.any(mended.features, axis=1).all()


def test_unreadable_images_are_never_nearest():
    training = TrainingImages.open(DATA)
    prints = np.array(training.hashes)
    prints["readable"][7] = False
    blind = TrainingImages(training.source, prints)
    assert blind.nearest(training.source[7].image)[0].key != "train/000007"
    assert len(blind.nearest(training.source[7].image, 99)) == 19
    prints["readable"] = False
    with pytest.raises(ValueError, match="none of the training images can be read"):
        blind.nearest(training.source[7].image)


@pytest.fixture
def trained(checkpoints, tmp_path):
    """Return `checkpoints` with a record of their training data."""
    shutil.copytree(checkpoints, tmp_path / "trained")
    path = tmp_path / "trained" / "transformer" / checkpoint.CONFIG
    written = json.loads(path.read_text())
    written["meta"]["data"] = asdict(DATA)
    path.write_text(json.dumps(written))
    return tmp_path / "trained"


def test_samples_are_shown_beside_their_nearest_training_images(trained, run_command, tmp_path):
    options = ["caption=a red circle", "candidates=4", "keep=3", "novelty=true", "out=drawn"]
    status, printed = run_command("sample", f"checkpoint={trained}", *options)
    assert status == 0, printed
    assert "of 3 are near duplicates of training images" in printed
    facts = json.loads((tmp_path / "drawn" / "samples.json").read_text())
    nearest = [image["nearest"] for image in facts["captions"][0]["images"]]
    assert all(neighbour["key"].startswith("train/0000") for neighbour in nearest)
    assert all(0 <= neighbour["bits"] <= 64 and 0 <= neighbour["feature_distance"] <= 2 for neighbour in nearest)
    by_clip = [image["nearest_by_clip"] for image in facts["captions"][0]["images"]]
    assert all(0 <= neighbour["overlap"] <= 1 for neighbour in nearest + by_clip)
    assert Image.open(tmp_path / "drawn" / GRID_FILE).width > 6 * 150


def test_tokens_tell_a_memorised_image_from_another_one(trained):
    dvae = DiscreteVAE.load(trained / "dvae")
    novelty = Novelty(TrainingImages.open(DATA), dvae)
    image = novelty.training.source[7].image
    own = dvae.encode(to_tensor([image]))  # (1, h, w)
    other = (own + 1) % dvae.vocabulary
    for tokens, duplicates in ((own, 1), (other, 1)):
        reconstruction = to_pil_images(dvae.decode(own))
        result = Result("a caption", reconstruction, None, tokens, [0], 1)
        (metadata,) = novelty.compare(result)
        assert metadata["nearest"]["near_duplicate"] == (tokens is own)
        assert novelty.num_near_duplicates == duplicates
        assert (metadata["nearest"]["overlap"] == 1) == (tokens is own)


def test_an_unreadable_neighbour_is_not_compared(trained, monkeypatch):
    dvae = DiscreteVAE.load(trained / "dvae")
    novelty = Novelty(TrainingImages.open(DATA), dvae)
    image = novelty.training.source[7].image
    monkeypatch.setattr(TrainingImages, "image", lambda *_: None)
    nearest = novelty.nearest(image, dvae.encode(to_tensor([image]))[0], by_clip=False)
    assert nearest.overlap is None


def test_novelty_without_training_data_raises_before_sampling(checkpoints, run_command, tmp_path):
    status, printed = run_command("sample", f"checkpoint={checkpoints}", "caption=x", "novelty=true", "out=drawn")
    assert status == 2
    assert "does not record its training data" in printed
    assert not (tmp_path / "drawn").exists()
