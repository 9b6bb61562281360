"""Plans: what ranks hold and exchange, time against sums by hand, and bad options."""

import math
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from measure_peak import init_process_group
from small_stage import H100, SMALL, STAGE, plan_of

from dalle.cli.config import compose
from dalle.models.clip.model import CLIPConfig
from dalle.models.transformer.model import Transformer
from dalle.planning import plan
from dalle.planning.cards import CARDS, find_card
from dalle.planning.changes import check_fits
from dalle.planning.communication import communication_cost
from dalle.planning.placement import place_model
from dalle.planning.plan import Planner, precision_of
from dalle.planning.report import format_plan
from dalle.stages import STAGES
from dalle.training.compression import CompressionConfig
from dalle.training.ema import EMAConfig


def test_soft_targets_of_all_micro_batches_are_counted():
    plans = [plan_of(replace(STAGE, image_targets=targets, accumulate=4), 2).memory for targets in ("argmax", "soft")]
    # bytes, 32 images of each rank, positions, codes
    assert [memory.targets for memory in plans] == [0, 4 * 32 * 4**2 * 64]
    assert plans[1].peak == plans[0].peak + plans[1].targets


def test_what_is_sharded_is_divided_and_activations_are_not():
    one, four = (plan_of(STAGE, world, "fsdp").memory for world in (1, 4))
    for name in ("parameters", "gradients", "moments", "ema"):
        assert getattr(four, name) == pytest.approx(getattr(one, name) / 4, rel=0.02)  # rows may not divide
    assert one.unsharded == 0 < four.unsharded
    assert one.gathered == four.gathered == 0  # validated sharded
    assert four.activations == pytest.approx(one.activations / 4, rel=0.02)  # a quarter of the images


def test_the_largest_shard_counts():
    """51 rows of the text head on four ranks are 13, 13, 13 and 12."""
    build = lambda: Transformer(SMALL)  # noqa: E731
    sizes = [parameter.shape for parameter in build().parameters()]
    expected = sum(-(-size[0] // 4) * math.prod(size[1:]) for size in sizes)
    assert place_model(build, "fsdp", None, 4, CompressionConfig()).parameters == expected


def test_ddp_divides_the_images_only():
    one, four = (plan_of(STAGE, world) for world in (1, 4))
    assert (one.images, four.images) == (64, 16)
    assert four.memory.parameters == one.memory.parameters == 4 * one.parameters
    assert four.flops == pytest.approx(one.flops / 4, rel=1e-3)


def test_moments_of_the_paper_and_recomputation_need_less():
    plans = [
        plan_of(replace(STAGE, **changes), 1).memory
        for changes in ({}, {"recompute": True}, {"optimizer": replace(STAGE.optimizer, moments="paper16")})
    ]
    assert plans[1].activations < plans[0].activations
    assert plans[2].moments < plans[0].moments == 2 * plans[0].parameters


def test_bfloat16_parameters_and_no_average_need_less():
    plain, half = (plan_of(replace(STAGE, precision="auto", parameters=dtype), 1) for dtype in ("float32", "bfloat16"))
    matrices = 12 * 32 * 32 * 2  # of two layers
    for name in ("parameters", "gradients"):
        assert getattr(plain.memory, name) - getattr(half.memory, name) == 2 * matrices
    assert half.memory.ema == plain.memory.ema == 4 * plain.parameters
    assert half.memory.moments == plain.memory.moments
    assert plan_of(replace(STAGE, ema=EMAConfig(0.0)), 1).memory.ema == 0
    with pytest.raises(ValueError, match="parameters=bfloat16 does not work with sharded weights"):
        plan_of(replace(STAGE, precision="auto", parameters="bfloat16"), 2, "fsdp")
    with pytest.raises(ValueError, match="parameters=bfloat16 does not work with sharded weights"):
        Planner(32, 2, H100, shard_size=1).plan(replace(STAGE, precision="auto", parameters="bfloat16"), "hsdp")


@pytest.mark.parametrize("attention", ["auto", "flex"])
def test_attention_of_a_card_has_dense_masks(attention):
    model = replace(SMALL, grid=16, patterns=["row", "column"])
    plans = [
        plan_of(replace(STAGE, batch_size=2, model=replace(model, attention=kind)), 1, image_size=128)
        for kind in (attention, "dense")
    ]
    assert plans[0].flops == plans[1].flops
    assert plans[0].memory.activations == plans[1].memory.activations


def test_a_plan_does_not_depend_on_the_processor_that_prints_it(monkeypatch):
    plans = []
    for has_amx in (False, True):
        monkeypatch.setattr("dalle.models.attention.has_amx", lambda has_amx=has_amx: has_amx)
        plans.append([Planner(32, 1, H100, device_type=kind) for kind in ("cuda", "cpu")])
        with patch("dalle.models.linear_cross_entropy.kernel_device", return_value="cuda"):
            plans[-1] = [planner.plan(replace(STAGE, precision="auto"), "ddp").memory for planner in plans[-1]]
    (gpu, cpu), (gpu_with_amx, cpu_with_amx) = plans
    assert gpu == gpu_with_amx
    # without AMX a CPU computes attention in float32, with AMX it stores its weights
    assert gpu.activations < cpu.activations != cpu_with_amx.activations


def test_clip_is_planned_for_its_own_image_size():
    config = STAGES["clip"].config()
    config = replace(config, model=replace(config.model, image_depth=1, text_depth=1), batch_size=4)
    small, large, own = (
        plan_of(replace(stage, model=stage.model_for(size)), 1, image_size=size)
        for stage, size in ((config, 64), (config, 224), (replace(config, image_size=64), 224))
    )
    assert (own.flops, own.memory) == (small.flops, small.memory)
    assert own.flops < large.flops


def test_logits_of_clip_are_those_of_a_ranks_pairs_among_all():
    """On each of 64 ranks, 64 images are compared with 4,096 captions and 64 captions with 4,096 images."""
    sizes = CLIPConfig(image_size=8, patch=8, image_width=8, image_depth=1, image_heads=1, text_positions=4)
    sizes = replace(sizes, text_vocabulary=16, text_width=8, text_depth=1, text_heads=1, embedding=8)
    config = replace(STAGES["clip"].config(), model=sizes, batch_size=64, precision="float32")
    one = plan_of(config, 1, image_size=8)
    many = plan_of(replace(config, batch_size=64 * 64), 64, image_size=8)
    assert one.images == many.images == 64
    logits = 2 * 64 * 64 * 64
    # of float32 logits, their log-probabilities and one gradient
    assert 2 * 4 * logits < many.memory.activations - one.memory.activations < 4 * 4 * logits


def test_planned_precision_is_that_of_training():
    auto = replace(STAGE, precision="auto")
    assert [precision_of(auto, CARDS[name]) for name in ("h100", "v100")] == ["bfloat16", "float16"]
    assert precision_of(STAGE, H100) == "float32"
    assert Planner(32, 1, CARDS["v100"]).plan(auto, "ddp").fits


def test_recomputing_some_layers_is_between_all_and_none():
    deep = replace(STAGE, model=replace(SMALL, depth=4))
    settings = [{"recompute_layers": 1}, {"recompute_layers": 3}, {}]
    plans = [plan_of(deep, 1), *(plan_of(replace(deep, recompute=True, **more), 1) for more in settings)]
    activations, flops = zip(*[(planned.memory.activations, planned.flops) for planned in plans], strict=True)
    assert activations[0] > activations[1] > activations[2] > activations[3]
    forward = flops[0] // 3
    assert flops == (flops[0], flops[0] + forward // 4, flops[0] + 3 * forward // 4, flops[0] + forward)
    with pytest.raises(ValueError, match="recompute_layers=5 must be at most 4, the number of transformer blocks"):
        plan_of(replace(deep, recompute=True, recompute_layers=5), 1)


def test_operations_are_six_for_each_weight_of_a_product_and_token():
    layer = 12 * 32 * 32 * 2  # weights of two layers
    tokens = 64 * (8 + 16)
    heads = 64 * 32 * (8 * 51 + 16 * 64)
    attention = 2 * 64 * 2 * 24 * 24 * 32  # layers, images, products, all pairs of positions
    assert plan_of(STAGE, 1).flops == 6 * (layer * tokens + heads + attention)


@pytest.mark.parametrize("stage", ["dvae", "clip"])
def test_every_stage_can_be_planned(stage):
    config = STAGES[stage].config()
    model = replace(config.model, **({"width": 16} if stage == "dvae" else {"image_depth": 1, "text_depth": 1}))
    planned = plan_of(replace(config, model=model, batch_size=8), 1, image_size=64 if stage == "dvae" else 224)
    assert planned.memory.activations > 0 and planned.flops > 0
    assert f"{planned.parameters:,} parameters" in format_plan(planned)


def test_communication_of_each_mode():
    card = CARDS["h100"]
    assert communication_cost(1000, world=1, shards=1, accumulate=1, card=card) == (0, 0)
    # ddp: one all-reduce, by a ring
    sent, seconds = communication_cost(1000, world=4, shards=1, accumulate=3, card=card)
    assert (sent, seconds) == (1500, 1500 / card.link)
    sent, seconds = communication_cost(1000, world=4, shards=4, accumulate=2, card=card)  # fsdp: twice three times
    assert (sent, seconds) == (2 * 3 * 750, 2 * 3 * 750 / card.link)
    # hsdp: two copies on two nodes
    sent, seconds = communication_cost(1000, world=16, shards=8, accumulate=1, card=card)
    assert (sent, seconds) == (3 * 875 + 125, 3 * 875 / card.link + 125 / card.network)


def test_the_cost_of_very_many_images_is_extrapolated(monkeypatch):
    monkeypatch.setattr("dalle.models.linear_cross_entropy.MAX_LOGITS", 1 << 12)  # of 64 * 16 * 64 logits of images
    whole = plan_of(STAGE, 1)
    monkeypatch.setattr(plan, "MAX_COUNTED", 16)
    extrapolated = plan_of(STAGE, 1)
    assert extrapolated.flops == whole.flops
    assert extrapolated.memory.activations == pytest.approx(whole.memory.activations, rel=0.01)


def test_every_card_has_a_rate():
    assert {name: card.flops("bfloat16") / 1e12 for name, card in CARDS.items()} == pytest.approx(
        {"v100": 125, "a100": 312, "h100": 989.4, "h200": 989.4, "b200": 2250}
    )
    assert CARDS["a100"].flops("float32") == 19.5e12


@pytest.mark.slow
def test_the_papers_12b_transformer_fits_one_card_of_141_gb():
    """The command of docs/training.md, "Large models on one GPU"."""
    settings = ["stage=transformer", "preset=paper", "data=folder", "data.image_size=256", "stage.batch_size=1"]
    settings += ["stage.precision=bfloat16", "stage.parameters=bfloat16", "stage.ema.decay=0"]
    stage = compose("train", [*settings, "stage.compression.rank=0"]).stage
    planned = Planner(256, 1, find_card("h200")).plan(stage, "ddp")
    check_fits(planned, iter(()))
    assert planned.parameters > 12e9
    assert planned.memory.peak / 1e9 == pytest.approx(103.3, abs=1)
    averaged = replace(planned.memory, ema=4 * planned.parameters)
    assert averaged.peak > CARDS["h200"].memory  # which an EMA would exceed


def test_bad_options():
    with pytest.raises(ValueError, match="card=h900 is unknown; choose one of v100, a100"):
        find_card("h900")
    with pytest.raises(ValueError, match="world=0 must be at least 1"):
        plan_of(STAGE, 0)
    with pytest.raises(ValueError, match="does not divide into 3 ranks"):
        plan_of(STAGE, 3)
    with pytest.raises(ValueError, match="world=4 does not divide into groups of shard_size=3"):
        Planner(32, 4, H100, shard_size=3).plan(STAGE, "hsdp")


def test_train_py_prints_a_plan_and_trains_nothing(train, tmp_path):
    small = [f"stage.model.{name}={getattr(SMALL, name)}" for name in ("width", "depth", "heads")]
    arguments = ["stage=transformer", "preset=tiny", "data=blocks", *small, "plan=true", "world=8", "card=a100"]
    status, printed = train(*arguments, "distributed=hsdp", "shard_size=4", "stage.batch_size=64")
    assert status == 0, printed
    assert "8 x A100 80 GB" in printed and "sharded over 4 ranks" in printed and "days for" in printed
    assert not list(tmp_path.iterdir())
    status, printed = train(*arguments, "stage.batch_size=64000000")
    assert (status, "this run needs" in printed) == (2, True)
    status, printed = train("stage=all", "preset=tiny", "data=blocks", "plan=true")
    assert status == 0, printed
    assert printed.count("1 x H100") == 3
    status, printed = train("stage=dvae", "preset=tiny", "data=blocks", "plan=true", "card=k80")
    assert (status, "card=k80 is unknown" in printed) == (2, True)


def test_a_plan_under_torchrun_is_refused(train, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    status, printed = train("stage=dvae", "preset=tiny", "data=blocks", "plan=true")
    assert (status, "rank 1: run plan=true without torchrun" in printed) == (2, True)


def test_a_plan_in_a_process_group_is_refused():
    init_process_group()
    try:
        with pytest.raises(ValueError, match="run plan=true without torchrun"):
            plan_of(STAGE, 2)
    finally:
        torch.distributed.destroy_process_group()
