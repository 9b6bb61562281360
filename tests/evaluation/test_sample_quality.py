"""Metrics `sample_quality` and `blur_curve`: the compared sets, the sample cache, and missing metrics."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from dalle.checkpoint import CheckpointError
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.features import FeatureNetwork
from dalle.evaluation.held_out import HeldOut
from dalle.evaluation.metrics import blur_curve, fid_kid_is, sample_quality
from dalle.evaluation.metrics.blur_curve import RADII, blur
from dalle.evaluation.sample_cache import MANIFEST


class MeanFeatures(nn.Module):
    """Feature network with four features: the mean of each channel, and the mean gradient."""

    def __init__(self):
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        rough = (images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3))
        features = torch.cat([images.mean(dim=(2, 3)), rough[:, None]], dim=1) / 255
        return features, features


@pytest.fixture(autouse=True)
def simple_features(monkeypatch) -> None:
    features = FeatureNetwork("means", MeanFeatures(), 4, "none", "0" * 16, "fd_effnet", "kid_effnet", "is_effnet")
    for module in (sample_quality, blur_curve):
        monkeypatch.setattr(module, "load_feature_network", lambda *_: features)
    monkeypatch.setattr(fid_kid_is, "KID_SUBSETS", 2)


def test_samples_and_reconstructions_are_compared_with_the_same_real_images(context, config):
    result = sample_quality.measure(context, config)
    assert {"fd_effnet", "kid_effnet", "fd_effnet_reconstructed", "kid_effnet_reconstructed"} <= result.numbers.keys()
    assert result.numbers["fd_effnet"] != result.numbers["fd_effnet_reconstructed"]
    assert result.numbers["fd_effnet_reconstructed"] > 0.01  # an untrained dVAE does not reproduce the images
    settings = result.settings
    assert (settings["real_images"], settings["sampled_images"], settings["pairs"]) == (6, 6, 6)
    assert (settings["sample_candidates"], settings["split"], settings["temperature"]) == (1, "val", 1.0)
    assert set(result.images) == {"samples"}


def test_samples_are_cached_and_shared_with_the_blur_curve(context, config, monkeypatch):
    first = sample_quality.measure(context, config)
    assert (config.folder / "sampled" / first.settings["sample_cache"] / "000" / "000005.png").is_file()
    monkeypatch.setattr(type(context.pipeline), "stream", lambda *_, **__: pytest.fail("it sampled again"))
    assert sample_quality.measure(context, config).numbers == first.numbers
    result = blur_curve.measure(context, config)
    assert result.numbers["fd_effnet_blur_0"] == pytest.approx(first.numbers["fd_effnet"])
    assert {f"fd_effnet_blur_{radius}" for radius in RADII} <= result.numbers.keys()
    assert len({result.numbers[f"fd_effnet_blur_{radius}"] for radius in RADII}) == len(RADII)
    assert result.table.count("\n") == 2 + len(RADII)
    assert set(result.images) == {"blur_curve"}
    assert result.settings["radii"] == [0, 1, 2, 4, 8]


def test_dvae_without_transformer_has_reconstruction_metrics_only(config):
    config = replace(config, checkpoint=f"{config.checkpoint}/dvae")
    result = sample_quality.measure(EvaluationContext.load(config), config)
    assert set(result.numbers) == {"fd_effnet_reconstructed", "kid_effnet_reconstructed"}
    assert result.images == {}


def test_blur_curve_of_few_images_has_kid_only_and_notes(context, config):
    config = replace(config, samples=4)
    result = blur_curve.measure(context, config)
    assert "fd_effnet_blur_0" not in result.numbers
    assert "kid_effnet_blur_8" in result.numbers
    assert result.table.startswith("| blur radius | kid_effnet |")
    frechet, inception_score = result.notes
    assert "Use kid_effnet" in frechet
    assert inception_score == "No is_effnet: it needs 20 sampled images."


def test_fewer_than_four_images_raise_before_sampling(context, config):
    for measure in (sample_quality.measure, blur_curve.measure):
        with pytest.raises(ValueError, match="needs at least 4 held-out images, but there are 3"):
            measure(context, replace(config, samples=3))
    assert not config.folder.exists()


def test_reranking_without_clip_raises_before_sampling(config, without_clip):
    config = replace(config, checkpoint=str(without_clip()), sample_candidates=4)
    with pytest.raises(CheckpointError, match="reranking sample_candidates=4 needs"):
        sample_quality.measure(EvaluationContext.load(config), config)
    assert not config.folder.exists()


def test_blur_is_pillows_gaussian_blur():
    images = torch.randint(0, 256, (2, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert blur(images, 0).equal(images)
    for image, soft in zip(images, blur(images, 2), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(2))
        assert np.array_equal(np.asarray(picture), soft.permute(1, 2, 0).numpy())


def test_real_and_sampled_images_are_blurred_alike(context, config, monkeypatch):
    blurs: Counter[int] = Counter()

    def counted(images: Tensor, radius: int) -> Tensor:
        blurs[radius] += len(images)
        return blur(images, radius)

    monkeypatch.setattr(blur_curve, "blur", counted)
    blur_curve.measure(context, config)
    assert blurs == dict.fromkeys(RADII, 6 + 6)


def test_radius_is_the_standard_deviation():
    point = torch.zeros(1, 3, 65, 65, dtype=torch.uint8)
    point[..., 32, :] = 255  # a line, whose profile is the blur's
    profile = blur(point, 4)[0, 0, :, 32].double()
    places = torch.arange(65) - 32
    assert (profile @ places.double() ** 2 / profile.sum()).sqrt() == pytest.approx(4, abs=0.25)


def test_real_images_are_read_one_batch_at_a_time(context, config, monkeypatch):
    alive: list[int] = []
    original = HeldOut.__iter__

    def watched(self):
        for batch in original(self):
            alive.append(len(batch.captions))
            yield batch

    monkeypatch.setattr(HeldOut, "__iter__", watched)
    monkeypatch.setattr(sample_quality, "HeldOut", lambda source, count: HeldOut(source, count, batch_size=2))
    assert sample_quality.measure(context, config).settings["pairs"] == 6
    assert max(alive) == 2


def test_a_resumed_run_ranks_as_an_uninterrupted_one(context, config, monkeypatch):
    """Captions are compared with the first ones of the split, also if only the last ones are sampled."""
    config = replace(config, rerank="caption_likelihood", sample_candidates=3)
    whole = replace(config, out=str(config.folder / "whole.json"))
    settings = sample_quality.measure(context, whole).settings
    assert len(settings["rerank"]["references"]) == 6
    original = type(context.pipeline).stream

    def interrupted(*arguments, **options):
        yield from islice(original(*arguments, **options), 3)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(context.pipeline), "stream", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sample_quality.measure(context, config)
    assert sample_quality.measure(context, config).settings == settings
    manifests = [evaluated.folder / "sampled" / settings["sample_cache"] / MANIFEST for evaluated in (config, whole)]
    assert manifests[0].read_text() == manifests[1].read_text()


def test_references_are_only_set_where_captions_are_compared(context, config):
    dalle, captions = context.require_pipeline(), [f"caption {number % 30}" for number in range(60)]
    sampling = dalle.resolve(config.sampling(4))
    assert sample_quality.with_references(dalle, sampling, captions) == sampling
    given = replace(sampling, rerank="caption_likelihood", rerank_references=["a red circle"])
    assert sample_quality.with_references(dalle, given, captions) == given
    compared = sample_quality.with_references(dalle, replace(given, rerank_references=[]), captions[:1] + captions)
    assert compared.rerank_references == captions[:17]
