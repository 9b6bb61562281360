"""Time and memory of the frozen dVAE that encodes images, in plans of models that are trained on tokens."""

from dataclasses import replace

import pytest
import torch

from dalle.models.decoder.model import DecoderConfig
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.models.transformer.config import TransformerConfig
from dalle.planning.cards import CARDS
from dalle.planning.plan import ASSUMED_MFU, Planner
from dalle.planning.report import format_plan
from dalle.stages.decoder import DecoderStageConfig
from dalle.stages.transformer import TransformerStageConfig
from dalle.training.flops import forward_flops
from dalle.training.peak_memory import PeakMemory

SIZE = 32  # pixels
DVAE = DVAEConfig(vocabulary=64, width=8, groups=3, blocks_per_group=1, decoder_input=8)
TRANSFORMER = TransformerStageConfig(
    model=TransformerConfig(text_positions=8, text_vocabulary=50, width=32, depth=1, heads=2),
    batch_size=64,
    accumulate=2,
    precision="float32",
)
DECODER = DecoderStageConfig(model=DecoderConfig(width=8, levels=2, blocks=1, patch=2), batch_size=64, accumulate=2)


def plan_of(stage, card="h100", world=2, dvae=DVAE):
    stage = replace(stage, model=stage.model_for(SIZE, DVAE))
    return Planner(SIZE, world, CARDS[card], dvae=dvae).plan(stage, "ddp")


def flops_of(*names):
    """Return the FLOPs of parts of the dVAE for one image."""
    model = DiscreteVAE(DVAE)
    shapes = {"encoder": (3, SIZE, SIZE), "decoder": (DVAE.vocabulary, SIZE // 4, SIZE // 4)}
    return sum(forward_flops(getattr(model, name), shapes[name]) for name in names)


def test_images_are_encoded_for_the_transformer_and_decoded_too_for_the_decoder():
    images = 32  # of a rank
    assert plan_of(TRANSFORMER).encoding_flops == images * flops_of("encoder")
    # codes are embedded by looking them up, without the products of the first layer
    embedding = 2 * (SIZE // 4) ** 2 * DVAE.vocabulary * DVAE.decoder_input
    assert plan_of(DECODER).encoding_flops == images * (flops_of("encoder", "decoder") - embedding)


@pytest.mark.parametrize(
    ("changes", "encodes"),
    [
        ({}, True),
        ({"image_targets": "soft"}, True),
        ({"transform": "none", "image_targets": "soft"}, True),
        ({"transform": "none"}, False),
        ({"crops": 4}, False),
    ],
)
def test_cached_tokens_take_no_time(changes, encodes):
    planned = plan_of(replace(TRANSFORMER, **changes))
    assert bool(planned.encoding_flops) == bool(planned.encoding_seconds) == encodes
    assert ("of the frozen dVAE on each rank" in format_plan(planned)) == encodes
    assert planned.memory.encoding  # of held-out images
    assert planned.memory.encoder == 4 * sum(parameter.numel() for parameter in DiscreteVAE(DVAE).parameters())
    without = plan_of(TRANSFORMER, dvae=None)
    assert (without.encoding_flops, without.memory.encoder, without.memory.encoding) == (0, 0, 0)


def test_memory_to_encode_images_counts_where_a_large_dvae_encodes_for_a_small_model():
    dvae = replace(DVAE, width=64)
    small, large = (plan_of(TRANSFORMER, dvae=config).memory for config in (DVAE, dvae))
    with torch.device("meta"):
        model, images = DiscreteVAE(dvae), torch.empty(16, 3, SIZE, SIZE)
        with torch.no_grad(), PeakMemory([*model.parameters(), images]) as memory:
            model.encode(images)
    assert large.encoding == pytest.approx(memory.peak, rel=0.01)
    assert large.encoding > large.activations > small.encoding
    held = large.parameters + large.moments + large.ema + large.buffers + large.encoder
    assert large.peak == held + large.gradients + large.encoding  # DDP's buckets hold the gradients


def test_memory_to_sample_codes_counts_where_there_are_many():
    dvae, logits = replace(DVAE, vocabulary=4096), 4 * 16 * (SIZE // 4) ** 2 * 4096
    targets = ("argmax", "sampled", "soft")
    argmax, sampled, soft = (plan_of(replace(TRANSFORMER, image_targets=kind), dvae=dvae).memory for kind in targets)
    assert sampled.encoding == soft.encoding >= 3 * logits  # logits, their distribution and its cumulative sum
    assert argmax.encoding < 2 * logits


def test_encoding_is_in_float32_and_in_tf32_where_that_is_set():
    flops = 32 * flops_of("encoder")
    rates = {("h100", "highest"): 66.9e12, ("h100", "high"): 494.7e12, ("v100", "high"): 15.7e12}
    for (card, precision), rate in rates.items():
        for auto in ("auto", "float32"):
            planned = plan_of(replace(TRANSFORMER, precision=auto, float32_matmul_precision=precision), card)
            assert planned.encoding_seconds == pytest.approx(flops / (rate * ASSUMED_MFU))
            if auto == "float32":  # the model too
                assert planned.compute_seconds == pytest.approx(planned.flops / (rate * ASSUMED_MFU))
    half = [
        plan_of(replace(TRANSFORMER, precision="auto", float32_matmul_precision=matmul_precision))
        for matmul_precision in ("highest", "high")
    ]
    assert half[0].compute_seconds == half[1].compute_seconds


def test_encoding_overlaps_with_no_communication():
    planned, cached = plan_of(TRANSFORMER), plan_of(replace(TRANSFORMER, crops=4))
    assert planned.network_seconds > 0
    assert planned.seconds == planned.encoding_seconds + cached.seconds
    lines = [f"in {dtype}, {planned.encoding_seconds:.3f} s" for dtype in ("float32", "tf32")]
    assert lines[0] in format_plan(planned) and lines[1] not in format_plan(planned)
    without_tf32 = plan_of(replace(TRANSFORMER, precision="float32", float32_matmul_precision="high"), "v100")
    assert "in float32, " in format_plan(without_tf32) and "tf32" not in format_plan(without_tf32)


def test_a_plan_counts_the_dvae_that_the_run_would_use(train, tmp_path):
    settings = ["stage=transformer", "preset=tiny", "data=blocks", "plan=true", "stage.image_targets=soft"]
    mine = tmp_path / "mine"
    DiscreteVAE(replace(DVAE, width=512)).save(mine)
    printed = [train(*settings, *more)[1] for more in ([], [f"dvae={mine}"], ["stage.float32_matmul_precision=high"])]
    encoding = [next(line for line in output.splitlines() if line.startswith("encoding ")) for output in printed]
    assert len(set(encoding)) == 3
    assert ["in tf32" in line for line in encoding] == [False, False, True]
