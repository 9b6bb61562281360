"""Plan of a training run on named cards: does it fit, what do ranks exchange, and how long does it take."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from dalle.models.blocks import ResidualBranch, TransformerBlock
from dalle.models.clip.model import CLIP
from dalle.models.decoder.model import DiffusionDecoder
from dalle.models.dvae.model import DiscreteVAE
from dalle.models.transformer.model import Transformer
from dalle.planning.activations import FLOAT32, ForwardCost, forward_cost
from dalle.planning.cards import GIGABYTE, Card
from dalle.planning.memory import RankMemory, count_trainable, parameter_bytes, rank_memory
from dalle.planning.placement import Placement, place
from dalle.training.branch_hooks import recomputed_branches
from dalle.training.flops import TRAINING_FACTOR
from dalle.training.powersgd import CompressionConfig
from dalle.training.sharding import check_mode

MODELS: dict[str, Callable[..., nn.Module]] = {
    "dvae": DiscreteVAE,
    "clip": CLIP,
    "transformer": Transformer,
    "decoder": DiffusionDecoder,
}
ASSUMED_MFU = 0.45  # share of the card's peak rate that training reaches, if it does not wait for the network
RESERVED = 1.5 * GIGABYTE  # bytes of the context, of workspaces and of fragments, which no plan counts
SECONDS_PER_DAY = 86_400
MAX_ACCUMULATE = 64
FACTOR16 = 2  # bytes of a number of P or Q in 16 bits
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
    bytes_sent: float  # by a rank in an update
    compute_seconds: float
    network_seconds: float
    config: Any  # of the stage

    @property
    def needed(self) -> float:
        """Bytes that a card needs."""
        return self.memory.peak + RESERVED

    @property
    def fits(self) -> bool:
        return self.needed <= self.card.memory

    @property
    def seconds(self) -> float:
        """Seconds of an update: communication overlaps with computation, and the slower of the two decides."""
        return max(self.compute_seconds, self.network_seconds)


class Planner:
    """Planner of runs of one stage on `world` cards. Forward passes of equal micro-batches are counted once."""

    def __init__(self, image_size: int, world: int, card: Card, shard_size: int | None = None):
        """shard_size: ranks that share the weights with mode hsdp; None: those of a node.

        Raises ValueError for no cards.
        """
        if world < 1:
            raise ValueError(f"world={world} must be at least 1")
        self.image_size, self.world, self.card, self.shard_size = image_size, world, card, shard_size
        # by images in a micro-batch, recomputation and storage of parameters
        self._costs: dict[tuple[int, bool, int | None, str], ForwardCost] = {}

    def plan(self, stage: Any, mode: str) -> Plan:
        """Plan a run of the stage with config `stage`. Raises ValueError for settings that training refuses."""
        check_mode(mode, self.shard_size)
        shards = self.shards(mode)
        if mode != "ddp" and self.world > 1:
            stage.check_sharding()
        images = stage.micro_batch_size(self.world)
        stage = replace(stage, model=model_config(stage, self.image_size))
        build = partial(MODELS[stage.name], stage.model)
        with torch.device("meta"):
            model = build()
        cost = self.cost(stage, images)
        activations, flops = cost.saved_bytes, TRAINING_FACTOR * cost.flops
        if stage.recompute:
            activations, recomputed = self.recomputation(stage, model, images)
            flops += round(recomputed * cost.flops)
        flops *= stage.accumulate
        placement = place(build, mode, shards, self.world, stage.compression)
        memory = rank_memory(model, stage, activations, images, placement, shards, self.world // shards)
        parameters = count_trainable(model)
        weights, compressed = parameter_bytes(model, stage), compressed_bytes(placement, stage.compression)
        sent, network = communication(weights, self.world, shards, stage.accumulate, self.card, compressed)
        compute = flops / (self.card.flops(precision_of(stage, self.card)) * ASSUMED_MFU)
        return Plan(self.card, self.world, shards, images, parameters, memory, flops, sent, compute, network, stage)

    def shards(self, mode: str) -> int:
        """Return the number of ranks that share a copy of the weights. Raises ValueError if groups do not divide."""
        if mode == "ddp":
            return 1
        size = self.world if mode == "fsdp" else self.shard_size or min(self.world, self.card.per_node)
        if self.world % size:
            raise ValueError(f"distributed=hsdp: world={self.world} does not divide into groups of shard_size={size}")
        return size

    def cost(self, stage: Any, images: int) -> ForwardCost:
        """Return the cost of the forward pass of a micro-batch of `images` images."""
        key = images, stage.recompute, stage.recompute_layers, stage.parameters
        if key not in self._costs:
            build = partial(MODELS[stage.name], stage.model)
            size = size_of(stage, self.image_size)
            self._costs[key] = forward_cost(build, stage, precision_of(stage, self.card), images, size)
        return self._costs[key]

    def recomputation(self, stage: Any, model: nn.Module, images: int) -> tuple[int, float]:
        """Return the most bytes of activations at a time, and the share of the forward pass that is done twice.

        Branches are recomputed one at a time. With `recompute_layers` those of other layers are stored, and freed
        before the first recomputation.
        """
        branches = [each for each in model.modules() if isinstance(each, ResidualBranch)]
        kept = self.cost(replace(stage, recompute=False, recompute_layers=None), images).saved_bytes
        recomputing = self.cost(replace(stage, recompute_layers=None), images).saved_bytes + kept // len(branches)
        share = len(recomputed_branches(model, stage.recompute_layers)) / len(branches)
        return max(recomputing, self.cost(stage, images).saved_bytes), share

    def changes(self, stage: Any, mode: str) -> Iterator[tuple[str, Plan]]:
        """Yield plans with changed settings, cheapest first, each in addition to the previous ones: (settings, plan).

        The settings are as typed on the command line.
        """
        typed: list[str] = []
        if mode == "ddp" and self.world > 1:
            choices = [(["distributed=fsdp"], "fsdp", stage)]
            if stage.compression.rank:  # between copies of the weights, of which one machine has one
                uncompressed = replace(stage, compression=replace(stage.compression, rank=0))
                choices = [
                    (["distributed=hsdp"], "hsdp", stage),
                    (["distributed=fsdp", "stage.compression.rank=0"], "fsdp", uncompressed),
                ]
            for settings, sharded, changed in choices:
                if plan := self.plan_if_allowed(changed, sharded):
                    typed, mode, stage = settings, sharded, changed
                    yield " ".join(typed), plan
                    break
        if stage.optimizer.kind == "adamw" and stage.optimizer.moments == "float32":
            stage = replace(stage, optimizer=replace(stage.optimizer, moments="paper16"))
            typed.append("stage.optimizer.moments=paper16")
            yield " ".join(typed), self.plan(stage, mode)
        accumulate = []
        while stage.accumulate < MAX_ACCUMULATE:
            smaller = replace(stage, accumulate=2 * stage.accumulate)
            if (plan := self.plan_if_allowed(smaller, mode)) is None:  # the batch does not divide
                break
            stage, accumulate = smaller, [f"stage.accumulate={smaller.accumulate}"]
            yield " ".join([*typed, *accumulate]), plan
        typed += accumulate
        layers = self.count_layers(stage)
        if not stage.recompute and layers:
            typed.append("stage.recompute=true")
            for some in sorted({layers * quarters // 4 for quarters in (1, 2, 3)} - {0}):
                changed = self.plan(replace(stage, recompute=True, recompute_layers=some), mode)
                yield " ".join([*typed, f"stage.recompute_layers={some}"]), changed
            stage = replace(stage, recompute=True)
            yield " ".join(typed), self.plan(stage, mode)
        if mode == "hsdp":  # groups of all ranks, without compression between copies, of which there is one
            others = [each for each in typed if not each.startswith("distributed=")]
            uncompressed = replace(stage, compression=replace(stage.compression, rank=0))
            if plan := self.plan_if_allowed(uncompressed, "fsdp"):
                yield " ".join(["distributed=fsdp", "stage.compression.rank=0", *others]), plan
        if self.shards(mode) == 1 and stage.optimizer.kind == "adamw" and layers:
            yield from self.sixteen_bit_changes(stage, mode, typed)

    def sixteen_bit_changes(self, stage: Any, mode: str, typed: list[str]) -> Iterator[tuple[str, Plan]]:
        """Yield plans with bfloat16 weights and without EMA, as `changes` does; `typed`: the settings so far."""
        if stage.parameters == "float32" and precision_of(stage, self.card) == "bfloat16":
            stage = replace(stage, parameters="bfloat16")
            typed = [*typed, "stage.parameters=bfloat16"]
            yield " ".join(typed), self.plan(stage, mode)
        if stage.ema.decay:
            stage = replace(stage, ema=replace(stage.ema, decay=0.0))
            yield " ".join([*typed, "stage.ema.decay=0"]), self.plan(stage, mode)

    def plan_if_allowed(self, stage: Any, mode: str) -> Plan | None:
        """Plan a run as `plan` does. Returns None for settings that training refuses."""
        try:
            return self.plan(stage, mode)
        except ValueError:
            return None

    def count_layers(self, stage: Any) -> int:
        """Count the transformer blocks of the model, whose activations can be recomputed."""
        with torch.device("meta"):
            model = MODELS[stage.name](model_config(stage, self.image_size))
        return sum(isinstance(each, TransformerBlock) for each in model.modules())


def precision_of(stage: Any, card: Card) -> str:
    """Return the precision that a stage trains in on a card."""
    if stage.precision != "auto":
        return stage.precision
    return "bfloat16" if card.has_bfloat16 or stage.parameters == "bfloat16" else "float16"


def size_of(stage: Any, image_size: int) -> int:
    """Return the side of a stage's images: its own setting, which CLIP has, else `image_size`, that of the data."""
    return getattr(stage, "image_size", None) or image_size


def model_config(stage: Any, image_size: int) -> Any:
    """Return the model config for data of this image size. Token grids are those of the paper's dVAE."""
    image_size = size_of(stage, image_size)
    grid = {"grid": image_size // CODE_SIDE}
    changes = {"dvae": {}, "clip": {"image_size": image_size}, "transformer": grid, "decoder": grid}
    return replace(stage.model, **changes[stage.name])


def compressed_bytes(placement: Placement, config: CompressionConfig) -> int | None:
    """Return the bytes of a rank's gradients as PowerSGD sends them: P and Q of matrices, all others in float32.

    None without compression.
    """
    if not config.rank:
        return None
    matrices = placement.partitions.values()
    others = placement.parameters - sum(each.uncompressed for each in matrices)
    factors = sum(each.compressed for each in matrices)
    return FLOAT32 * others + (FACTOR16 if config.precision == "paper16" else FLOAT32) * factors


def communication(
    weights: int, world: int, shards: int, accumulate: int, card: Card, compressed: int | None = None
) -> tuple[float, float]:
    """Return the bytes that a rank sends in an update, and the seconds that this takes.

    Weights are gathered before the forward and the backward pass of each micro-batch, and gradients reduce-scattered
    after it, within groups of `shards` ranks. Copies average the gradients of their shards once, by ring all-reduce.

    weights: bytes of the weights; gradients are as large.
    compressed: bytes of a shard's gradients as they are sent between copies; None: as many as its weights.
    """
    gathered = 3 * accumulate * weights * (shards - 1) / shards
    copies = world // shards
    averaged = 2 * (weights / shards if compressed is None else compressed) * (copies - 1) / copies
    within = card.link if shards <= card.per_node else card.network
    between = card.link if world <= card.per_node else card.network
    return gathered + averaged, gathered / within + averaged / between


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
        "error buffers": memory.errors,
        "bases": memory.bases,
        "EMA": memory.ema,
        "masks": memory.buffers,
        "gathered weights": memory.gathered,
        "unsharded blocks": memory.unsharded,
        "activations": memory.activations,
        "logits": memory.logits,
        "peak": memory.peak,
    }
    lines += [f"  {name:<16} {value / GIGABYTE:9.3f} GB" for name, value in held.items() if value]
    lines += [
        f"  {'of the card':<16} {plan.card.memory / GIGABYTE:9.3f} GB, {RESERVED / GIGABYTE:.1f} GB of it reserved",
        f"sent per update  {plan.bytes_sent / GIGABYTE:.2f} GB by each rank, {plan.network_seconds:.3f} s",
        f"computation      {plan.flops / 1e12:.1f} TFLOP on each rank, {plan.compute_seconds:.3f} s at "
        f"{ASSUMED_MFU:.0%} MFU",
        f"speed            {per_second:,.0f} images/s"
        + (f", {per_second * tokens:,.0f} tokens/s" if config.name == "transformer" else ""),
        f"time             {plan.seconds * config.steps / SECONDS_PER_DAY:.1f} days for {config.steps:,} updates",
    ]
    return "\n".join(lines)


def check_fits(plan: Plan, changes: Iterator[tuple[str, Plan]]) -> None:
    """Raise ValueError unless the plan fits; the message names the first of `changes` that makes it fit."""
    if plan.fits:
        return
    found = next(((typed, other) for typed, other in changes if other.fits), None)
    remedy = "no setting makes it fit: use more cards, larger ones, or a smaller model"
    if found is not None:
        typed, other = found
        remedy = f"it fits with {typed} ({other.needed / GIGABYTE:.1f} GB)"
    raise ValueError(
        f"this run needs {plan.needed / GIGABYTE:.1f} GB on each rank, and {plan.card.name} has "
        f"{plan.card.memory / GIGABYTE:.0f} GB: {remedy}"
    )
