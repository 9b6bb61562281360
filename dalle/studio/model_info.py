"""Facts for the page about the loaded model: example captions, and what its card says that it cannot do."""

import re
from pathlib import Path

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.sampling.model_card import CARD
from dalle.sampling.pipeline import DALLE

MAX_LIMITS = 6  # sentences
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


def example_captions(transformer: Path, dalle: DALLE) -> list[str]:
    """Return captions for the data set that a checkpoint records, if the model knows all their words."""

    def can_draw(caption: str) -> bool:
        try:
            dalle.tokenize([caption])
        except ValueError:
            return False
        return not dalle.unknown_words([caption])

    try:
        _, meta = checkpoint.read_config(transformer, "transformer")
    except CheckpointError:
        return []
    return [caption for caption in CAPTIONS_OF.get((meta.get("data") or {}).get("name", ""), ()) if can_draw(caption)]


def card_limits(folder: Path) -> list[str]:
    """Return the list items below a heading with "cannot" or "limits" in a checkpoint's card, without Markdown."""
    try:
        text = (folder / CARD).read_bytes()[:MAX_CARD_BYTES].decode("utf-8", "replace")
    except OSError:
        return []
    sections = re.split(r"^#+ *", text, flags=re.MULTILINE)
    limits_section = next(
        (section for section in sections if re.match(r"[^\n]*(cannot|can't|limits)", section, re.IGNORECASE)), ""
    )
    items = re.findall(r"^[-*] (.*(?:\n  +.*)*)", limits_section, re.MULTILINE)
    plain_items = (re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", " ".join(item.split())) for item in items)
    return [item for item in plain_items if item][:MAX_LIMITS]
