"""Evaluation context: trained models, and the held-out data to evaluate them on."""

from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dalle import checkpoint, distributed
from dalle.bundled import checkpoint_folder
from dalle.checkpoint import CheckpointError
from dalle.data import captioned_only, config_from_dict, open_source
from dalle.data.source import Source
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.models.decoder.model import DiffusionDecoder
from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.components import find_components, find_decoder
from dalle.sampling.image_decoder import check_decoder
from dalle.sampling.pipeline import DALLE
from dalle.sampling.rerank import Scorer

SPLITS = {"blocks": ("val", "novel")}  # of other data sets: val


@dataclass(frozen=True)
class EvaluationContext:
    """Everything that metrics are computed from: loaded models, held-out data and the digests of the models."""

    folder: str
    dvae: DiscreteVAE
    pipeline: DALLE | None  # None: the checkpoint has a dVAE only
    objective: dict[str, Any] | None  # the dVAE's `likelihood` and last `temperature`, if recorded
    data: Any  # the data set's config
    sources: dict[str, Source]  # held-out splits by name
    digests: dict[str, str]  # of the models, by component
    decoder: DiffusionDecoder | None = None  # given by decoder=

    @classmethod
    def load(cls, config: EvaluateConfig) -> "EvaluationContext":
        """Load the models in `config.checkpoint` and the data in `config.data`, by default the training data.

        Raises:
            CheckpointError: a model is missing or damaged.
            ValueError: data that does not fit the models.
        """
        device = distributed.init_process_group(config.device, config.deterministic)
        folder = checkpoint_folder(config.checkpoint)
        if _is_dvae(folder):
            component_folders, pipeline = {"dvae": folder}, None
            dvae, decoder = DiscreteVAE.load(folder).to(device), None
            if config.decoder is not None:
                component_folders["decoder"] = find_decoder(config.decoder, folder)
                decoder = DiffusionDecoder.load(component_folders["decoder"]).to(device)
                check_decoder(decoder, dvae)
            _, meta = checkpoint.read_config(folder, "dvae")
        else:
            component_folders = find_components(folder, config.dvae, config.clip, config.decoder)
            pipeline = DALLE.load(folder, device, config.dvae, config.clip, config.precision, config.decoder)
            dvae, decoder = pipeline.dvae, pipeline.decoder
            _, meta = checkpoint.read_config(component_folders["transformer"], "transformer")
        _, dvae_meta = checkpoint.read_config(component_folders["dvae"], "dvae")
        has_objective = {"likelihood", "temperature"} <= dvae_meta.keys()
        data = config.data or _training_data(meta, folder)
        if pipeline is not None:  # metrics of a transformer are of pairs; those of a dVAE need no captions
            data = captioned_only(data)
        sources = {split: open_source(data, split) for split in SPLITS.get(data.name, ("val",))}
        _check_size(data, dvae, pipeline)
        return cls(
            config.checkpoint,
            dvae,
            pipeline,
            {name: dvae_meta[name] for name in ("likelihood", "temperature")} if has_objective else None,
            data,
            sources,
            {name: checkpoint.digest(path) for name, path in component_folders.items()},
            decoder,
        )

    @property
    def device(self) -> torch.device:
        """Device of the models."""
        return next(self.dvae.parameters()).device

    def require_pipeline(self) -> DALLE:
        """Return the sampling pipeline. Raises `CheckpointError` if the checkpoint has a dVAE only."""
        if self.pipeline is None:
            raise CheckpointError(
                f"{self.folder} is a dVAE without a transformer, which cannot sample: evaluate it with "
                "metrics=[reconstruction], or give the checkpoint of a transformer"
            )
        return self.pipeline

    def require_clip(self, needed_for: str) -> Scorer:
        """Return the checkpoint's CLIP as a scorer. Raises `CheckpointError`, which states `needed_for`, if none."""
        clip = self.require_pipeline().clip
        if clip is None:
            raise CheckpointError(f"{self.folder} has no clip/, which {needed_for} needs; give one with clip=<folder>")
        return clip

    def environment(self) -> dict[str, Any]:
        """Return package versions, device type and precision, which may change the last digits of numbers."""
        versions = {name: _package_version(name) for name in ("dalle", "torch", "numpy", "pillow")}
        precision = {} if self.pipeline is None else {"precision": str(self.pipeline.precision)}
        return {"versions": versions, "device": self.device.type, **precision}

    def identity(self) -> dict[str, Any]:
        """Return digests of the models and settings of the data. Numbers are comparable only if these are equal."""
        return {"models": self.digests, "data": asdict(self.data)}


def _package_version(package: str) -> str | None:
    """Return a package's version; None if it is on the path but not installed, as the package `dalle` may be."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _is_dvae(folder: Path) -> bool:
    path = folder / checkpoint.CONFIG
    return path.is_file() and checkpoint.read_json(path).get("kind") == "dvae"


def _training_data(meta: dict[str, Any], folder: Path) -> Any:
    if "data" not in meta:
        raise CheckpointError(
            f"{folder} does not record its training data: give the data, for example data=folder data.path=..."
        )
    return config_from_dict(meta["data"])


def _check_size(data: Any, dvae: DiscreteVAE, pipeline: DALLE | None) -> None:
    size, downsample = data.image_size, dvae.downsample
    if pipeline is not None and size != pipeline.transformer.sequence.grid * downsample:
        model_size = pipeline.transformer.sequence.grid * downsample
        raise ValueError(
            f"the images of the data have {size} pixels and the models' {model_size}: use data.image_size={model_size}"
        )
    if size % downsample:
        raise ValueError(
            f"images of {size} pixels do not divide into the dVAE's codes, which are {downsample} pixels wide: "
            "change data.image_size"
        )
