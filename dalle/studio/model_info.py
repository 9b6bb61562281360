"""Facts for the page about the loaded model: example captions, and what its card says that it cannot do."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dalle import checkpoint
from dalle.bundled import checkpoint_folder
from dalle.checkpoint import CheckpointError
from dalle.sampling.model_card import CARD
from dalle.sampling.pipeline import DALLE

EXAMPLES, LIMITS = 8, 6  # most example captions, and most sentences about limits
MAX_CARD_BYTES = 1_000_000
# captions for models of the data sets that come with the project
CAPTIONS_OF = {
    "drawings": (
        "a red apple, outlined cartoon",
        "an owl, 3D render",
        "a line drawing of an umbrella",
        "a house, pixel art",
        "a slice of pizza, colorful cartoon",
        "a green umbrella, line icon",
        "a yellow star, flat design",
        "a cat, silhouette",
    ),
    "blocks": (
        "a small red circle above a large blue square",
        "three small blue circles",
        "a large yellow cross to the left of a small purple square",
        "two large red squares",
    ),
    "emoji": ("a red apple", "a smiling face", "a yellow star", "a blue car"),
}


@dataclass(frozen=True)
class ModelInfo:
    """Example captions, and sentences about limits."""

    examples: list[str]
    limits: list[str]

    @classmethod
    def read(cls, name: str, components: Mapping[str, Path], dalle: DALLE) -> "ModelInfo":
        """Read both from the checkpoint called `name`; what it does not record stays empty."""
        try:
            _, meta = checkpoint.read_config(components["transformer"], "transformer")
        except CheckpointError:
            meta = {}
        data = meta.get("data") or {}
        captions = CAPTIONS_OF.get(data.get("name", ""), ())
        fitting = [each for each in captions if not dalle.unknown_words([each]) and _fits(dalle, each)]
        return cls(fitting[:EXAMPLES], card_limits(checkpoint_folder(name)))


def card_limits(folder: Path) -> list[str]:
    """Return the list items below a heading with "cannot" or "limits" in a checkpoint's card, without Markdown."""
    try:
        text = (folder / CARD).read_bytes()[:MAX_CARD_BYTES].decode("utf-8", "replace")
    except OSError:
        return []
    sections = re.split(r"^#+ *", text, flags=re.MULTILINE)
    found = next((each for each in sections if re.match(r"[^\n]*(cannot|can't|limits)", each, re.IGNORECASE)), "")
    items = re.findall(r"^[-*] (.*(?:\n  +.*)*)", found, re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", " ".join(item.split())) for item in items)
    return [each for each in plain if each][:LIMITS]


def _fits(dalle: DALLE, caption: str) -> bool:
    try:
        dalle.tokenize([caption])
    except ValueError:
        return False
    return True
