"""Every kind of attention pattern, with each of its options."""

from dalle.models.transformer.patterns import Column, Convolutional, Dense, Row

PATTERNS = [
    Dense(),
    Row(),
    Row(counts_itself=False),
    Column(),
    Convolutional(3),
    Convolutional(5),
    Convolutional(3, wraps=False),
    Convolutional(5, wraps=False),
]
