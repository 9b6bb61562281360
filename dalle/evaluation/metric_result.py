"""Result of one metric: numbers, the settings that they depend on, and images."""

from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class MetricResult:
    """Result of one metric: its numbers by name, what they mean and depend on, and images for the page."""

    description: str  # definition of the numbers, their units, and which direction is better, in a few sentences
    numbers: dict[str, float]  # by their names in metrics.json
    settings: dict[str, Any]  # everything the numbers depend on, as JSON values
    images: dict[str, Image.Image] = field(default_factory=dict)  # by file name, without .png
    table: str = ""  # Markdown table, if the numbers read better as one
    notes: list[str] = field(default_factory=list)  # numbers that could not be computed, and the reason
