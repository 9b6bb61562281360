"""What each part of an evaluation hands over: numbers, all that moves them, and what a person looks at."""

from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Measured:
    """The findings of one part."""

    about: str  # what the numbers are, their units and which way is better, in a few sentences
    numbers: dict[str, float]  # by their names in metrics.json
    settings: dict[str, Any]  # everything that moves the numbers, as JSON can hold it
    pictures: dict[str, Image.Image] = field(default_factory=dict)  # by file name, without .png
    table: str = ""  # Markdown, where numbers read better side by side
    notes: list[str] = field(default_factory=list)  # what could not be measured, and why
