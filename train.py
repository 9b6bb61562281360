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
from dalle.stages.pictures import StageContext
from dalle.training.cpu import set_up
from dalle.training.job import Job, recorded
from dalle.training.loop import train
from dalle.training.run import Run, defaults_of, set_aside, steps_done


@command("train")
def main(config: TrainConfig) -> None:
    device = distributed.start(config.device, config.deterministic)
    try:
        with set_up(device):
            train_stages(config, device)
    finally:
        distributed.stop()


def train_stages(config: TrainConfig, device: torch.device) -> None:
    """Train one stage, or all stages in turn."""
    runs = planned(config)
    if len(runs) > 1:
        check_chain(runs)
    for one_stage, folder in runs:
        if not config.resume:
            start_over(one_stage, folder)
        with recorded(Job.of(config), folder) if config.ablation else nullcontext():
            train_stage(one_stage, folder, device)
    if len(runs) > 1:
        whole = runs[0][1].parent
        say(f'{whole}: all stages are finished; next: python sample.py checkpoint={whole} caption="..."')


def planned(config: TrainConfig) -> list[tuple[TrainConfig, Path]]:
    """Return the stages to train, in order, each with its run folder."""
    if config.ablation is not None:
        return [(config, Job.of(config).folder(config.out))]
    name = run_name(config.run)
    if not isinstance(config.stage, dict):
        return [(config, Path(config.out, config.stage.name, name))]
    if config.dvae is not None:
        raise ValueError("stage=all trains a dVAE of its own: leave dvae out, or train one stage at a time")
    folder = Path(config.out, name)
    dvaes = {"transformer": str(folder / "dvae")}
    return [(replace(config, stage=config.stage[stage], dvae=dvaes.get(stage)), folder / stage) for stage in STAGES]


def check_chain(runs: list[tuple[TrainConfig, Path]]) -> None:
    """Raise ValueError if training the dVAE further would invalidate a transformer already trained on its tokens."""
    (dvae, place), *_, (_, transformer) = runs
    if not dvae.resume or checkpoint.read_scalars(transformer) is None:
        return
    if (done := steps_done(place, identity_of(dvae), usual(dvae))) < dvae.stage.steps:
        raise ValueError(
            f"{transformer} has learned the tokens of {place} as it is after {done} updates, and would fit none after "
            f"{dvae.stage.steps}: choose another name (run=...), or move {transformer} away first"
        )


def identity_of(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that identify a run: stage, data and seed."""
    return {"stage": asdict(config.stage), "data": asdict(config.data), "seed": config.seed}


def usual(config: TrainConfig) -> dict[str, Any]:
    """Return the defaults of the settings that identify a run."""
    return {"stage": defaults_of(type(config.stage)), "data": defaults_of(type(config.data))}


def start_over(config: TrainConfig, folder: Path) -> None:
    """Move an existing run in `folder` aside. Reads the dVAE first: a run that cannot start moves nothing."""
    if config.dvae is not None:
        checkpoint.read_config(config.dvae, "dvae")
    if (aside := set_aside(folder)) is not None:
        say(f"{folder}: starting over; what stood there is now {aside}")


def train_stage(config: TrainConfig, folder: Path, device: torch.device) -> None:
    """Train the run in `folder` from its last checkpoint, if any, to its last step."""
    identity = identity_of(config)
    if config.dvae is not None:
        checkpoint.read_config(config.dvae, "dvae")  # raises before anything is written
        identity["dvae"] = checkpoint.digest(config.dvae)
    done, steps = steps_done(folder, identity, usual(config)), config.stage.steps
    if done >= steps:
        say(f"{folder}: finished, {done} updates done")
        return

    seed_global_generators("initial weights", config.seed, device=device)
    dvae = None if config.dvae is None else Path(config.dvae)
    tokens = Path(config.out, "tokens") if config.tokens is None else Path(config.tokens)
    context = StageContext(config.seed, device, dvae, tokens)
    stage = STAGES.of(config.stage).build(config.stage, config.data, context)
    count = sum(parameter.numel() for parameter in stage.model.parameters())
    pixels = stage.pictures.image_size
    say(f"{folder}: {count:,} parameters on {device}, pictures of {pixels} pixels, from step {done} to {steps}")
    if distributed.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(asdict(config)), folder / "config.yaml")
    train(stage, config.stage, Run(folder, identity, config.seed, device, config.wandb, usual(config)))


def say(text: str) -> None:
    if distributed.is_first():
        print(text, flush=True)


if __name__ == "__main__":
    main()
