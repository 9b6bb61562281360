"""Captions as the transformer's text input, and the words of captions that training never showed."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from dalle.models.transformer.sequence import SequenceLayout
from dalle.tokenizer import CaptionTokenizer, check_captions, words_of


def encode_captions(
    captions: Sequence[str], tokenizer: CaptionTokenizer, sequence: SequenceLayout, truncate: bool = False
) -> Tensor:
    """Encode captions as the transformer's text input: (captions, T) int64.

    Raises:
        TypeError: one text in place of a list of them, or a caption that is not a text.
        ValueError: a caption that is empty, or too long unless `truncate`.
    """
    check_captions(captions)
    ids = []
    for caption in captions:
        try:
            ids.append(sequence.pad_captions([tokenizer.encode(caption)], truncate))
        except ValueError as error:
            shown = caption if len(caption) <= 80 else f"{caption[:80]}..."
            raise ValueError(f"{shown!r}: {error}") from error
    return torch.cat(ids)


def unknown_words(captions: Sequence[str], known: Collection[str]) -> list[str]:
    """Return the words of `captions` that are not `known`, sorted; empty if no words are known."""
    words = set().union(*map(words_of, captions)) if known else set()
    return sorted(words.difference(known))
