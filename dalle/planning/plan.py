"""Plan of a training run on named cards: does it fit, what do ranks exchange, and how long does it take."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dalle.models.clip.model import CLIP
from dalle.models.dvae.model import DiscreteVAE
from dalle.models.transformer.model import Transformer
from dalle.planning.activations import FLOAT32, Forward, count_forward
from dalle.planning.cards import GIGABYTE, Card
from dalle.planning.memory import RankMemory, rank_memory, trained
from dalle.planning.placement import sharded_parameters
from dalle.training.flops import TRAINING_FACTOR
from dalle.training.sharding import check_mode
from dalle.training.stage import TrainingConfig

MODELS: dict[str, Callable[..., nn.Module]] = {"dvae": DiscreteVAE, "clip": CLIP, "transformer": Transformer}
UTILISATION = 0.45  # share of the card's rate that training reaches, if it does not wait for the network
RESERVED = 1.5 * GIGABYTE  # bytes of the context, of workspaces and of fragments, which no plan counts
SECONDS_PER_DAY = 86_400
MAX_ACCUMULATE = 64
CODE_SIDE = 8  # pixels along a side of a code, as in the paper


@dataclass(frozen=True)
class Plan:
    """A planned run: memory of a rank, bytes it sends in an update, and seconds of an update."""

    card: Card
    world: int
    shards: int  # ranks that share one copy of the weights
    images: int  # per micro-batch and rank
    parameters: int
    memory: RankMemory
    flops: int  # of an update, on one rank
    sent: float  # bytes that a rank sends in an update
    compute_seconds: float
    network_seconds: float
    config: Any  # of the stage

    @property
    def fits(self) -> bool:
        return self.memory.peak + RESERVED <= self.card.memory

    @property
    def seconds(self) -> float:
        """Seconds of an update: communication overlaps with computation, and the slower of the two decides."""
        return max(self.compute_seconds, self.network_seconds)


def plan_run(
    stage: Any, image_size: int, world: int, card: Card, mode: str = "ddp", shard_size: int | None = None
) -> Plan:
    """Plan a run of the stage with config `stage` on `world` cards.

    Raises ValueError for a batch or groups that do not divide.
    """
    if world < 1:
        raise ValueError(f"world={world} must be at least 1")
    check_mode(mode, shard_size)
    shards = shard_group(mode, shard_size, world, card)
    images = stage.micro_batch_size(world)

    stage = replace(stage, model=model_config(stage, image_size))

    def build() -> nn.Module:
        return MODELS[stage.name](stage.model)

    precision = "bfloat16" if stage.precision == "auto" else stage.precision
    forward = count_forward(build, stage, precision, images, image_size)
    own = None if shards == 1 else sharded_parameters(build, mode, shard_size or shards, world)
    memory = rank_memory(build, stage, forward, images, own)
    with torch.device("meta"):
        parameters = trained(build())
    flops = step_flops(forward, stage)
    sent, seconds = communication(FLOAT32 * parameters, world, shards, stage.accumulate, card)
    compute = flops / (card.flops(precision) * UTILISATION)
    return Plan(card, world, shards, images, parameters, memory, flops, sent, compute, seconds, stage)


def model_config(stage: Any, image_size: int) -> Any:
    """Return the model config for images of this size. The transformer's grid is that of the paper's dVAE."""
    changes = {"dvae": {}, "clip": {"image_size": image_size}, "transformer": {"grid": image_size // CODE_SIDE}}
    return replace(stage.model, **changes[stage.name])


def shard_group(mode: str, shard_size: int | None, world: int, card: Card) -> int:
    """Return the number of ranks that share a copy of the weights. Raises ValueError if groups do not divide."""
    if mode == "ddp":
        return 1
    size = world if mode == "fsdp" else shard_size or min(world, card.per_node)
    if world % size:
        raise ValueError(f"distributed=hsdp: world={world} does not divide into groups of shard_size={size}")
    return size


def step_flops(forward: Forward, config: TrainingConfig) -> int:
    """Return the operations of an update on one rank; recomputation costs another forward pass."""
    return (TRAINING_FACTOR + config.recompute) * config.accumulate * forward.flops


def communication(weights: int, world: int, shards: int, accumulate: int, card: Card) -> tuple[float, float]:
    """Return the bytes that a rank sends in an update, and the seconds that this takes.

    Weights are gathered before the forward and the backward pass of each micro-batch, and gradients reduce-scattered
    after it, within groups of `shards` ranks. Copies average the gradients of their shards once, by ring all-reduce.

    weights: bytes of the weights; gradients are as large.
    """
    gathered = 3 * accumulate * weights * (shards - 1) / shards
    copies = world // shards
    averaged = 2 * (weights / shards) * (copies - 1) / copies
    within = card.link if shards <= card.per_node else card.network
    between = card.link if world <= card.per_node else card.network
    return gathered + averaged, gathered / within + averaged / between


def remedies(stage: Any, plan_of: Callable[[Any, str], Plan], mode: str) -> Iterator[tuple[str, Plan]]:
    """Yield changes of a run that does not fit, cheapest first, each with its plan; each is added to the previous ones.

    plan_of: plans a stage config with a mode of distribution.
    """
    typed: list[str] = []
    if mode == "ddp":
        mode = "fsdp"
        typed.append("distributed=fsdp")
        yield " ".join(typed), plan_of(stage, mode)
    if stage.optimizer.kind == "adamw" and stage.optimizer.moments == "float32":
        stage = replace(stage, optimizer=replace(stage.optimizer, moments="paper16"))
        typed.append("stage.optimizer.moments=paper16")
        yield " ".join(typed), plan_of(stage, mode)
    accumulate = []
    while stage.accumulate < MAX_ACCUMULATE:
        smaller = replace(stage, accumulate=2 * stage.accumulate)
        try:
            plan = plan_of(smaller, mode)
        except ValueError:  # the batch does not divide
            break
        stage, accumulate = smaller, [f"stage.accumulate={smaller.accumulate}"]
        yield " ".join([*typed, *accumulate]), plan
    if not stage.recompute:
        yield " ".join([*typed, *accumulate, "stage.recompute=true"]), plan_of(replace(stage, recompute=True), mode)


def report(plan: Plan) -> str:
    """Return the plan as text, one line per quantity."""
    memory, config = plan.memory, plan.config
    tokens = getattr(config.model, "text_positions", 0) + getattr(config.model, "grid", 0) ** 2
    per_second = config.batch_size / plan.seconds
    lines = [
        f"{plan.world} x {plan.card.name}, {plan.parameters:,} parameters in groups of {plan.shards}",
        f"micro-batch      {plan.images} images x {config.accumulate} on each rank, {config.batch_size} in all",
        "memory of a rank",
    ]
    held = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "moments": memory.moments,
        "EMA": memory.average,
        "masks": memory.buffers,
        "gathered weights": memory.gathered,
        "activations": memory.activations,
        "logits": memory.loss,
        "peak": memory.peak,
    }
    lines += [f"  {name:<16} {value / GIGABYTE:9.3f} GB" for name, value in held.items() if value]
    lines += [
        f"  {'of the card':<16} {plan.card.memory / GIGABYTE:9.3f} GB, {RESERVED / GIGABYTE:.1f} GB of it reserved",
        f"sent per update  {plan.sent / GIGABYTE:.2f} GB by each rank, {plan.network_seconds:.3f} s",
        f"computation      {plan.flops / 1e12:.1f} TFLOP on each rank, {plan.compute_seconds:.3f} s at "
        f"{UTILISATION:.0%} of the card's rate",
        f"speed            {per_second:,.0f} images/s"
        + (f", {per_second * tokens:,.0f} tokens/s" if config.name == "transformer" else ""),
        f"time             {plan.seconds * config.steps / SECONDS_PER_DAY:.1f} days for {config.steps:,} updates",
    ]
    return "\n".join(lines)


def checked(plan: Plan, changes: Iterator[tuple[str, Plan]]) -> Plan:
    """Return `plan` if it fits. Otherwise raise ValueError with the first of the changes that makes it fit."""
    if plan.fits:
        return plan
    needed = (plan.memory.peak + RESERVED) / GIGABYTE
    found = next(((typed, other) for typed, other in changes if other.fits), None)
    if found is None:
        remedy = "no setting makes it fit: use more cards, larger ones, or a smaller model"
    else:
        remedy = f"it fits with {found[0]} ({(found[1].memory.peak + RESERVED) / GIGABYTE:.1f} GB)"
    raise ValueError(
        f"this run needs {needed:.1f} GB on each rank, and {plan.card.name} has {plan.card.memory / GIGABYTE:.0f} GB: "
        f"{remedy}"
    )
