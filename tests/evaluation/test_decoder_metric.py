"""Metric `decoder`: both decoders on the same tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from unreadable_source import PartlyUnreadable

from dalle import checkpoint
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.metrics import decoder
from dalle.image_conversion import to_tensor
from dalle.models.decoder.model import DecoderConfig, DiffusionDecoder

SIZES = DecoderConfig(
    width=8, levels=1, blocks=1, patch=2, residual_scale=0.5, image_vocabulary=13, code_channels=8, code_side=2, grid=4
)


@pytest.fixture
def with_decoder(checkpoints, config, tmp_path):
    """Return a function that evaluates the tiny models with a decoder that adds `offset` to all pixels."""

    def load(offset: float):
        model = DiffusionDecoder(SIZES)
        torch.nn.init.constant_(model.unet.output.bias, offset / SIZES.residual_scale)
        model.save(tmp_path / "decoder", {"dvae": {"digest": checkpoint.digest(checkpoints / "dvae")}})
        changed = replace(config, decoder=str(tmp_path / "decoder"), samples=6, decoder_steps=1)
        return EvaluationContext.load(changed), changed

    return load


def test_an_untrained_decoder_has_the_errors_of_the_dvae(with_decoder):
    pytest.importorskip("efficientnet_lite_pytorch", reason="distances need the extra `eval`")
    result = decoder.measure(*with_decoder(0.0))
    assert result.numbers["decoder_rmse_diffusion"] == pytest.approx(result.numbers["decoder_rmse_dvae"], abs=1e-6)
    assert result.numbers["decoder_ms_diffusion"] > 0
    assert result.images.keys() == {"decoders"}


def test_the_error_is_the_root_mean_square_over_all_pixels(with_decoder):
    pytest.importorskip("efficientnet_lite_pytorch", reason="distances need the extra `eval`")
    context, config = with_decoder(0.1)
    result = decoder.measure(context, config)
    source = context.sources["val"]
    records = list(range(config.samples))
    sets = dict(decoder.decoded_sets(context.dvae, decoder.decoders_of(context, config), source, records))
    squares = [np.square((to_tensor(sets["diffusion"]) - to_tensor(sets["real"])).numpy()).mean()]
    assert result.numbers["decoder_rmse_diffusion"] == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-4)


def test_the_grid_leaves_out_unreadable_images(with_decoder):
    context, config = with_decoder(0.0)
    source = PartlyUnreadable(context.sources["val"], {0, 5})
    decoders = decoder.decoders_of(context, config)
    grid = decoder.decoder_grid(context.dvae, decoders, source)
    whole = decoder.decoder_grid(context.dvae, decoders, context.sources["val"])
    assert grid.size == whole.size and grid.tobytes() != whole.tobytes()


def test_without_a_decoder_the_metric_says_what_to_give(context, config):
    with pytest.raises(ValueError, match="give one with decoder=<folder>"):
        decoder.measure(context, config)
