"""Sample quality and its curve over blur: which sets are compared, what is drawn for it, and what is missing when."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from dalle.checkpoint import CheckpointError
from dalle.evaluation.features import Features
from dalle.evaluation.held_out import HeldOut
from dalle.evaluation.metrics import blur_curve, distances, quality
from dalle.evaluation.metrics.blur_curve import RADII, blurred
from dalle.evaluation.subject import Subject


class Means(nn.Module):
    """Four features: the mean of each colour, and how much pixels differ from their neighbours."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        rough = (images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3))
        features = torch.cat([images.mean(dim=(2, 3)), rough[:, None]], dim=1) / 255
        return features, features


@pytest.fixture(autouse=True)
def simple_features(monkeypatch) -> None:
    features = Features("means", Means(), 4, "none", "0" * 16, "fed", "kid_effnet", "is_effnet")
    for module in (quality, blur_curve):
        monkeypatch.setattr(module, "features_named", lambda *_: features)
    monkeypatch.setattr(distances, "SUBSETS", 2)


def test_drawn_pictures_and_reconstructions_are_compared_with_the_same_real_ones(subject, config):
    found = quality.measure(subject, config)
    assert {"fed", "kid_effnet", "fed_reconstructed", "kid_effnet_reconstructed"} <= found.numbers.keys()
    assert found.numbers["fed"] != found.numbers["fed_reconstructed"]
    assert found.numbers["fed_reconstructed"] > 0.01  # an untrained dVAE's are not the pictures themselves
    told = found.settings
    assert (told["real_pictures"], told["drawn_pictures"], told["pairs"]) == (6, 6, 6)
    assert (told["sample_candidates"], told["split"], told["temperature"]) == (1, "val", 1.0)
    assert set(found.pictures) == {"drawn"}


def test_pictures_are_drawn_once_for_quality_and_curve_and_lie_beside_the_metrics(subject, config, monkeypatch):
    first = quality.measure(subject, config)
    assert (config.folder / "drawn" / first.settings["drawn_in"] / "000" / "000005.png").is_file()
    monkeypatch.setattr(type(subject.dalle), "stream", lambda *_, **__: pytest.fail("it drew again"))
    assert quality.measure(subject, config).numbers == first.numbers
    found = blur_curve.measure(subject, config)
    assert found.numbers["fed_blur_0"] == pytest.approx(first.numbers["fed"])
    assert {f"fed_blur_{radius}" for radius in RADII} <= found.numbers.keys()
    assert len({found.numbers[f"fed_blur_{radius}"] for radius in RADII}) == len(RADII)
    assert found.table.count("\n") == 2 + len(RADII)
    assert set(found.pictures) == {"blur_curve"}
    assert found.settings["radii"] == [0, 1, 2, 4, 8]


def test_a_dvae_alone_is_measured_by_its_reconstructions(config):
    config = replace(config, checkpoint=f"{config.checkpoint}/dvae")
    found = quality.measure(Subject.load(config), config)
    assert set(found.numbers) == {"fed_reconstructed", "kid_effnet_reconstructed"}
    assert found.pictures == {}


def test_with_too_few_pictures_the_curve_is_kids_and_says_why(subject, config):
    config = replace(config, samples=4)
    found = blur_curve.measure(subject, config)
    assert "fed_blur_0" not in found.numbers
    assert "kid_effnet_blur_8" in found.numbers
    assert found.table.startswith("| blur radius | kid_effnet |")
    frechet, inception_score = found.notes
    assert "Look at kid_effnet instead" in frechet
    assert inception_score == "No is_effnet: it takes 20 drawn pictures."


def test_fewer_than_four_pictures_are_refused_before_any_is_drawn(subject, config):
    for measure in (quality.measure, blur_curve.measure):
        with pytest.raises(ValueError, match="3 held-out pictures are no set to compare with; it takes 4 or more"):
            measure(subject, replace(config, samples=3))
    assert not config.folder.exists()


def test_choosing_among_candidates_needs_a_clip_before_anything_is_drawn(config, without_clip):
    config = replace(config, checkpoint=str(without_clip()), sample_candidates=4)
    with pytest.raises(CheckpointError, match="choosing among sample_candidates=4 needs"):
        quality.measure(Subject.load(config), config)
    assert not config.folder.exists()


def test_blur_is_pillows_and_none_at_radius_0():
    images = torch.randint(0, 256, (2, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert blurred(images, 0).equal(images)
    for image, soft in zip(images, blurred(images, 2), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(2))
        assert np.array_equal(np.asarray(picture), soft.permute(1, 2, 0).numpy())


def test_real_and_drawn_pictures_are_blurred_alike(subject, config, monkeypatch):
    blurs: Counter[int] = Counter()

    def counted(images: Tensor, radius: int) -> Tensor:
        blurs[radius] += len(images)
        return blurred(images, radius)

    monkeypatch.setattr(blur_curve, "blurred", counted)
    blur_curve.measure(subject, config)
    assert blurs == dict.fromkeys(RADII, 6 + 6)


def test_the_radius_is_a_standard_deviation():
    point = torch.zeros(1, 3, 65, 65, dtype=torch.uint8)
    point[..., 32, :] = 255  # a line, whose profile is the blur's
    profile = blurred(point, 4)[0, 0, :, 32].double()
    places = torch.arange(65) - 32
    assert (profile @ places.double() ** 2 / profile.sum()).sqrt() == pytest.approx(4, abs=0.25)


def test_real_pictures_are_never_all_in_memory(subject, config, monkeypatch):
    """Batches are taken one at a time, and the network sees each before the next is read."""
    alive: list[int] = []
    original = HeldOut.__iter__

    def watched(self):
        for batch in original(self):
            alive.append(len(batch.captions))
            yield batch

    monkeypatch.setattr(HeldOut, "__iter__", watched)
    monkeypatch.setattr(quality, "HeldOut", lambda source, count: HeldOut(source, count, batch_size=2))
    assert quality.measure(subject, config).settings["pairs"] == 6
    assert max(alive) == 2
