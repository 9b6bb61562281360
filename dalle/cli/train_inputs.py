"""Inputs of a training run beside its data: the checkpoint of init=, that of the dVAE, and the token cache."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dalle import checkpoint
from dalle.bundled import checkpoint_folder
from dalle.checkpoint import CheckpointError
from dalle.cli.config import chosen_option, compose
from dalle.cli.train_config import TrainConfig
from dalle.models.dvae.config import DVAEConfig
from dalle.sampling.components import find_components
from dalle.stages.initial_weights import Init, check_dvae, check_settings, find_init


def open_init(config: TrainConfig, folder: Path) -> Init | None:
    """Return the checkpoint that the run in `folder` starts from; None for random weights."""
    if config.init is None:
        return None
    return find_init(config.init, config.stage.name, folder, config.resume, config.init_strict)


def check_init(runs: list[tuple[TrainConfig, Path]]) -> None:
    """Raise ValueError if a run cannot start from its `init` checkpoint, before any run starts."""
    for config, folder in runs:
        if (init := open_init(config, folder)) is None or init.resumed:
            continue
        check_settings(init, config.stage, config.data, "stage." if len(runs) == 1 else f"stage.{init.kind}.")
        if config.stage.trained_on_tokens:
            # with stage=all, the run's dVAE is not trained yet; it starts from the one next to the transformer
            dvae = dvae_folder(config, init) if len(runs) == 1 else init.path.with_name("dvae")
            check_dvae(init, Path(dvae or ""))


def with_model_sizes(config: TrainConfig, dvae: DVAEConfig | None) -> Any:
    """Return the stage of a run with the sizes that its model gets in training.

    The captions' vocabulary is the largest that the tokenizer may have. dvae: result of `find_dvae_config`.
    """
    return replace(config.stage, model=config.stage.model_for(config.data.image_size, dvae))


def find_dvae_config(config: TrainConfig, folder: Path, runs: list[tuple[TrainConfig, Path]]) -> DVAEConfig | None:
    """Return the config of the dVAE on whose tokens the run in `folder`, one of `runs`, is trained; None: on none.

    It is the one that another one of `runs` trains, that of the checkpoint that is loaded, or without one the preset's.
    """
    if not config.stage.trained_on_tokens:
        return None
    for other_config, _ in runs:
        if other_config.stage.name == "dvae":
            return other_config.stage.model
    if (path := dvae_folder(config, open_init(config, folder))) is not None:
        return checkpoint.load_config(path, "dvae", DVAEConfig)
    return compose("train", ["stage=dvae", f"preset={chosen_option('preset')}"]).stage.model


def dvae_folder(config: TrainConfig, init: Init | None) -> str | None:
    """Return the dVAE's checkpoint folder: `dvae`, else that of the model that the run starts from, else None."""
    if config.dvae is not None:
        return str(checkpoint_folder(config.dvae))
    if config.init is None or init is None or not config.stage.trained_on_tokens:
        return None
    if init.kind != "transformer":  # it is not a part of a pipeline, which has the dVAE beside it
        return recorded_dvae(init)
    return str(find_components(init.run if init.resumed else config.init)["dvae"])


def recorded_dvae(init: Init) -> str:
    """Return the folder of the dVAE that `init` was trained on. Raises CheckpointError if it records none."""
    path = init.read_config()[1].get("dvae", {}).get("path")
    if path is None:
        raise CheckpointError(f"{init.source} names no dVAE; give dvae=<folder>")
    return str(init.source / path)


def tokens_folder(config: TrainConfig) -> Path:
    """Return the token cache, or the folder of token caches."""
    return Path(config.out, "tokens") if config.tokens is None else Path(config.tokens).expanduser()
