"""Initial weights of a run from another checkpoint (init=), for fine-tuning.

Only weights and tokenizer are taken: optimizer, schedules and step start afresh. Model sizes are those of the run's
settings. A checkpoint that differs is refused, or with init_strict=false loaded as far as it fits.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from dalle import checkpoint, weights_files
from dalle.bundled import checkpoint_folder
from dalle.checkpoint import CheckpointError
from dalle.models.clip.config import UNUSED_SETTINGS
from dalle.seeds import derive_seed
from dalle.training import state_files

log = logging.getLogger(__name__)

# model settings that follow from data, tokenizer and dVAE; those are compared instead
DERIVED = {"image_size", "grid", "image_vocabulary", "text_vocabulary", "tokenizer", "start_id", "end_id"}
DERIVED |= {"code_channels", "code_side"}
# model settings that do not change what given weights compute
NOT_COMPARED = {"attention", "dropout", "initial_scale", "initial_temperature"}
# tensors with a row for each code of the dVAE or for each token of the tokenizer, by the prefix of their names
CODE_TENSORS = ("embed.image_token.", "image_head.")
TEXT_TENSORS = ("embed.text_token.", "text_head.", "text.embedding.")
MAX_NAMES = 6  # tensors named in a message; the others are counted
REMEDY = "or set init_strict=false, which loads what fits and initialises the rest anew"


@dataclass(frozen=True)
class Init:
    """Checkpoint that a run starts from (init=): its folder and kind, and the run."""

    path: Path  # its folder
    kind: str  # dvae, clip, transformer or decoder
    run: Path  # folder of the run that starts from it
    recorded_digest: str | None = None  # digest that the run recorded; None: computed from the files in `path`
    resumed: bool = False  # the run has a saved state, which is used instead of the weights
    strict: bool = True  # refuse a checkpoint that does not fit; False: load the tensors that fit

    @cached_property
    def digest(self) -> str:
        """Digest of the checkpoint's weights and model config, see `checkpoint.digest`."""
        return self.recorded_digest or checkpoint.digest(self.path)

    @property
    def source(self) -> Path:
        """Checkpoint to read tokenizer and meta from: the run's own if it is resumed, else `path`."""
        return self.run if self.resumed else self.path

    @property
    def tokenizer(self) -> Path:
        return self.source / checkpoint.TOKENIZER

    def read_config(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read (model config, meta) of the checkpoint `source`, as dicts."""
        return checkpoint.read_config(self.source, self.kind)

    def data_seed(self, seed: int) -> int:
        """Return the seed of data order and augmentation for a run with `seed` that starts from this checkpoint.

        It depends on the checkpoint's weights. With the same seed as before, a run that continues another one would see
        the very images again, cropped and placed as they were, and memorize them (docs/lab.md).
        """
        return derive_seed("data of a run that starts from init", seed, int(self.digest, 16))

    def meta(self, folder: Path) -> dict[str, str]:
        """Return the entry `init` of the meta of a checkpoint: `path` relative to its `folder`, and `digest`."""
        return {"path": os.path.relpath(self.path.resolve(), folder.resolve()), "digest": self.digest}


def find_init(path: str | Path, kind: str, run: Path, resume: bool = True, strict: bool = True) -> Init:
    """Find the checkpoint of `kind` in `path`, or in its sub-folder named after the kind.

    `path` may be the name of a checkpoint that comes with the package (`dalle.bundled`).

    A run in the folder `run` that has a saved state, and began with this very path, does not need the checkpoint any
    more: its digest is then the one recorded by the run.

    Raises CheckpointError if there is no such checkpoint, if it is of another kind, or if it is the run's own folder.
    """
    path = checkpoint_folder(path)
    resumed = resume and state_files.read_scalars(run) is not None
    if resumed:
        recorded = checkpoint.read_config(run, kind)[1].get("init", {})
        for candidate in (path, path / kind):
            if "path" in recorded and candidate.resolve() == (run / recorded["path"]).resolve():
                return Init(candidate, kind, run, recorded["digest"], resumed, strict)
    path = path / kind if (path / kind).is_dir() else path
    if path.resolve() == run.resolve():
        raise CheckpointError(f"init={path} is the folder of this run itself: choose another name (run=...)")
    checkpoint.read_config(path, kind)
    return Init(path, kind, run, None, resumed, strict)


def check_settings(init: Init, stage: Any, data: Any, prefix: str = "stage.") -> None:
    """Raise CheckpointError if the run's model settings, image size or tokenizer differ from those of `init`.

    Does nothing if `init` is not strict. `prefix` of the stage's settings is for the message.
    """
    if not init.strict:
        return
    config, meta = checkpoint.read_config(init.path, init.kind)
    checkpoint_settings = {
        setting.name: config.get(setting.name, getattr(type(stage.model)(), setting.name))
        for setting in fields(stage.model)
    }
    ignored = DERIVED | NOT_COMPARED | UNUSED_SETTINGS.get(checkpoint_settings.get("image_encoder", ""), set())
    pairs = {
        f"{prefix}model.{name}": (_plain(value), _plain(getattr(stage.model, name)))
        for name, value in checkpoint_settings.items()
        if name not in ignored
    }
    if init.kind != "dvae":  # a dVAE is convolutional: it has no image size
        stage_size = getattr(stage, "image_size", None)  # CLIP's images may be smaller than those of the data
        name, size = ("data.image_size", data.image_size) if stage_size is None else (f"{prefix}image_size", stage_size)
        pairs[name] = config.get("image_size", meta.get("data", {}).get("image_size", size)), size
    mismatched = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if mismatched:
        descriptions = ", ".join(
            f"{name} is {_typed(checkpoint_value)} there and {_typed(run_value)} here"
            for name, (checkpoint_value, run_value) in mismatched.items()
        )
        overrides = " ".join(f"{name}={_typed(checkpoint_value)}" for name, (checkpoint_value, _) in mismatched.items())
        raise CheckpointError(f"init={init.path} is another model: {descriptions}. Add {overrides}, {REMEDY}")
    if _other_tokenizer(init, stage):
        raise CheckpointError(
            f"init={init.path} was trained with another tokenizer than {stage.tokenizer}: leave {prefix}tokenizer out "
            f"to keep its own, {REMEDY}"
        )


def check_dvae(init: Init, dvae: Path) -> bool:
    """Return True if the codes of `dvae` are those that the model `init` was trained on.

    The codes of a dVAE that was fine-tuned from that one count as the same, with a warning. Raises CheckpointError for
    those of any other dVAE, unless `init` is not strict.
    """
    trained_on = checkpoint.read_config(init.path, init.kind)[1].get("dvae", {}).get("digest")
    _, meta = checkpoint.read_config(dvae, "dvae")
    digest = checkpoint.digest(dvae)
    if trained_on in (None, digest):
        return True
    if meta.get("init", {}).get("digest") == trained_on:
        log.warning("%s was fine-tuned since %s was trained on its codes, which may have moved", dvae, init.path)
        return True
    if init.strict:
        raise CheckpointError(
            f"init={init.path} was trained on the tokens of dVAE {trained_on}, but {dvae} is {digest}: leave dvae out "
            f"to keep its own, {REMEDY}"
        )
    return False


def load_init(model: nn.Module, init: Init, stage: Any, dvae: Path | None) -> str:
    """Load the weights of `init` into `model`. Returns a sentence about what was loaded.

    stage: config of the stage.
    dvae: checkpoint of the dVAE whose codes the model is trained on; None for models without codes.

    Raises CheckpointError if a tensor is missing, unknown or of another shape. If `init` is not strict, such tensors
    keep their random values, as do those for the codes of another dVAE or the tokens of another tokenizer, and
    CheckpointError is raised only if nothing fits.
    """
    path = weights_files.weights_path(init.path)
    checkpoint_tensors, model_tensors = weights_files.read_weights(init.path), model.state_dict()
    problems = [f"{name} is missing" for name in model_tensors if name not in checkpoint_tensors]
    problems += [
        f"{name} is {tuple(checkpoint_tensors[name].shape)} there and {tuple(tensor.shape)} here"
        for name, tensor in model_tensors.items()
        if name in checkpoint_tensors and checkpoint_tensors[name].shape != tensor.shape
    ]
    problems += [f"{name} is unknown here" for name in checkpoint_tensors if name not in model_tensors]
    if problems and init.strict:
        raise CheckpointError(f"{path} does not fit the model: {_first(problems)}. Change the settings, {REMEDY}")
    other_codes = stage.trained_on_tokens and dvae is not None and not check_dvae(init, dvae)
    skipped_prefixes = (CODE_TENSORS if other_codes else ()) + (TEXT_TENSORS if _other_tokenizer(init, stage) else ())
    fitting_tensors = {
        name: checkpoint_tensors[name]
        for name, tensor in model_tensors.items()
        if name in checkpoint_tensors
        and checkpoint_tensors[name].shape == tensor.shape
        and not name.startswith(skipped_prefixes)
    }
    if not fitting_tensors:
        raise CheckpointError(f"{path} has no tensor that fits the model: {_first(problems)}")
    model.load_state_dict(fitting_tensors, strict=False)
    not_loaded = [name for name in model_tensors if name not in fitting_tensors]
    initialised = f"; initialised anew: {_first(not_loaded)}" if not_loaded else ""
    return f"starts from the weights of {init.path}, digest {init.digest}{initialised}"


def _other_tokenizer(init: Init, stage: Any) -> bool:
    tokenizer = getattr(stage, "tokenizer", None)
    if tokenizer is None:
        return False
    return checkpoint.read_json(Path(tokenizer).expanduser()) != checkpoint.read_json(init.tokenizer)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")


def _plain(value: Any) -> Any:
    """Convert a setting's value to the types of JSON, in which tuples are lists."""
    return json.loads(json.dumps(value))


def _typed(value: Any) -> str:
    """Format a setting's value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":")).replace('"', "")
