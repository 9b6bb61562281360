"""Options of train.py."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from dalle.ablation_config import AblationConfig
from dalle.training.logger import WandbConfig
from dalle.training.sharding import check_mode

EXPERIMENT_SIZES = {"overnight", "gpu"}  # sizes that experiments have and ablations do not


@dataclass(frozen=True)
class TrainConfig:
    """Options of train.py."""

    # model to train; all: dVAE, CLIP and transformer in turn, with settings such as stage.dvae.steps=...; the
    # transformer uses the dVAE trained before
    stage: Any = MISSING
    data: Any = MISSING  # captioned images to train on
    preset: Any = None  # model sizes and training recipe, merged into the settings of the stage
    # size of an ablation's runs; laptop: about a minute each on one CPU core; experiment=drawings has laptop, overnight
    # and gpu
    size: str | None = None
    ablation: AblationConfig | None = None  # the question that a sweep of runs answers: -m +ablation=<name>
    run: str = "default"  # name of the run; using the same name again resumes it
    out: str = "outputs"  # output folder: runs are in <out>/<stage>/<run>, with stage=all in <out>/<run>/<stage>
    seed: int = 0  # random seed of weights, data order and everything else
    dvae: str | None = None  # checkpoint folder of the dVAE that encodes images for the transformer or the decoder
    tokens: str | None = None  # token cache, or the folder of token caches; null: <out>/tokens
    # checkpoint whose weights the run starts from, of the same stage; stage=all: folder with dvae/, clip/, transformer/
    init: str | None = None
    init_strict: bool = True  # false: load the tensors of init that fit, and initialise the others anew
    device: str = "auto"  # auto | cpu | cuda | cuda:0
    # with torchrun, ddp: each rank has all weights | fsdp: weights, gradients and moments are sharded over all ranks |
    # hsdp: they are sharded over groups of ranks
    distributed: str = "ddp"
    shard_size: int | None = None  # hsdp: ranks over which a model is sharded; null: those of one machine
    # minutes that a rank waits for the others before the run fails; raise it if one rank reads the data for longer
    timeout_minutes: float = 30.0
    plan: bool = False  # print memory, communication and time of this run on `world` cards, and train nothing
    world: int = 1  # number of cards of a plan, one for each rank
    card: str = "h100"  # kind of the cards of a plan: v100 | a100 | h100 | h200 | b200
    deterministic: bool = False  # bitwise reproducible results on a GPU, with slower kernels; on a CPU they always are
    resume: bool = True  # false: start over and move the existing run folder aside
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        check_mode(self.distributed, self.shard_size)
        if not self.plan and (self.world, self.card) != (TrainConfig.world, TrainConfig.card):
            raise ValueError("world and card are of plans only: add plan=true, or leave them out to train")
        if not 0 < self.timeout_minutes < 1e6:
            raise ValueError(f"timeout_minutes={self.timeout_minutes} must be above 0 and below a million")
        if self.init is None and not self.init_strict:
            raise ValueError("init_strict=false needs init, the checkpoint whose tensors are loaded")
        if self.ablation is not None and self.run != TrainConfig.run:
            raise ValueError(
                f"run={self.run} has no effect on an ablation, whose runs are named by their settings: leave it out"
            )
        if self.ablation is not None and self.size in EXPERIMENT_SIZES:
            raise ValueError(
                f"size={self.size} is a size of experiment=drawings; an ablation has laptop, small, base and paper"
            )
