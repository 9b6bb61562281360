"""Caption tokenizer: a lower-cased, byte-level BPE trained on the captions."""

import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import groupby, pairwise
from operator import itemgetter
from os import PathLike
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

log = logging.getLogger(__name__)


class CaptionTokenizer:
    """Byte-pair encoding with ids 0 to vocabulary - 1, without special tokens (paper, Section 2.2).

    Captions are lower-cased, and runs of white space become one space. Words are split into bytes, which are then
    merged, so there are no unknown tokens. The model handles padding.
    """

    def __init__(self, tokenizer: Tokenizer):
        """Wrap a tokenizer made by `train` or `load`. Raises ValueError for one of another kind."""
        parts = json.loads(tokenizer.to_str())
        ids = tokenizer.get_vocab()
        byte_symbols = pre_tokenizers.ByteLevel.alphabet()
        kinds = (parts["model"]["type"], (parts["pre_tokenizer"] or {}).get("type"))
        if kinds != ("BPE", "ByteLevel") or parts["normalizer"] is None:
            raise ValueError("it is not a byte-level BPE that lower-cases its text")
        complete = set(ids.values()) == set(range(len(ids))) and ids.keys() >= set(byte_symbols)
        if parts["added_tokens"] or not complete:
            raise ValueError("its ids are not 0, 1, 2, ... with all 256 bytes and no special tokens")
        merges = [tuple(pair) for pair in parts["model"]["merges"]]
        self.vocabulary = len(ids)  # number of token ids
        self._tokenizer = tokenizer
        self._bytes = {symbol: ids[symbol] for symbol in byte_symbols}
        self._rank = {(ids[left], ids[right]): rank for rank, (left, right) in enumerate(merges)}
        self._merged = [ids[left + right] for left, right in merges]  # by rank

    @classmethod
    def train(cls, captions: Iterable[str], vocabulary: int) -> "CaptionTokenizer":
        """Train a BPE of `vocabulary` entries, including the 256 bytes, on captions, which are read once.

        If every word is one token before `vocabulary` is reached, there are fewer entries, and a warning is logged. The
        paper has 16,384 entries. Raises ValueError for a vocabulary below 256.
        """
        if vocabulary < 256:
            raise ValueError(f"a byte-level vocabulary has at least the 256 bytes, got {vocabulary}")
        tokenizer = Tokenizer(models.BPE())
        spaces = normalizers.Replace(Regex(r"\s+"), " ")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), spaces, normalizers.Strip()])
        # with a space before the first word, a word has the same tokens there as inside a caption
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        tokenizer.train_from_iterator(map(_encodable, captions), trainer)
        trained = cls(tokenizer)
        if trained.vocabulary < vocabulary:
            found = "the captions gave only %d vocabulary entries of the %d asked for: every word is one token"
            log.warning(found, trained.vocabulary, vocabulary)
        return trained

    def normalise(self, caption: str) -> str:
        """Normalise a caption: lower case, single spaces, none at the ends."""
        return self._tokenizer.normalizer.normalize_str(_encodable(caption))

    def encode(self, caption: str, dropout: float = 0.0, generator: np.random.Generator | None = None) -> list[int]:
        """Encode a caption as token ids; `decode` returns `normalise(caption)`. An empty caption has no ids.

        `dropout` in [0, 1) is the rate of BPE dropout (Provilkov et al. 2020; the paper trains with 0.1): at every
        merge step, each possible merge is skipped with that probability, so a word has many segmentations. It draws
        from `generator`, which it needs; the library's own dropout cannot be seeded. Raises ValueError for a dropout
        out of range or without a generator.
        """
        if dropout == 0:
            return self._tokenizer.encode(_encodable(caption), add_special_tokens=False).ids
        if generator is None or not 0 < dropout < 1:
            raise ValueError(f"dropout must be in [0, 1) and needs a generator, got {dropout}, {generator}")
        words = [word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(self.normalise(caption))]
        # A step takes the best merge that is not skipped. With independent skips it passes over k merges with
        # probability dropout^k (1 - dropout). There are fewer steps than bytes, so all are drawn at once.
        passes = iter((generator.geometric(1 - dropout, size=sum(map(len, words))) - 1).tolist())
        ids: list[int] = []
        for word in words:
            ids += self._merge([self._bytes[symbol] for symbol in word], passes)
        return ids

    def words(self, caption: str) -> list[tuple[str, list[int]]]:
        """Split a caption into words and punctuation marks with their token ids, in the order of `encode`."""
        encoding = self._tokenizer.encode(_encodable(caption), add_special_tokens=False)
        pairs = zip(encoding.word_ids, encoding.ids, strict=True)
        by_word = [[token for _, token in pieces] for _, pieces in groupby(pairs, key=itemgetter(0))]
        return [(self.decode(ids), ids) for ids in by_word]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode token ids to text. Invalid UTF-8, as in a truncated sequence, becomes U+FFFD."""
        return self._tokenizer.decode([int(token) for token in ids]).removeprefix(" ")

    def save(self, path: str | PathLike[str]) -> None:
        """Write a tokenizer.json, also readable by Hugging Face's `tokenizers`."""
        self._tokenizer.save(str(path))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "CaptionTokenizer":
        """Read a file written by `save`. Raises ValueError if it is missing, damaged or of another kind."""
        try:
            # the library raises bare Exceptions for parse errors
            return cls(Tokenizer.from_str(Path(path).read_text(encoding="utf-8")))
        except Exception as problem:
            raise ValueError(f"cannot read the tokenizer {path}: {problem}") from problem

    def _merge(self, ids: list[int], passes: Iterator[int]) -> list[int]:
        """Merge the byte ids of one word, and return its token ids.

        passes: number of possible merges, in order of rank, that each step skips; all 0 without dropout.
        """
        never = len(self._merged)  # rank of a pair that has no merge
        ids = list(ids)
        ranks = [self._rank.get(pair, never) for pair in pairwise(ids)]
        while ranks:
            passed = next(passes)
            if passed == 0:
                rank = min(ranks)
                at = ranks.index(rank)
            else:
                in_order = sorted(range(len(ranks)), key=ranks.__getitem__)
                at = in_order[min(passed, len(ranks) - 1)]
                rank = ranks[at] if passed < len(ranks) else never
            if rank == never:
                break
            ids[at : at + 2] = [self._merged[rank]]
            del ranks[at]
            if at > 0:
                ranks[at - 1] = self._rank.get((ids[at - 1], ids[at]), never)
            if at < len(ranks):
                ranks[at] = self._rank.get((ids[at], ids[at + 1]), never)
        return ids


def _encodable(caption: str) -> str:
    """Replace lone surrogates, which have no UTF-8 encoding, by question marks."""
    return caption.encode("utf-8", "replace").decode("utf-8")


def check_captions(captions: Sequence[str]) -> None:
    """Raise TypeError unless `captions` is a sequence of texts: a single text would be read as its letters."""
    if isinstance(captions, str):
        raise TypeError(f"captions must be a list of texts, not the text {captions!r}: write [{captions!r}]")
    for caption in captions:
        if not isinstance(caption, str):
            raise TypeError(f"a caption must be a text, not {caption!r}")


def words_of(caption: str) -> set[str]:
    """Return the words of a caption, in lower case."""
    return set(re.findall(r"\w+", caption.lower()))


def nearest_words(word: str, known: Collection[str]) -> list[str]:
    """Return at most three known words of similar spelling, the most similar first."""
    return get_close_matches(word, known, n=3, cutoff=0.75)
