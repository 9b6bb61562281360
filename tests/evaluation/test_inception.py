"""FID's Inception network: names and shapes of the published weights, TensorFlow's resizing, error messages."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dalle.checkpoint import CheckpointError
from dalle.evaluation.inception import BLOCKS, FILE, Inception, resize_tensorflow1


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Random weights under the published names, scaled so that activations neither vanish nor explode."""
    torch.manual_seed(0)
    model = Inception()
    for name, tensor in model.state_dict().items():
        if name.endswith("conv.weight"):
            nn.init.kaiming_normal_(tensor)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
    return model.state_dict()


@pytest.fixture(scope="module")
def weights(tensors, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inception") / FILE
    torch.save(tensors, path)
    return path


def test_tensor_names_and_shapes_are_those_of_the_published_file(tensors):
    """Their number, their numbers, and names and shapes of one of each kind, as torch-fidelity 0.4 has them."""
    kept = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    assert len(kept) == 472
    assert sum(tensors[name].numel() for name in kept) == 23_885_392
    published = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_5d.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.bn.weight": (192,),
        "Mixed_7b.branch1x1.conv.weight": (320, 1280, 1, 1),
        "Mixed_7c.branch3x3_2b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch3x3dbl_2.conv.weight": (384, 448, 3, 3),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }
    assert {name: kept[name] for name in published} == published


def test_features_and_logits_without_bias_for_any_image_size(tensors, weights):
    model = Inception.load(weights)
    images = torch.randint(0, 256, (2, 3, 40, 40), generator=torch.Generator().manual_seed(0)).float()
    with torch.inference_mode():
        features, logits = model(images)
        single, _ = model(images[1:])
    assert (features.shape, logits.shape) == ((2, 2048), (2, 1008))
    torch.testing.assert_close(logits, features @ tensors["fc.weight"].T)
    torch.testing.assert_close(single, features[1:], rtol=1e-3, atol=1e-4)  # statistics of training, not of the batch
    assert features.std() > 0.1


def test_only_the_last_block_has_max_pooling_and_averages_exclude_the_padding():
    pools = [branches[-1][0] for name, branches in BLOCKS.items() if name not in ("Mixed_6a", "Mixed_7a")]
    assert pools == ["avg_pool"] * 8 + ["max_pool"]
    block = Inception().eval().Mixed_7b
    x = torch.ones(1, 1280, 3, 3)
    inside = block._branch([("avg_pool")], x)
    assert inside.equal(x)  # with the padding, corners would be 4/9


def test_resizing_as_in_tensorflow_1():
    line = torch.tensor([0.0, 10.0, 20.0]).expand(1, 1, 3, 3)
    assert resize_tensorflow1(line, 6)[0, 0, 0].tolist() == pytest.approx(
        [0, 5, 10, 15, 20, 20]
    )  # and not [0, 2.5, 7.5, ...]
    assert resize_tensorflow1(line, 3).equal(line)
    half = resize_tensorflow1(torch.arange(16.0).view(1, 1, 4, 4), 2)
    assert half.flatten().tolist() == [0, 2, 8, 10]  # every second pixel, nothing averaged


def write_constant_weights(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    """Write a file with tensors of the same names and shapes, all numbers 0.5."""
    torch.save({name: torch.full(tensor.shape, 0.5, dtype=torch.float16) for name, tensor in tensors.items()}, path)
    return path


def test_weights_without_batch_counters_are_loaded(tensors, tmp_path):
    without = {name: tensor for name, tensor in tensors.items() if "num_batches" not in name}
    loaded = Inception.load(write_constant_weights(without, tmp_path / "w.pth"))
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())
    assert loaded.fc.weight.eq(0.5).all()


def test_other_weights_raise_with_the_name_of_the_right_file(tensors, tmp_path):
    path = write_constant_weights(
        {name: tensor for name, tensor in tensors.items() if not name.startswith("fc")}, tmp_path / "other.pth"
    )
    with pytest.raises(CheckpointError, match=f"lacks the tensor fc.weight.*published as {FILE}"):
        Inception.load(path)
    torchvisions = write_constant_weights(
        {**tensors, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, path
    )
    with pytest.raises(CheckpointError, match=r"fc.weight is \(1000, 2048\) in the file"):
        Inception.load(torchvisions)
    path.write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match="was not written by torch.save"):
        Inception.load(path)
    with pytest.raises(CheckpointError, match="there is no file"):
        Inception.load(tmp_path / "missing.pth")
