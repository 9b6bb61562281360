"""Changes of settings that make a run fit its cards, cheapest first."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from dalle.models.blocks import TransformerBlock
from dalle.planning.cards import GIGABYTE
from dalle.planning.plan import Plan, Planner, precision_of

MAX_ACCUMULATE = 64


def check_fits(plan: Plan, alternatives: Iterator[tuple[str, Plan]]) -> None:
    """Raise ValueError unless the plan fits; the message names the first of `alternatives` that does.

    alternatives: result of `alternative_plans`.
    """
    if plan.fits:
        return
    fitting = next(((overrides, alternative) for overrides, alternative in alternatives if alternative.fits), None)
    remedy = "no setting makes it fit: use more cards, larger ones, or a smaller model"
    if fitting is not None:
        overrides, alternative = fitting
        remedy = f"it fits with {overrides} ({alternative.needed_bytes / GIGABYTE:.1f} GB)"
    raise ValueError(
        f"this run needs {plan.needed_bytes / GIGABYTE:.1f} GB on each rank, and {plan.card.name} has "
        f"{plan.card.memory / GIGABYTE:.0f} GB: {remedy}"
    )


def alternative_plans(planner: Planner, stage: Any, mode: str) -> Iterator[tuple[str, Plan]]:
    """Yield plans with changed settings, cheapest first, each in addition to the previous ones: (settings, plan).

    The settings are as typed on the command line. None changes the loss: the stage's `accumulation_is_exact` is heeded.
    """
    overrides: list[str] = []
    if mode == "ddp" and planner.world > 1:
        choices = [(["distributed=fsdp"], "fsdp", stage)]
        if stage.compression.rank:  # between copies of the weights, of which one machine has one
            uncompressed = replace(stage, compression=replace(stage.compression, rank=0))
            choices = [
                (["distributed=hsdp"], "hsdp", stage),
                (["distributed=fsdp", "stage.compression.rank=0"], "fsdp", uncompressed),
            ]
        for settings, sharded_mode, changed in choices:
            if plan := plan_if_allowed(planner, changed, sharded_mode):
                overrides, mode, stage = settings, sharded_mode, changed
                yield " ".join(overrides), plan
                break
    if stage.optimizer.kind == "adamw" and stage.optimizer.moments == "float32":
        stage = replace(stage, optimizer=replace(stage.optimizer, moments="paper16"))
        overrides.append("stage.optimizer.moments=paper16")
        yield " ".join(overrides), planner.plan(stage, mode)
    accumulate = []
    while stage.accumulation_is_exact and stage.accumulate < MAX_ACCUMULATE:
        smaller = replace(stage, accumulate=2 * stage.accumulate)
        if (plan := plan_if_allowed(planner, smaller, mode)) is None:  # the batch does not divide
            break
        stage, accumulate = smaller, [f"stage.accumulate={smaller.accumulate}"]
        yield " ".join([*overrides, *accumulate]), plan
    overrides += accumulate
    layers = count_layers(stage)
    num_recomputed = 0
    if stage.recompute:
        num_recomputed = layers if stage.recompute_layers is None else stage.recompute_layers
    if num_recomputed < layers:
        if not stage.recompute:
            overrides.append("stage.recompute=true")
        for recompute_layers in sorted({layers * quarters // 4 for quarters in (1, 2, 3)}):
            if recompute_layers > num_recomputed:
                changed = planner.plan(replace(stage, recompute=True, recompute_layers=recompute_layers), mode)
                yield " ".join([*overrides, f"stage.recompute_layers={recompute_layers}"]), changed
        if stage.recompute:
            overrides.append("stage.recompute_layers=null")
        stage = replace(stage, recompute=True, recompute_layers=None)
        yield " ".join(overrides), planner.plan(stage, mode)
    if mode == "hsdp":  # groups of all ranks, without compression between copies, of which there is one
        other_overrides = [override for override in overrides if not override.startswith("distributed=")]
        uncompressed = replace(stage, compression=replace(stage.compression, rank=0))
        if plan := plan_if_allowed(planner, uncompressed, "fsdp"):
            yield " ".join(["distributed=fsdp", "stage.compression.rank=0", *other_overrides]), plan
    if planner.shards(mode) == 1 and stage.optimizer.kind == "adamw" and layers:
        yield from sixteen_bit_plans(planner, stage, mode, overrides)


def sixteen_bit_plans(planner: Planner, stage: Any, mode: str, overrides: list[str]) -> Iterator[tuple[str, Plan]]:
    """Yield plans with bfloat16 weights and without EMA, as `alternative_plans` does.

    overrides: the settings changed so far.
    """
    if stage.parameters == "float32" and precision_of(stage, planner.card) == "bfloat16":
        stage = replace(stage, parameters="bfloat16")
        overrides = [*overrides, "stage.parameters=bfloat16"]
        yield " ".join(overrides), planner.plan(stage, mode)
    if stage.ema.decay:
        stage = replace(stage, ema=replace(stage.ema, decay=0.0))
        yield " ".join([*overrides, "stage.ema.decay=0"]), planner.plan(stage, mode)


def plan_if_allowed(planner: Planner, stage: Any, mode: str) -> Plan | None:
    """Plan a run. Returns None for settings that training refuses."""
    try:
        return planner.plan(stage, mode)
    except ValueError:
        return None


def count_layers(stage: Any) -> int:
    """Count the transformer blocks of the model, whose activations can be recomputed."""
    with torch.device("meta"):
        model = stage.model_class(stage.model)
    return sum(isinstance(module, TransformerBlock) for module in model.modules())
