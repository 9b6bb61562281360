"""Plan of a training run on one kind of GPU: memory of a rank, bytes that ranks exchange, and time of an update."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from dalle.models.blocks import ResidualBranch
from dalle.models.dvae.config import DVAEConfig
from dalle.planning.activations import MicroBatchCost, micro_batch_cost
from dalle.planning.cards import GIGABYTE, Card
from dalle.planning.communication import communication_cost, compressed_bytes
from dalle.planning.memory import RankMemory, count_trainable, parameter_bytes, rank_memory
from dalle.planning.placement import place_model
from dalle.precision import matmul_format
from dalle.training.branch_hooks import recomputed_branches
from dalle.training.flops import TRAINING_FACTOR, EncodingCost
from dalle.training.sharding import check_mode

ASSUMED_MFU = 0.45  # share of the card's peak rate that training reaches, if it does not wait for the network
MAX_COUNTED = 1024  # images of a micro-batch whose cost is counted: chunks of logits take time
RESERVED_BYTES = 1.5 * GIGABYTE  # bytes of the context, of workspaces and of fragments, which no plan counts


@dataclass(frozen=True)
class Plan:
    """A planned run: memory of a rank, bytes it sends in an update, and seconds of an update."""

    card: Card
    world: int
    shards: int  # ranks that share one copy of the weights
    images: int  # per micro-batch and rank
    parameters: int
    memory: RankMemory
    flops: int  # of the model in an update, on one rank
    encoding_flops: int  # of the frozen dVAE that encodes the images of an update, on one rank
    bytes_sent: float  # by a rank in an update
    compute_seconds: float  # of the model
    encoding_seconds: float  # of the frozen dVAE
    network_seconds: float
    config: Any  # of the stage

    @property
    def needed_bytes(self) -> float:
        """Bytes that a card needs: the peak of a rank's memory and `RESERVED_BYTES`."""
        return self.memory.peak + RESERVED_BYTES

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.card.memory

    @property
    def seconds(self) -> float:
        """Seconds of an update: communication overlaps with computation, and the slower of the two decides.

        Images are encoded before, when nothing is communicated.
        """
        return self.encoding_seconds + max(self.compute_seconds, self.network_seconds)


class Planner:
    """Planner of runs of one stage on `world` cards. Equal micro-batches are counted once."""

    def __init__(
        self,
        image_size: int,
        world: int,
        card: Card,
        shard_size: int | None = None,
        dvae: DVAEConfig | None = None,
        device_type: str = "cuda",
    ):
        """image_size: side of the images of the dVAE and the decoder in pixels; other models' configs have it.

        shard_size: ranks that share the weights with mode hsdp; None: those of a node.
        dvae: the frozen dVAE of models that are trained on tokens; None: its time and memory are left out.
        device_type: of the cards; "cpu" plans what is measured on a CPU.

        Raises ValueError for no cards.
        """
        if world < 1:
            raise ValueError(f"world={world} must be at least 1")
        self.image_size, self.world, self.card, self.shard_size = image_size, world, card, shard_size
        self.dvae, self.device_type = dvae, device_type
        # by images in a micro-batch, recomputation and storage of parameters
        self._costs: dict[tuple[int, bool, int | None, str], MicroBatchCost] = {}

    def plan(self, stage: Any, mode: str) -> Plan:
        """Plan a run of the stage with config `stage`, whose model has the sizes of `StageDataConfig.model_for`.

        Raises ValueError for settings that training refuses.
        """
        check_mode(mode, self.shard_size)
        shards = self.shards(mode)
        if mode != "ddp" and self.world > 1:
            stage.check_sharding()
        images = stage.micro_batch_size(self.world)
        build = partial(stage.model_class, stage.model)
        with torch.device("meta"):
            model = build()
        cost = self.cost(stage, images)
        flops = round((TRAINING_FACTOR + recomputed_share(model, stage)) * cost.flops) * stage.accumulate
        placement = place_model(build, mode, shards, self.world, stage.compression)
        encoding = EncodingCost(0, 0, 0) if self.dvae is None else stage.encoding_cost(self.image_size, self.dvae)
        memory = rank_memory(
            model,
            stage,
            activations=cost.peak_bytes,
            encoding=encoding,
            images=images,
            placement=placement,
            shards=shards,
            replicas=self.world // shards,
        )
        parameters = count_trainable(model)
        weights, compressed = parameter_bytes(model, stage), compressed_bytes(placement, stage.compression)
        bytes_sent, network_seconds = communication_cost(
            weights, self.world, shards, stage.accumulate, self.card, compressed
        )
        encoding_flops = encoding.flops * images * stage.accumulate
        return Plan(
            card=self.card,
            world=self.world,
            shards=shards,
            images=images,
            parameters=parameters,
            memory=memory,
            flops=flops,
            encoding_flops=encoding_flops,
            bytes_sent=bytes_sent,
            compute_seconds=self.assumed_seconds(flops, precision_of(stage, self.card), stage),
            encoding_seconds=self.assumed_seconds(encoding_flops, "float32", stage),
            network_seconds=network_seconds,
            config=stage,
        )

    def assumed_seconds(self, flops: int, precision: str, stage: Any) -> float:
        """Return the assumed time of `flops` in `precision`, with the stage's `float32_matmul_precision`."""
        rate = self.card.flops(matmul_format(precision, stage.float32_matmul_precision, self.card.has_bfloat16))
        return flops / (rate * ASSUMED_MFU)

    def shards(self, mode: str) -> int:
        """Return the number of ranks that share a copy of the weights. Raises ValueError if groups do not divide."""
        if mode == "ddp":
            return 1
        size = self.world if mode == "fsdp" else self.shard_size or min(self.world, self.card.per_node)
        if self.world % size:
            raise ValueError(f"distributed=hsdp: world={self.world} does not divide into groups of shard_size={size}")
        return size

    def cost(self, stage: Any, images: int) -> MicroBatchCost:
        """Return the cost of a micro-batch of `images` images, extrapolated from fewer ones above a limit."""
        if images > MAX_COUNTED and stage.accumulation_is_exact:  # else the loss compares all images of a micro-batch
            half_count = MAX_COUNTED // 2
            costs = zip(self.cost(stage, half_count), self.cost(stage, MAX_COUNTED), strict=True)
            return MicroBatchCost(
                *(
                    limit_cost + (images - MAX_COUNTED) * (limit_cost - half_cost) // half_count
                    for half_cost, limit_cost in costs
                )
            )
        key = images, stage.recompute, stage.recompute_layers, stage.parameters
        if key not in self._costs:
            build = partial(stage.model_class, stage.model)
            precision = precision_of(stage, self.card)
            self._costs[key] = micro_batch_cost(
                build, stage, precision, images, self.image_size, self.world, self.device_type
            )
        return self._costs[key]


def recomputed_share(model: nn.Module, stage: Any) -> float:
    """Return the share of the forward pass that is done twice, in branches whose activations are recomputed."""
    if not stage.recompute:
        return 0.0
    branches = [module for module in model.modules() if isinstance(module, ResidualBranch)]
    return len(recomputed_branches(model, stage.recompute_layers)) / len(branches)


def precision_of(stage: Any, card: Card) -> str:
    """Return the precision that a stage trains in on a card."""
    if stage.precision != "auto":
        return stage.precision
    return "bfloat16" if card.has_bfloat16 or stage.parameters == "bfloat16" else "float16"
