"""Evaluation context: trained models, and the held-out data to measure them on."""

from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dalle import checkpoint, distributed
from dalle.checkpoint import CheckpointError
from dalle.data import open_source, read_config
from dalle.data.source import Source
from dalle.evaluation.settings import EvaluateConfig
from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.parts import find_parts
from dalle.sampling.pipeline import DALLE
from dalle.sampling.rerank import Scorer

SPLITS = {"blocks": ("val", "novel")}  # of other data sets: val


@dataclass(frozen=True)
class Subject:
    """Evaluation context: models, data and the digests that identify them."""

    folder: str
    dvae: DiscreteVAE
    dalle: DALLE | None  # None: the checkpoint has a dVAE only
    objective: dict[str, Any] | None  # the dVAE's `likelihood` and last `temperature`, if recorded
    data: Any  # the data set's config
    sources: dict[str, Source]  # held-out splits by name
    digests: dict[str, str]  # of the models, by component

    @classmethod
    def load(cls, config: EvaluateConfig) -> "Subject":
        """Load the models in `config.checkpoint` and the data in `config.data`, by default the training data.

        Raises:
            CheckpointError: a model is missing or damaged.
            ValueError: data that does not fit the models.
        """
        device, folder = distributed.start(config.device, config.deterministic), Path(config.checkpoint)
        if _is_dvae(folder):
            parts, dalle = {"dvae": folder}, None
            dvae = DiscreteVAE.load(folder).to(device)
            _, meta = checkpoint.read_config(folder, "dvae")
        else:
            parts = find_parts(folder, config.dvae, config.clip)
            dalle = DALLE.load(folder, device, config.dvae, config.clip, config.precision)
            dvae = dalle.dvae
            _, meta = checkpoint.read_config(parts["transformer"], "transformer")
        _, of_dvae = checkpoint.read_config(parts["dvae"], "dvae")
        known = {"likelihood", "temperature"} <= of_dvae.keys()
        data = config.data or _trained_on(meta, folder)
        sources = {split: open_source(data, split) for split in SPLITS.get(data.name, ("val",))}
        _check_size(data, dvae, dalle)
        return cls(
            config.checkpoint,
            dvae,
            dalle,
            {name: of_dvae[name] for name in ("likelihood", "temperature")} if known else None,
            data,
            sources,
            {name: checkpoint.digest(path) for name, path in parts.items()},
        )

    def whole(self) -> DALLE:
        """Return the pipeline. Raises `CheckpointError` if the checkpoint has a dVAE only."""
        if self.dalle is None:
            raise CheckpointError(
                f"{self.folder} is a dVAE alone, which draws nothing: measure it with metrics=[reconstruction], or "
                "give the checkpoint of a transformer"
            )
        return self.dalle

    def clip(self, needed_for: str) -> Scorer:
        """Return the CLIP scorer. Raises `CheckpointError` if there is none."""
        clip = self.whole().clip
        if clip is None:
            raise CheckpointError(
                f"{self.folder} has no clip/, which {needed_for} needs; say where one is with clip=<folder>"
            )
        return clip

    def environment(self) -> dict[str, Any]:
        """Package versions, device type and precision, which may change the last digits of numbers."""
        versions = {name: _version(name) for name in ("dalle", "torch", "numpy", "pillow")}
        precision = {} if self.dalle is None else {"precision": str(self.dalle.precision)}
        return {"versions": versions, "device": next(self.dvae.parameters()).device.type, **precision}

    def described(self) -> dict[str, Any]:
        """Digests of the models and settings of the data. Numbers are comparable only if these are equal."""
        return {"models": self.digests, "data": asdict(self.data)}


def _version(package: str) -> str | None:
    """Return a package's version; None if it is on the path but not installed, as this one may be."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _is_dvae(folder: Path) -> bool:
    path = folder / checkpoint.CONFIG
    return path.is_file() and checkpoint.read_json(path).get("kind") == "dvae"


def _trained_on(meta: dict[str, Any], folder: Path) -> Any:
    if "data" not in meta:
        raise CheckpointError(
            f"{folder} does not say which data it was trained on: name some, as in data=folder data.path=..."
        )
    return read_config(meta["data"])


def _check_size(data: Any, dvae: DiscreteVAE, dalle: DALLE | None) -> None:
    size, downsample = data.image_size, dvae.downsample
    if dalle is not None and size != dalle.transformer.sequence.grid * downsample:
        wanted = dalle.transformer.sequence.grid * downsample
        raise ValueError(
            f"the pictures of the data have {size} pixels and the models' {wanted}: use data.image_size={wanted}"
        )
    if size % downsample:
        raise ValueError(
            f"pictures of {size} pixels do not divide into the dVAE's codes, which are {downsample} pixels wide: "
            "change data.image_size"
        )
