"""CLIP's ResNet. Its outputs are compared with OpenAI's in tests/pretrained/test_openai_clip.py."""

import pytest
import torch
import torch.nn.functional as F

from dalle import losses
from dalle.models.clip.model import CLIP, CLIPConfig
from dalle.models.clip.resnet import AttentionPool, Bottleneck, ResNetEncoder

RN50 = CLIPConfig(image_encoder="resnet", image_width=64, image_blocks=(3, 4, 6, 3), image_heads=32, embedding=1024)
SMALL = CLIPConfig(
    image_size=64,
    image_encoder="resnet",
    image_width=4,
    image_blocks=(1, 2, 1, 1),
    image_heads=4,
    text_vocabulary=20,
    text_positions=6,
    text_width=16,
    text_depth=1,
    text_heads=2,
    embedding=8,
)


@pytest.fixture
def tower() -> ResNetEncoder:
    """Return a ResNet with random weights; residual branches of a new one output zero."""
    torch.manual_seed(0)
    tower = ResNetEncoder(64, 4, (1, 2, 1, 1), 4, 8).eval()
    with torch.no_grad():
        for tensor in tower.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(torch.rand(tensor.shape))
    return tower


def pictures(count: int) -> torch.Tensor:
    """Return smooth images (count, 3, 64, 64); with white noise all cells would be nearly equal."""
    return F.interpolate(torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)), 64)


def test_rn50_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = CLIP(RN50)
    assert sum(parameter.numel() for parameter in model.parameters()) == 102_007_137
    assert model.image.pool.positions.shape == (50, 2048)


@torch.no_grad()
def test_feature_grid_is_a_32nd_of_the_image_size(tower):
    pixels = pictures(3)
    assert tower(pixels).shape == (3, 8)
    shapes = [tower.stem(pixels).shape[1:]]
    shapes += [tower.stages[: number + 1](tower.stem(pixels)).shape[1:] for number in range(4)]
    assert shapes == [(4, 16, 16), (16, 16, 16), (32, 8, 8), (64, 4, 4), (128, 2, 2)]


@torch.no_grad()
def test_features_depend_on_every_cell_and_its_position(tower):
    image = pictures(1)
    before = tower(image)
    for y in (0, 32):
        for x in (0, 32):
            changed = image.clone()
            changed[:, :, y : y + 32, x : x + 32] = 0
            assert not torch.allclose(tower(changed), before, atol=1e-4)
    assert not torch.allclose(tower(image.flip(-1)), before, atol=1e-4)


@torch.no_grad()
def test_feature_does_not_depend_on_the_batch(tower):
    pixels = pictures(4)
    together = tower(pixels)
    for row in range(4):
        torch.testing.assert_close(tower(pixels[row : row + 1])[0], together[row])


@torch.no_grad()
def test_stride_averages_the_outputs_without_stride():
    """Subsampling would use one in four cells, with aliasing."""
    torch.manual_seed(0)
    still, strided = Bottleneck(8, 4, 1).eval(), Bottleneck(8, 4, 2).eval()
    x = torch.rand(2, 8, 6, 6)
    torch.testing.assert_close(strided.shortcut(strided.pool(x)), F.avg_pool2d(strided.shortcut(x), 2))
    assert strided(x).shape == (2, 16, 3, 3)
    assert still(x).shape == (2, 16, 6, 6)


@torch.no_grad()
def test_new_block_is_the_identity():
    x = torch.rand(2, 16, 6, 6)
    assert Bottleneck(16, 4, 1)(x).equal(x)


@torch.no_grad()
def test_attention_pooling_matches_torch_with_the_mean_as_query():
    torch.manual_seed(0)
    pool = AttentionPool(12, 6, 3, 5)
    x = torch.rand(2, 12, 2, 3)
    cells = x.flatten(2).permute(2, 0, 1)
    cells = torch.cat([cells.mean(0, keepdim=True), cells]) + pool.positions[:, None]
    expected, _ = F.multi_head_attention_forward(
        cells[:1],
        cells,
        cells,
        12,
        3,
        None,
        torch.cat([pool.query.bias, pool.key.bias, pool.value.bias]),
        None,
        None,
        False,
        0.0,
        pool.out.weight,
        pool.out.bias,
        use_separate_proj_weight=True,
        q_proj_weight=pool.query.weight,
        k_proj_weight=pool.key.weight,
        v_proj_weight=pool.value.weight,
    )
    torch.testing.assert_close(pool(x), expected[0])


def test_one_batch_overfits():
    torch.manual_seed(0)
    clip = CLIP(SMALL)
    pixels, ids = pictures(4), torch.randint(18, (4, 6))
    ids[:, -1] = clip.config.end_token
    optimizer = torch.optim.Adam(clip.parameters(), 3e-3)
    for _ in range(30):
        loss = losses.contrastive(*clip(pixels, ids))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2
    assert all(parameter.grad is not None for parameter in clip.parameters())


def test_indivisible_sizes_raise():
    with pytest.raises(ValueError, match="image_size=224 must be a multiple of 32, and width=7 even"):
        ResNetEncoder(224, 7, (1, 1, 1, 1), 4, 8)
    with pytest.raises(ValueError, match="image_size=200 must be a multiple of 32"):
        ResNetEncoder(200, 8, (1, 1, 1, 1), 4, 8)
    with pytest.raises(ValueError, match="the last stage, 256 wide, does not divide into heads=12"):
        ResNetEncoder(64, 8, (1, 1, 1, 1), 12, 8)


@torch.no_grad()
def test_saved_resnet_gives_the_same_features(tower):
    other = ResNetEncoder(64, 4, (1, 2, 1, 1), 4, 8).eval()
    other.load_state_dict(tower.state_dict())
    pixels = pictures(2)
    assert other(pixels).equal(tower(pixels))
