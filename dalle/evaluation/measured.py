"""Interface between metrics and the record: numbers, the settings that they depend on, and figures."""

from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Measured:
    """Result of one metric."""

    about: str  # definition of the numbers, their units, and which direction is better, in a few sentences
    numbers: dict[str, float]  # by their names in metrics.json
    settings: dict[str, Any]  # everything the numbers depend on, as JSON values
    pictures: dict[str, Image.Image] = field(default_factory=dict)  # images by file name, without .png
    table: str = ""  # Markdown table, if the numbers read better as one
    notes: list[str] = field(default_factory=list)  # what could not be measured, and the reason
