"""Train one stage, or all three in turn: python train.py stage=dvae data=folder data.path=... run=my-dvae"""

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from dalle import checkpoint, distributed
from dalle.cli.config import TrainConfig, command, run_name
from dalle.seeds import seed_global_generators
from dalle.stages import STAGES
from dalle.stages.data_module import StageContext
from dalle.training.cpu import configure_cpu
from dalle.training.job import Job, record_status
from dalle.training.loop import train
from dalle.training.run import Run, defaults_of, rename_existing, resume_step


@command("train")
def main(config: TrainConfig) -> None:
    device = distributed.start(config.device, config.deterministic)
    try:
        with configure_cpu(device):
            train_stages(config, device)
    finally:
        distributed.stop()


def train_stages(config: TrainConfig, device: torch.device) -> None:
    """Train one stage, or all stages in turn."""
    runs = plan_runs(config)
    if len(runs) > 1:
        check_dvae_unchanged(runs)
    for stage_config, folder in runs:
        if not config.resume:
            start_over(stage_config, folder)
        with record_status(Job.from_config(config), folder) if config.ablation else nullcontext():
            train_stage(stage_config, folder, device)
    if len(runs) > 1:
        parent = runs[0][1].parent
        print_once(f'{parent}: all stages are finished; next: python sample.py checkpoint={parent} caption="..."')


def plan_runs(config: TrainConfig) -> list[tuple[TrainConfig, Path]]:
    """Return the stages to train, in order, each with its run folder."""
    if config.ablation is not None:
        return [(config, Job.from_config(config).folder(config.out))]
    name = run_name(config.run)
    if not isinstance(config.stage, dict):
        return [(config, Path(config.out, config.stage.name, name))]
    if config.dvae is not None:
        raise ValueError("stage=all trains a dVAE of its own: leave dvae out, or train one stage at a time")
    folder = Path(config.out, name)
    dvaes = {"transformer": str(folder / "dvae")}
    return [(replace(config, stage=config.stage[stage], dvae=dvaes.get(stage)), folder / stage) for stage in STAGES]


def check_dvae_unchanged(runs: list[tuple[TrainConfig, Path]]) -> None:
    """Raise ValueError if training the dVAE further would invalidate a transformer already trained on its tokens."""
    (dvae, dvae_folder), *_, (_, transformer) = runs
    if not dvae.resume or checkpoint.read_scalars(transformer) is None:
        return
    if (done := resume_step(dvae_folder, run_config(dvae), default_config(dvae))) < dvae.stage.steps:
        raise ValueError(
            f"{transformer} was trained on the tokens of {dvae_folder} after {done} updates. Training that dVAE to "
            f"{dvae.stage.steps} updates would invalidate it: choose another name with run=<name>, or move "
            f"{transformer} away first"
        )


def run_config(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that must not change when a run resumes: stage, data and seed."""
    return {"stage": asdict(config.stage), "data": asdict(config.data), "seed": config.seed}


def default_config(config: TrainConfig) -> dict[str, Any]:
    """Return the defaults of the settings in `run_config`."""
    return {"stage": defaults_of(type(config.stage)), "data": defaults_of(type(config.data))}


def start_over(config: TrainConfig, folder: Path) -> None:
    """Rename an existing run in `folder`. Reads the dVAE first, so that nothing is renamed if the run cannot start."""
    if config.dvae is not None:
        checkpoint.read_config(config.dvae, "dvae")
    if (renamed := rename_existing(folder)) is not None:
        print_once(f"{folder}: starting over; the previous run is now in {renamed}")


def train_stage(config: TrainConfig, folder: Path, device: torch.device) -> None:
    """Train the run in `folder` from its last checkpoint, if any, to its last step."""
    settings = run_config(config)
    if config.dvae is not None:
        checkpoint.read_config(config.dvae, "dvae")  # raises before anything is written
        settings["dvae"] = checkpoint.digest(config.dvae)
    done, steps = resume_step(folder, settings, default_config(config)), config.stage.steps
    if done >= steps:
        print_once(f"{folder}: finished, {done} updates done")
        return

    seed_global_generators("initial weights", config.seed, device=device)
    dvae = None if config.dvae is None else Path(config.dvae)
    tokens = Path(config.out, "tokens") if config.tokens is None else Path(config.tokens)
    context = StageContext(config.seed, device, dvae, tokens)
    stage = STAGES.of(config.stage).build(config.stage, config.data, context)
    parameters = sum(parameter.numel() for parameter in stage.model.parameters())
    image_size = stage.data.image_size
    print_once(
        f"{folder}: {parameters:,} parameters on {device}, images of {image_size} pixels, steps {done} to {steps}"
    )
    if distributed.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(asdict(config)), folder / "config.yaml")
    train(stage, config.stage, Run(folder, settings, config.seed, device, config.wandb, default_config(config)))


def print_once(text: str) -> None:
    """Print `text` on the first rank only."""
    if distributed.is_first():
        print(text, flush=True)


if __name__ == "__main__":
    main()
