"""Components of a pipeline: find their checkpoints and check that they were trained together."""

from pathlib import Path

from dalle import checkpoint
from dalle.checkpoint import CheckpointError


def find_parts(folder: str | Path, dvae: str | Path | None = None, clip: str | Path | None = None) -> dict[str, Path]:
    """Find the checkpoints of a pipeline: {"transformer": ..., "dvae": ...}, and "clip" if there is one.

    Raises:
        CheckpointError: no transformer or dVAE, or a dVAE that the transformer was not trained on.
    """
    folder = Path(folder)
    transformer = folder / "transformer" if (folder / "transformer").is_dir() else folder
    _, meta = checkpoint.read_config(transformer, "transformer")
    trained_on = meta.get("dvae", {})

    if dvae is not None:
        found = Path(dvae)
    elif (folder / "dvae").is_dir():
        found = folder / "dvae"
    elif "path" in trained_on:
        found = transformer / trained_on["path"]
    else:
        raise CheckpointError(f"{folder} has no dvae/ and names no dVAE; give dvae=<folder>")
    if not found.is_dir():
        raise CheckpointError(
            f"{transformer} was trained on the dVAE {trained_on.get('digest', 'of unknown digest')}, "
            f"which is not at {found}; say where it is with dvae=<folder>"
        )
    checkpoint.read_config(found, "dvae")
    digest = checkpoint.digest(found)
    if digest != trained_on.get("digest", digest):
        raise CheckpointError(
            f"{transformer} was trained on the tokens of dVAE {trained_on['digest']}, "
            f"but {found} is {digest}; give the right one with dvae=<folder>"
        )

    parts = {"transformer": transformer, "dvae": found}
    if clip is not None:
        parts["clip"] = Path(clip)
    elif (folder / "clip").is_dir():
        parts["clip"] = folder / "clip"
    return parts
