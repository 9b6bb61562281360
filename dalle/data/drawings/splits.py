"""Splits of the drawings: by concept, and by combinations of a concept with a style or a colour.

    train     everything else
    val       concepts that training never shows, in any style
    novel     a concept in a style in which training never shows it; training shows both, with others
    colours   a concept in a colour in which training never shows it

Each concept and combination is assigned by a hash of its name, so it stays where it is when drawings are added. The
concepts that the documentation draws are always trained on. A held-out drawing with exactly the pixels of a training
one, under another name or in another set, is in no split.
"""

from dalle.data.emoji import hash_fraction

SPLITS = ("train", "val", "novel", "colours")
NOVEL_STYLES = 0.03  # share of the combinations of a training concept and a style that are held out
NOVEL_COLOURS = 0.06  # share of the combinations of a training concept and a colour that are held out
ALWAYS_TRAINED = frozenset({"red apple", "rocket", "pizza"})
MIN_STYLES = 5  # a concept drawn in fewer styles is shown in all of them


def held_out_concept(concept: str, share: float) -> bool:
    """Return True if all drawings of the concept are in the split val."""
    return concept not in ALWAYS_TRAINED and hash_fraction(f"concept {concept}") < share


def held_out_style(concept: str, style: str, styles: int) -> bool:
    """Return True if the concept, drawn in `styles` styles, is not shown in this style in training."""
    return styles >= MIN_STYLES and hash_fraction(f"style {style} of {concept}") < NOVEL_STYLES


def held_out_colour(concept: str, colour: str) -> bool:
    """Return True if the concept is not shown in this colour in training."""
    return hash_fraction(f"colour {colour} of {concept}") < NOVEL_COLOURS
