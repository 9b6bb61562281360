"""Captions to token ids and back: a lower-cased, byte-level BPE learned from the captions themselves."""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from operator import itemgetter
from os import PathLike
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

log = logging.getLogger(__name__)


class CaptionTokenizer:
    """A byte-pair encoding with ids 0 to vocabulary - 1, all of them text (paper, section 2.2).

    Captions are lower-cased and runs of white space become one space. Words are spelt in bytes and then
    merged, so nothing is ever unknown. There are no special tokens: padding is the model's business.
    """

    def __init__(self, tokenizer: Tokenizer):
        """Wraps a tokenizer that `train` or `load` made. Raises ValueError for one of another kind."""
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
        """Learn `vocabulary` entries, the 256 bytes included, from the captions, which are read once.

        Fewer entries come out, and a warning says so, when every word has become one token before that many
        are found. The paper has 16,384. Raises ValueError for a vocabulary below 256.
        """
        if vocabulary < 256:
            raise ValueError(f"a byte-level vocabulary has at least the 256 bytes, got {vocabulary}")
        tokenizer = Tokenizer(models.BPE())
        spaces = normalizers.Replace(Regex(r"\s+"), " ")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), spaces, normalizers.Strip()])
        # a space before the first word too, or a word would have other tokens there than inside a caption
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
        """The text that is encoded: lower case, single spaces, none at the ends."""
        return self._tokenizer.normalizer.normalize_str(_encodable(caption))

    def encode(self, caption: str, dropout: float = 0.0, generator: np.random.Generator | None = None) -> list[int]:
        """Token ids of a caption; `decode` gives back `normalise(caption)`. An empty caption has none.

        `dropout` in [0, 1) is BPE dropout (Provilkov et al. 2020; the paper trains with 0.1): at every step
        of merging, each possible merge is left out with that probability, so words are spelt in many ways.
        It draws from `generator`, as the library's own dropout, which has no seed, could not do.
        """
        if dropout == 0:
            return self._tokenizer.encode(_encodable(caption), add_special_tokens=False).ids
        if generator is None or not 0 < dropout < 1:
            raise ValueError(f"dropout must be in [0, 1) and needs a generator, got {dropout}, {generator}")
        words = [word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(self.normalise(caption))]
        # A step that leaves each merge out independently takes the best of the rest: it passes over k merges
        # with probability dropout^k (1 - dropout). There are fewer steps than bytes, so one draw serves all.
        passes = iter((generator.geometric(1 - dropout, size=sum(map(len, words))) - 1).tolist())
        ids: list[int] = []
        for word in words:
            ids += self._merge([self._bytes[symbol] for symbol in word], passes)
        return ids

    def words(self, caption: str) -> list[tuple[str, list[int]]]:
        """The caption's words and punctuation marks, each with its token ids, which `encode` gives in a row."""
        encoding = self._tokenizer.encode(_encodable(caption), add_special_tokens=False)
        pairs = zip(encoding.word_ids, encoding.ids, strict=True)
        by_word = [[token for _, token in pieces] for _, pieces in groupby(pairs, key=itemgetter(0))]
        return [(self.decode(ids), ids) for ids in by_word]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids. Bytes that are no UTF-8, as in a sequence cut short, become U+FFFD."""
        return self._tokenizer.decode([int(token) for token in ids]).removeprefix(" ")

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a tokenizer.json that Hugging Face's `tokenizers` reads too."""
        self._tokenizer.save(str(path))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "CaptionTokenizer":
        """Reads what `save` wrote. Raises ValueError when the file is missing, broken or of another kind."""
        try:
            # the library raises bare Exceptions for whatever it cannot parse
            return cls(Tokenizer.from_str(Path(path).read_text(encoding="utf-8")))
        except Exception as problem:
            raise ValueError(f"cannot read the tokenizer {path}: {problem}") from problem

    def _merge(self, ids: list[int], passes: Iterator[int]) -> list[int]:
        """One word's bytes merged; the next of `passes` says at each step how many merges to pass over."""
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
    """The caption with lone surrogates, which no UTF-8 has, replaced by question marks."""
    return caption.encode("utf-8", "replace").decode("utf-8")


def words_of(caption: str) -> set[str]:
    """The words of a caption, in lower case."""
    return set(re.findall(r"\w+", caption.lower()))
