"""Inputs of a training run beside its data: the checkpoint of init=, that of the dVAE, and the token cache."""

from pathlib import Path

from dalle.bundled import checkpoint_folder
from dalle.checkpoint import CheckpointError
from dalle.cli.train_config import TrainConfig
from dalle.sampling.components import find_components
from dalle.stages.initial_weights import TRAINED_ON_TOKENS, Init, check_dvae, check_settings, find_init


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
        if init.kind in TRAINED_ON_TOKENS:
            # with stage=all, the run's dVAE is not trained yet; it starts from the one next to the transformer
            dvae = dvae_folder(config, init) if len(runs) == 1 else init.path.with_name("dvae")
            check_dvae(init, Path(dvae or ""))


def dvae_folder(config: TrainConfig, init: Init | None) -> str | None:
    """Return the dVAE's checkpoint folder: `dvae`, else that of the model that the run starts from, else None."""
    if config.dvae is not None:
        return str(checkpoint_folder(config.dvae))
    if config.init is None or init is None or init.kind not in TRAINED_ON_TOKENS:
        return None
    if init.kind == "decoder":
        return recorded_dvae(init)
    return str(find_components(init.run if init.resumed else config.init)["dvae"])


def recorded_dvae(init: Init) -> str:
    """Return the folder of the dVAE that a decoder was trained on. Raises CheckpointError if it records none."""
    path = init.read_config()[1].get("dvae", {}).get("path")
    if path is None:
        raise CheckpointError(f"{init.source} names no dVAE; give dvae=<folder>")
    return str(init.source / path)


def tokens_folder(config: TrainConfig) -> Path:
    """Return the token cache, or the folder of token caches."""
    return Path(config.out, "tokens") if config.tokens is None else Path(config.tokens).expanduser()
