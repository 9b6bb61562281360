"""Components of a pipeline: find their checkpoints and check that they were trained together."""

from pathlib import Path

from dalle import checkpoint
from dalle.bundled import checkpoint_folder
from dalle.checkpoint import CheckpointError


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
