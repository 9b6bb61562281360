"""Train one stage, or all three in turn: python train.py stage=dvae data=folder data.path=... run=my-dvae"""

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch.distributed.device_mesh import DeviceMesh

from dalle import checkpoint, distributed
from dalle.checkpoint import CheckpointError
from dalle.cli.config import command, run_name
from dalle.cli.train_config import TrainConfig
from dalle.cli.train_inputs import (
    check_init,
    dvae_folder,
    find_dvae_config,
    open_init,
    tokens_folder,
    with_model_sizes,
)
from dalle.data import captioned_only, open_splits
from dalle.seeds import seed_global_generators
from dalle.stages import ALL_STAGES, STAGES
from dalle.stages.data_checks import check_enough_records, check_held_out
from dalle.stages.data_module import StageContext
from dalle.stages.frozen_dvae import require_dvae
from dalle.stages.initial_weights import Init, load_init
from dalle.training.cpu import configure_cpu
from dalle.training.job import Job, record_status
from dalle.training.loop import train
from dalle.training.run import Run, defaults_of, read_shared_scalars, rename_existing
from dalle.training.sharding import init_mesh


@command("train")
def main(config: TrainConfig) -> None:
    if config.plan:
        if distributed.is_launched():  # each process would print the plan
            raise ValueError("run plan=true without torchrun: world= is the number of cards that are planned")
        from dalle.cli.train_plan import print_plans  # here, since training does not need it

        print_plans(list_runs(config))
        return
    device = distributed.init_process_group(config.device, config.deterministic, config.timeout_minutes)
    try:
        mesh = init_mesh(config.distributed, config.shard_size, device)
        if config.distributed != "ddp" and distributed.get_world_size() == 1:
            mode = f"distributed={config.distributed}"
            print_once(f"{mode}: weights are not sharded with one process; start several with torchrun")
        with configure_cpu(device):
            train_stages(config, device, mesh)
    finally:
        distributed.destroy_process_group()


def train_stages(config: TrainConfig, device: torch.device, mesh: DeviceMesh | None) -> None:
    """Train one stage, or all stages in turn, with weights sharded over `mesh` if there is one."""
    runs = list_runs(config)
    check_init(runs)
    if len(runs) > 1:
        check_dvae_unchanged(runs)
    if len(runs) > 1 or not config.resume:
        check_stages(runs)
    if not config.resume:
        start_over(runs)
    for stage_config, folder in runs:
        with record_status(Job.from_config(config), folder) if config.ablation else nullcontext():
            train_stage(stage_config, folder, device, mesh)
    if len(runs) > 1:
        parent = runs[0][1].parent
        print_once(f'{parent}: all stages are finished; next: python sample.py checkpoint={parent} caption="..."')


def list_runs(config: TrainConfig) -> list[tuple[TrainConfig, Path]]:
    """List the runs that the options ask for, in the order of training: (options of one stage, run folder) each."""
    config = replace(config, out=str(Path(config.out).expanduser()))
    if config.ablation is not None:
        return [(config, Job.from_config(config).folder(config.out))]
    if not isinstance(config.stage, dict):
        if config.dvae is not None and not config.stage.trained_on_tokens:
            raise ValueError(f"stage={config.stage.name} needs no dVAE: leave dvae={config.dvae} out")
        return [(config, run_folder(Path(config.out, config.stage.name), config.run))]
    if config.dvae is not None:
        raise ValueError("stage=all trains a dVAE of its own: leave dvae out, or train one stage at a time")
    folder = run_folder(Path(config.out), config.run)
    dvaes = {stage: str(folder / "dvae") for stage in ALL_STAGES if config.stage[stage].trained_on_tokens}
    inits = {stage: config.init and str(Path(config.init, stage)) for stage in ALL_STAGES}
    return [
        (replace(config, stage=config.stage[stage], dvae=dvaes.get(stage), init=inits[stage]), folder / stage)
        for stage in ALL_STAGES
    ]


def run_folder(parent: Path, name: str) -> Path:
    """Return the folder of the run `name` below `parent`. Raises ValueError if it would be `parent` or outside it.

    Runs of other names are in `parent`, and resume=false would rename them all.
    """
    path = Path(name)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise ValueError(f"run={name} does not name a folder in {parent}: give the run a name, as in run=mine")
    return parent / run_name(name)


def check_dvae_unchanged(runs: list[tuple[TrainConfig, Path]]) -> None:
    """Raise ValueError if training the dVAE further would invalidate a transformer already trained on its tokens."""
    (dvae, folder), *_, (_, transformer) = runs
    if not dvae.resume or read_shared_scalars(transformer) is None:
        return
    run = Run(folder, run_config(dvae, open_init(dvae, folder)), defaults=default_config(dvae))
    if (trained_steps := run.resume_point.step) < dvae.stage.steps:
        raise ValueError(
            f"{transformer} was trained on the tokens of {folder} after {trained_steps} updates. Training that dVAE to "
            f"{dvae.stage.steps} updates would invalidate it: choose another name with run=<name>, or move "
            f"{transformer} away first"
        )


def check_stages(runs: list[tuple[TrainConfig, Path]]) -> None:
    """Raise ValueError for settings with which a stage cannot be trained, before any is trained or renamed.

    Checks batch sizes, model sizes, and that the data set has the splits, records and captions that the stages need.
    """
    splits = {"train": None, "val": None}  # a dict, for its order
    for config, folder in runs:
        stage = with_model_sizes(config, find_dvae_config(config, folder, runs))
        stage.micro_batch_size(distributed.get_world_size())
        with torch.device("meta"):
            stage.model_class(stage.model)
        splits |= dict.fromkeys(getattr(stage, "also_validate", ()))
    data = runs[0][0].data
    if any(config.stage.name == "clip" for config, _ in runs):
        data = captioned_only(data)
    for split, source in open_splits(data, splits).items():
        if split == "train":
            check_enough_records(source, distributed.get_world_size())
        else:
            check_held_out(data, split, source)


def start_over(runs: list[tuple[TrainConfig, Path]]) -> None:
    """Rename the folders of earlier runs. Checks their inputs first, so that nothing is renamed if they are missing."""
    for config, folder in runs:
        init, dvae = open_init(config, folder), None
        if len(runs) == 1 and config.stage.trained_on_tokens:  # the dVAE of stage=all is trained later
            dvae = dvae_folder(config, init)
            checkpoint.read_config(require_dvae(dvae, config.stage.name), "dvae")
        for name, path in (("init", init and init.path), ("dvae", dvae)):
            if path is not None and folder.resolve() in Path(path).resolve().parents:
                raise CheckpointError(
                    f"{name}={path} is in the folder of this run, which resume=false renames: choose another name "
                    "(run=...)"
                )
    for _, folder in runs:
        if (renamed := rename_existing(folder)) is not None:
            print_once(f"{folder}: starting over; the previous run is now in {renamed}")


def train_stage(config: TrainConfig, folder: Path, device: torch.device, mesh: DeviceMesh | None) -> None:
    """Train the run in `folder` from its last checkpoint, if any, to its last step."""
    init = open_init(config, folder)
    config = replace(config, dvae=dvae_folder(config, init))
    settings = run_config(config, init)
    if config.dvae is not None:
        checkpoint.read_config(config.dvae, "dvae")  # raises before anything is written
        settings["dvae"] = checkpoint.digest(config.dvae)
    run = Run(
        folder,
        settings,
        seed=config.seed,
        device=device,
        wandb=config.wandb,
        defaults=default_config(config),
        mesh=mesh,
        accumulation_is_exact=config.stage.accumulation_is_exact,
    )
    trained_steps, steps = run.resume_point.step, config.stage.steps
    if trained_steps >= steps:
        print_once(f"{folder}: finished, {trained_steps} updates done")
        return

    if (warning := config.stage.schedule_warning()) is not None:
        print_once(f"{folder}: {warning}")
    seed_global_generators("initial weights", config.seed, device=device)
    dvae = None if config.dvae is None else Path(config.dvae)
    context = StageContext(
        seed=config.seed if init is None else init.data_seed(config.seed),
        device=device,
        dvae=dvae,
        tokens=tokens_folder(config),
        init=init,
        resume_folder=folder if trained_steps else None,
    )
    stage = STAGES.for_config(config.stage).build(config.stage, config.data, context)
    if init is not None and not init.resumed:
        print_once(f"{folder}: {load_init(stage.model, init, config.stage, dvae)}")
    if trained_steps:
        if run.resume_point.changes:
            print_once(f"{folder}: resumes with {', '.join(run.resume_point.changes)}")
        if distributed.is_main_process():
            stage.data.warn_if_changed(folder)
        distributed.barrier()  # reading all records may take longer than NCCL lets other ranks wait
    parameters = sum(parameter.numel() for parameter in stage.model.parameters())
    image_size = stage.data.image_size
    print_once(
        f"{folder}: {parameters:,} parameters on {device}, images of {image_size} pixels, "
        f"steps {trained_steps} to {steps}"
    )
    if distributed.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(asdict(config)), folder / "config.yaml")
    train(stage, config.stage, run)


def run_config(config: TrainConfig, init: Init | None) -> dict[str, Any]:
    """Return the settings that must not change when a run resumes: stage, data, seed and the digest of `init`."""
    settings = {"stage": asdict(config.stage), "data": asdict(config.data), "seed": config.seed}
    return settings if init is None else {**settings, "init": init.digest}


def default_config(config: TrainConfig) -> dict[str, Any]:
    """Return the default values of the stage and data settings in `run_config`."""
    return {"stage": defaults_of(type(config.stage)), "data": defaults_of(type(config.data))}


def print_once(text: str) -> None:
    """Print `text` on the first rank only."""
    if distributed.is_main_process():
        print(text, flush=True)
