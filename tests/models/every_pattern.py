"""Every attention pattern of the registry, with each of its options. tests/models/test_patterns.py checks that."""

from itertools import product
from typing import Any

from dalle.models.transformer.patterns import PATTERNS as REGISTRY
from dalle.models.transformer.patterns import Column, Convolutional, Dense, Pattern, PatternOptions, Row

# by name in the registry: each field of a pattern has two values or more
VARIANTS: dict[str, list[Pattern]] = {
    "dense": [Dense()],
    "row": [Row(), Row(counts_itself=False)],
    "column": [Column()],
    "convolutional": [
        Convolutional(3),
        Convolutional(5),
        Convolutional(7),
        Convolutional(3, wraps=False),
        Convolutional(5, wraps=False),
    ],
}
PATTERNS = [pattern for variants in VARIANTS.values() for pattern in variants]
# changes of `PatternOptions`, which `TransformerConfig` has too; `kernel` is 3 in `make_transformer`
OPTIONS: list[dict[str, Any]] = [{"row_counts_itself": False}, {"convolution_wraps": False}]


def changes_pattern(name: str, options: dict[str, Any]) -> bool:
    return REGISTRY[name].build(PatternOptions(**options)) != REGISTRY[name].build(PatternOptions())


# changes of `TransformerConfig`: each pattern, and each with the options that change it
MODELS = [
    {"patterns": [name], **options}
    for name, options in product(REGISTRY, [{}, *OPTIONS])
    if not options or changes_pattern(name, options)
]
