"""Components of a pipeline: find and load their checkpoints, and check that they were trained together."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from dalle import checkpoint
from dalle.bundled import checkpoint_folder
from dalle.checkpoint import CheckpointError
from dalle.models.clip.model import CLIP
from dalle.models.decoder.model import DiffusionDecoder
from dalle.models.dvae.model import DiscreteVAE
from dalle.models.mixed_precision import to_mixed_precision
from dalle.models.transformer.model import Transformer
from dalle.precision import use_exact_float32
from dalle.sampling.image_decoder import check_decoder
from dalle.sampling.inference_dtype import inference_dtype
from dalle.sampling.sampling_defaults import SamplingDefaults
from dalle.tokenizer import CaptionTokenizer


def find_components(
    folder: str | Path,
    dvae: str | Path | None = None,
    clip: str | Path | None = None,
    decoder: str | Path | None = None,
) -> dict[str, Path]:
    """Find the checkpoints of a pipeline: {"transformer": ..., "dvae": ...}, and "clip" if there is one.

    `folder` may be the name of a checkpoint that comes with the package (`dalle.bundled`). "decoder" is in the result
    only if `decoder` names the folder of a diffusion decoder.

    Raises:
        CheckpointError: no transformer or dVAE, or one that the transformer or the decoder was not trained on.
    """
    folder = checkpoint_folder(folder)
    transformer = folder / "transformer" if (folder / "transformer").is_dir() else folder
    _, meta = checkpoint.read_config(transformer, "transformer")
    trained_on = meta.get("dvae", {})

    if dvae is not None:
        dvae_folder = checkpoint_folder(dvae)
    elif (folder / "dvae").is_dir():
        dvae_folder = folder / "dvae"
    elif "path" in trained_on:
        dvae_folder = transformer / trained_on["path"]
    else:
        raise CheckpointError(f"{folder} has no dvae/ and names no dVAE; give dvae=<folder>")
    if not dvae_folder.is_dir():
        raise CheckpointError(
            f"{transformer} was trained on the dVAE {trained_on.get('digest', 'of unknown digest')}, "
            f"which is not at {dvae_folder}; give its folder with dvae=<folder>"
        )
    checkpoint.read_config(dvae_folder, "dvae")
    digest = checkpoint.digest(dvae_folder)
    if digest != trained_on.get("digest", digest):
        raise CheckpointError(
            f"{transformer} was trained on the tokens of dVAE {trained_on['digest']}, "
            f"but {dvae_folder} is {digest}; give the right one with dvae=<folder>"
        )

    components = {"transformer": transformer, "dvae": dvae_folder}
    if clip is not None:
        components["clip"] = checkpoint_folder(clip)
    elif (folder / "clip").is_dir():
        components["clip"] = folder / "clip"
    if decoder is not None:
        components["decoder"] = find_decoder(decoder, dvae_folder)
    return components


def find_decoder(decoder: str | Path, dvae: Path) -> Path:
    """Return the folder of a diffusion decoder, after checking that it decodes the tokens of `dvae`.

    Raises:
        CheckpointError: no decoder there, or one that was trained on the tokens of another dVAE.
    """
    folder = checkpoint_folder(decoder)
    _, meta = checkpoint.read_config(folder, "decoder")
    digest = checkpoint.digest(dvae)
    trained_on = meta.get("dvae", {}).get("digest", digest)
    if trained_on != digest:
        raise CheckpointError(
            f"the decoder {folder} was trained on the tokens of dVAE {trained_on}, but {dvae} is {digest}: "
            "train one for it with train.py stage=decoder dvae=<folder>, or leave decoder out"
        )
    return folder


class LoadedComponents(NamedTuple):
    """Components of a pipeline in memory: the arguments of `DALLE`, in their order."""

    dvae: DiscreteVAE
    transformer: Transformer
    tokenizer: CaptionTokenizer
    clip: CLIP | None
    decoder: DiffusionDecoder | None
    defaults: SamplingDefaults
    words: Sequence[str]
    precision: torch.dtype


def load_components(folders: dict[str, Path], device: torch.device, precision: str) -> LoadedComponents:
    """Load the components in `folders`, from `find_components`, for sampling on `device` in `precision`.

    Raises:
        CheckpointError: a component is unreadable.
        ValueError: an unknown precision.
    """
    dtype = inference_dtype(precision, device)
    try:
        tokenizer = CaptionTokenizer.load(folders["transformer"] / checkpoint.TOKENIZER)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    clip = CLIP.load(folders["clip"]).to(device) if "clip" in folders else None
    _, meta = checkpoint.read_config(folders["transformer"], "transformer")
    transformer = Transformer.load(folders["transformer"])
    if device.type != "cpu":  # a CPU keeps float32 weights: only packed layers are faster in bfloat16
        use_exact_float32()
        transformer = to_mixed_precision(transformer, dtype)
    return LoadedComponents(
        dvae=DiscreteVAE.load(folders["dvae"]).to(device),
        transformer=transformer.to(device),
        tokenizer=tokenizer,
        clip=clip,
        decoder=DiffusionDecoder.load(folders["decoder"]).to(device) if "decoder" in folders else None,
        defaults=SamplingDefaults.from_meta(meta),
        words=meta.get("caption_words", ()),
        precision=dtype,
    )


def check_components(
    dvae: DiscreteVAE, transformer: Transformer, tokenizer: CaptionTokenizer, decoder: DiffusionDecoder | None
) -> None:
    """Raise `ValueError` for components that do not fit each other."""
    sequence = transformer.sequence
    if dvae.vocabulary != sequence.image_vocabulary:
        raise ValueError(
            f"the dVAE has {dvae.vocabulary} codes and the transformer has {sequence.image_vocabulary} image tokens; "
            "use components that were trained together"
        )
    if tokenizer.vocabulary > sequence.text_vocabulary:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocabulary} entries and the transformer has {sequence.text_vocabulary} text "
            "tokens; use components that were trained together"
        )
    if decoder is not None:
        check_decoder(decoder, dvae, sequence.grid)
