"""Changes that make a run fit, from the cheapest."""

from dataclasses import replace

import pytest
from small_stage import H100, SMALL, STAGE

from dalle.planning import plan
from dalle.planning.changes import alternative_plans, check_fits
from dalle.planning.plan import Planner
from dalle.training.compression import CompressionConfig


def test_a_run_that_recomputes_some_layers_may_recompute_more():
    deep = replace(STAGE, model=replace(SMALL, depth=8), recompute=True, recompute_layers=3, batch_size=1)
    deep = replace(deep, optimizer=replace(STAGE.optimizer, moments="paper16"))
    typed = [typed for typed, _ in alternative_plans(Planner(32, 1, H100), deep, "ddp")]
    assert typed[:3] == ["stage.recompute_layers=4", "stage.recompute_layers=6", "stage.recompute_layers=null"]
    everything = replace(deep, recompute_layers=None)
    assert "recompute" not in " ".join(typed for typed, _ in alternative_plans(Planner(32, 1, H100), everything, "ddp"))


def test_on_one_card_changes_end_with_bfloat16_parameters_and_no_average():
    stage = replace(STAGE, precision="auto", batch_size=1)
    typed = [typed for typed, _ in alternative_plans(Planner(32, 1, H100), stage, "ddp")]
    assert typed == [
        "stage.optimizer.moments=paper16",
        "stage.optimizer.moments=paper16 stage.recompute=true stage.recompute_layers=1",
        "stage.optimizer.moments=paper16 stage.recompute=true",
        "stage.optimizer.moments=paper16 stage.recompute=true stage.parameters=bfloat16",
        "stage.optimizer.moments=paper16 stage.recompute=true stage.parameters=bfloat16 stage.ema.decay=0",
    ]


def test_groups_end_with_one_group_of_all_ranks():
    stage = replace(STAGE, recompute=True, compression=CompressionConfig(rank=8, blocks=8))
    *_, (typed, last) = alternative_plans(Planner(32, 16, H100), stage, "hsdp")
    assert typed.startswith("distributed=fsdp stage.compression.rank=0 ")
    assert last.shards == 16
    assert last.memory.parameters < Planner(32, 16, H100).plan(stage, "hsdp").memory.parameters


def test_a_run_that_does_not_fit_names_the_cheapest_change_that_does(monkeypatch):
    planner = Planner(32, 2, H100)
    check_fits(planner.plan(STAGE, "ddp"), alternative_plans(planner, STAGE, "ddp"))
    typed = [typed for typed, _ in alternative_plans(planner, STAGE, "ddp")]
    assert typed[0] == "distributed=fsdp"
    assert typed[1] == "distributed=fsdp stage.optimizer.moments=paper16"
    assert typed[2] == f"{typed[1]} stage.accumulate=2"
    assert typed[-2] == f"{typed[1]} stage.accumulate=32 stage.recompute=true stage.recompute_layers=1"
    assert typed[-1] == f"{typed[1]} stage.accumulate=32 stage.recompute=true"  # 64 images on two ranks

    monkeypatch.setattr("dalle.planning.plan.RESERVED_BYTES", 0)
    sixteen_bit = replace(STAGE, optimizer=replace(STAGE.optimizer, moments="paper16"))
    peak = planner.plan(replace(sixteen_bit, accumulate=4), "fsdp").memory.peak
    planner.card = replace(H100, memory=peak)
    with pytest.raises(ValueError, match=r"it fits with .*moments=paper16 stage.accumulate=4 \("):
        check_fits(planner.plan(STAGE, "ddp"), alternative_plans(planner, STAGE, "ddp"))
    planner.card = replace(H100, memory=1)
    with pytest.raises(ValueError, match="no setting makes it fit"):
        check_fits(planner.plan(STAGE, "ddp"), alternative_plans(planner, STAGE, "ddp"))


def test_equal_micro_batches_are_counted_once(monkeypatch):
    counted = []
    whole = plan.micro_batch_cost
    monkeypatch.setattr(plan, "micro_batch_cost", lambda *arguments: counted.append(arguments[3]) or whole(*arguments))
    planner = Planner(32, 2, H100)
    list(alternative_plans(planner, STAGE, "ddp"))
    assert counted == [32, 16, 8, 4, 2, 1, 1, 1]  # the last ones without, with half and with all of recomputation
