"""Plans: what ranks hold and exchange, time against sums by hand, and what does not fit."""

import math
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from measure_peak import init_process_group

from dalle.cli.config import compose
from dalle.models.clip.model import CLIPConfig
from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.planning import plan
from dalle.planning.cards import CARDS, find_card
from dalle.planning.changes import changes, check_fits
from dalle.planning.communication import communication
from dalle.planning.placement import place
from dalle.planning.plan import Planner, precision_of
from dalle.planning.report import report
from dalle.stages import STAGES
from dalle.stages.transformer import TransformerStageConfig
from dalle.training.ema import EMAConfig
from dalle.training.powersgd import CompressionConfig

SMALL = TransformerConfig(
    text_positions=8, text_vocabulary=50, image_vocabulary=64, grid=4, width=32, depth=2, heads=2, patterns=["dense"]
)
H100 = CARDS["h100"]
STAGE = TransformerStageConfig(model=SMALL, batch_size=64, steps=1000, precision="float32")


def test_soft_targets_of_all_micro_batches_are_counted():
    plans = [plan_of(replace(STAGE, image_targets=targets, accumulate=4), 2).memory for targets in ("argmax", "soft")]
    # bytes, 32 images of each rank, positions, codes
    assert [memory.targets for memory in plans] == [0, 4 * 32 * 4**2 * 64]
    assert plans[1].peak == plans[0].peak + plans[1].targets


def plan_of(stage, world, mode="ddp", image_size=32):
    return Planner(image_size, world, H100).plan(stage, mode)


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
    assert place(build, "fsdp", None, 4, CompressionConfig()).parameters == expected


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


def test_a_run_that_recomputes_some_layers_may_recompute_more():
    deep = replace(STAGE, model=replace(SMALL, depth=8), recompute=True, recompute_layers=3, batch_size=1)
    deep = replace(deep, optimizer=replace(STAGE.optimizer, moments="paper16"))
    typed = [typed for typed, _ in changes(Planner(32, 1, H100), deep, "ddp")]
    assert typed[:3] == ["stage.recompute_layers=4", "stage.recompute_layers=6", "stage.recompute_layers=null"]
    everything = replace(deep, recompute_layers=None)
    assert "recompute" not in " ".join(typed for typed, _ in changes(Planner(32, 1, H100), everything, "ddp"))


def test_on_one_card_changes_end_with_bfloat16_parameters_and_no_average():
    stage = replace(STAGE, precision="auto", batch_size=1)
    typed = [typed for typed, _ in changes(Planner(32, 1, H100), stage, "ddp")]
    assert typed == [
        "stage.optimizer.moments=paper16",
        "stage.optimizer.moments=paper16 stage.recompute=true stage.recompute_layers=1",
        "stage.optimizer.moments=paper16 stage.recompute=true",
        "stage.optimizer.moments=paper16 stage.recompute=true stage.parameters=bfloat16",
        "stage.optimizer.moments=paper16 stage.recompute=true stage.parameters=bfloat16 stage.ema.decay=0",
    ]


def test_groups_end_with_one_group_of_all_ranks():
    stage = replace(STAGE, recompute=True, compression=CompressionConfig(rank=8, blocks=8))
    *_, (typed, last) = changes(Planner(32, 16, H100), stage, "hsdp")
    assert typed.startswith("distributed=fsdp stage.compression.rank=0 ")
    assert last.shards == 16
    assert last.memory.parameters < Planner(32, 16, H100).plan(stage, "hsdp").memory.parameters


def test_error_buffers_of_compression_are_counted():
    compression = CompressionConfig(rank=8, blocks=1)
    plain, half = (
        plan_of(replace(STAGE, compression=replace(compression, precision=precision)), 1).memory
        for precision in ("float32", "paper16")
    )
    assert plain.errors == 4 * 12 * 32 * 32 * 2 == 2 * half.errors
    assert plan_of(STAGE, 1).memory.errors == 0


def test_compressed_gradients_are_sent_as_factors():
    """Of each layer PowerSGD sends P and Q of queries, keys, values and out, and of the MLP's two matrices."""
    factors = 2 * 8 * (4 * (32 + 32) + 2 * (32 + 128))
    for precision, size in (("float32", 4), ("paper16", 2)):
        planned = plan_of(replace(STAGE, compression=CompressionConfig(8, blocks=1, precision=precision)), 4)
        others = planned.parameters - 2 * 12 * 32 * 32
        assert planned.bytes_sent == 2 * (4 * others + size * factors) * 3 / 4
        assert planned.bytes_sent < plan_of(STAGE, 4).bytes_sent


def test_error_buffers_of_shards_are_those_of_a_ranks_own_blocks():
    stage = replace(STAGE, compression=CompressionConfig(rank=8, blocks=2))
    whole, half = plan_of(stage, 4), Planner(32, 4, H100, shard_size=2).plan(stage, "hsdp")
    assert half.memory.errors == whole.memory.errors / 2
    uncompressed = Planner(32, 4, H100, shard_size=2).plan(STAGE, "hsdp")
    assert half.bytes_sent < uncompressed.bytes_sent


@pytest.mark.parametrize(
    ("mode", "settings", "message"),
    [
        ("fsdp", {}, "compression.rank needs several copies of the weights"),
        ("hsdp", {"blocks": 1}, "compression.blocks=1 must be a multiple of shard_size=8"),
        ("hsdp", {"basis": "warm"}, "compression.basis=warm does not work with distributed=hsdp"),
    ],
)
def test_compression_that_training_refuses_is_refused_and_not_suggested(mode, settings, message):
    stage = replace(STAGE, compression=replace(CompressionConfig(rank=8, blocks=8), **settings))
    with pytest.raises(ValueError, match=message):
        plan_of(stage, 16, mode)
    first, _ = next(changes(Planner(32, 16, H100), stage, "ddp"))
    assert first == ("distributed=hsdp" if mode == "fsdp" else "distributed=fsdp stage.compression.rank=0")


def test_one_group_of_ranks_has_nobody_to_compress_gradients_for():
    stage = replace(STAGE, compression=CompressionConfig(rank=8, blocks=8))
    with pytest.raises(ValueError, match="compression.rank needs several copies of the weights"):
        plan_of(stage, 8, "hsdp")
    first, plan = next(changes(Planner(32, 8, H100), stage, "ddp"))
    assert (first, plan.memory.errors) == ("distributed=fsdp stage.compression.rank=0", 0)


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
    assert f"{planned.parameters:,} parameters" in report(planned)


def test_communication_of_each_mode():
    card = CARDS["h100"]
    assert communication(1000, world=1, shards=1, accumulate=1, card=card) == (0, 0)
    sent, seconds = communication(1000, world=4, shards=1, accumulate=3, card=card)  # ddp: one all-reduce, by a ring
    assert (sent, seconds) == (1500, 1500 / card.link)
    sent, seconds = communication(1000, world=4, shards=4, accumulate=2, card=card)  # fsdp: twice three times
    assert (sent, seconds) == (2 * 3 * 750, 2 * 3 * 750 / card.link)
    sent, seconds = communication(1000, world=16, shards=8, accumulate=1, card=card)  # hsdp: two copies on two nodes
    assert (sent, seconds) == (3 * 875 + 125, 3 * 875 / card.link + 125 / card.network)


def test_a_run_that_does_not_fit_names_the_cheapest_change_that_does(monkeypatch):
    planner = Planner(32, 2, H100)
    check_fits(planner.plan(STAGE, "ddp"), changes(planner, STAGE, "ddp"))
    typed = [typed for typed, _ in changes(planner, STAGE, "ddp")]
    assert typed[0] == "distributed=fsdp"
    assert typed[1] == "distributed=fsdp stage.optimizer.moments=paper16"
    assert typed[2] == f"{typed[1]} stage.accumulate=2"
    assert typed[-2] == f"{typed[1]} stage.accumulate=32 stage.recompute=true stage.recompute_layers=1"
    assert typed[-1] == f"{typed[1]} stage.accumulate=32 stage.recompute=true"  # 64 images on two ranks

    monkeypatch.setattr("dalle.planning.plan.RESERVED", 0)
    sixteen_bit = replace(STAGE, optimizer=replace(STAGE.optimizer, moments="paper16"))
    peak = planner.plan(replace(sixteen_bit, accumulate=4), "fsdp").memory.peak
    planner.card = replace(H100, memory=peak)
    with pytest.raises(ValueError, match=r"it fits with .*moments=paper16 stage.accumulate=4 \("):
        check_fits(planner.plan(STAGE, "ddp"), changes(planner, STAGE, "ddp"))
    planner.card = replace(H100, memory=1)
    with pytest.raises(ValueError, match="no setting makes it fit"):
        check_fits(planner.plan(STAGE, "ddp"), changes(planner, STAGE, "ddp"))


def test_equal_micro_batches_are_counted_once(monkeypatch):
    counted = []
    whole = plan.micro_batch_cost
    monkeypatch.setattr(plan, "micro_batch_cost", lambda *arguments: counted.append(arguments[3]) or whole(*arguments))
    planner = Planner(32, 2, H100)
    list(changes(planner, STAGE, "ddp"))
    assert counted == [32, 16, 8, 4, 2, 1, 1, 1]  # the last ones without, with half and with all of recomputation


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
