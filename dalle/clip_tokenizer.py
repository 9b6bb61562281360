"""Tokenizer of published CLIP models: a byte-level BPE with end-of-word markers.

The merges are read from the file published with the weights; they are not distributed with this code.
"""

import gzip
import html
from collections.abc import Mapping, Sequence
from json import JSONDecodeError, loads
from os import PathLike
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
# units that are merged separately: contractions, runs of letters, single digits, runs of other non-space characters
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

Merges = Sequence[tuple[str, str]]


class CLIPTokenizer:
    """BPE of OpenAI's CLIP (CLIP paper, Section 2.4), or of Hugging Face's CLIPTokenizer.

    A caption is lower-cased and split into words. The bytes of a word are merged; the last one is marked by "</w>". The
    two versions clean captions differently: OpenAI's first resolves HTML entities such as &amp;. Three features of
    OpenAI's are not implemented: repair of wrongly decoded text with the package ftfy, removal of control characters at
    a caption's ends, and treating a start or end token typed next to a punctuation mark as punctuation.
    """

    def __init__(self, tokenizer: Tokenizer, openai: bool = False):
        """Wrap a tokenizer made by `from_merges`, `from_vocabulary` or `load`.

        openai: clean captions as OpenAI's code does. Raises ValueError for a tokenizer of another kind.
        """
        if getattr(tokenizer.model, "end_of_word_suffix", None) != END_OF_WORD:
            raise ValueError(f"it is no BPE that marks the ends of words by {END_OF_WORD!r}, as CLIP's does")
        start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
        if start is None or end is None:
            raise ValueError(f"it lacks {START} or {END}, which stand around every caption that a CLIP reads")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.start: int = start
        self.end: int = end
        self.vocabulary = max(tokenizer.get_vocab().values()) + 1  # upper bound of the ids
        self.openai = openai
        self._tokenizer = tokenizer

    @classmethod
    def read(cls, path: str | PathLike[str], vocabulary: int, openai: bool = False) -> "CLIPTokenizer":
        """Read a file or a folder: tokenizer.json, vocab.json with merges.txt, or a merges file, optionally gzipped.

        A merges file alone uses OpenAI's ids, with `vocabulary` of them. Raises ValueError for missing or invalid
        files.
        """
        path = Path(path)
        if path.is_dir():
            if (path / "tokenizer.json").exists():
                return cls.load(path / "tokenizer.json", openai)
            return cls.from_vocabulary(path / "vocab.json", path / "merges.txt", openai)
        return cls.load(path, openai) if path.suffix == ".json" else cls.from_merges(path, vocabulary, openai)

    @classmethod
    def from_merges(cls, path: str | PathLike[str], vocabulary: int = 49_408, openai: bool = True) -> "CLIPTokenizer":
        """Read OpenAI's bpe_simple_vocab_16e6.txt.gz, or a merges.txt, up to the number of merges in the vocabulary.

        Ids are in OpenAI's order: the 256 bytes, the 256 bytes with end-of-word marker, the merges, start, end. Raises
        ValueError if the file is missing, damaged, too short, or not a file of merges.
        """
        symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
        symbols += [symbol + END_OF_WORD for symbol in symbols]
        merges = _read_merges(path)
        wanted = vocabulary - len(symbols) - 2
        if not 0 <= wanted <= len(merges):
            raise ValueError(
                f"{path} has {len(merges):,} merges, but a vocabulary of {vocabulary:,} needs {wanted:,}, "
                f"besides {len(symbols)} symbols, start and end"
            )
        tokens = [*symbols, *(left + right for left, right in merges[:wanted]), START, END]
        return cls(_build({token: number for number, token in enumerate(tokens)}, merges[:wanted], path), openai)

    @classmethod
    def from_vocabulary(
        cls, vocabulary: str | PathLike[str], merges: str | PathLike[str], openai: bool = False
    ) -> "CLIPTokenizer":
        """Read Hugging Face's vocab.json and merges.txt.

        Raises ValueError if one is missing or damaged, or if they do not match.
        """
        try:
            ids = loads(_read(vocabulary).decode("utf-8"))
        except (UnicodeDecodeError, JSONDecodeError) as error:
            raise ValueError(f"{vocabulary} is not valid JSON: {error}") from error
        if not isinstance(ids, dict) or not all(type(number) is int for number in ids.values()):
            raise ValueError(f"{vocabulary} should hold tokens and their ids, but holds something else")
        try:
            return cls(_build(ids, _read_merges(merges), f"{merges} with {vocabulary}"), openai)
        except ValueError as error:
            raise ValueError(f"cannot read the tokenizer in {vocabulary} and {merges}: {error}") from error

    def encode(self, caption: str) -> list[int]:
        """Encode a caption as token ids, without start and end token. An empty caption has no ids.

        Bytes that the vocabulary lacks become the end token, as in Hugging Face's tokenizer.
        """
        if self.openai:  # lower-case here as well: Python's lower() handles the Greek final sigma
            caption = html.unescape(html.unescape(caption)).lower()
        encodable = caption.encode("utf-8", "replace").decode("utf-8")  # lone surrogates have no UTF-8
        return self._tokenizer.encode(encodable, add_special_tokens=False).ids

    def save(self, path: str | PathLike[str]) -> None:
        """Write a tokenizer.json, also readable by Hugging Face's libraries."""
        self._tokenizer.save(str(path))

    @classmethod
    def load(cls, path: str | PathLike[str], openai: bool = False) -> "CLIPTokenizer":
        """Read a tokenizer.json, written by `save` or by Hugging Face.

        Raises ValueError if the file is missing, damaged or of another kind.
        """
        try:
            # the library raises bare Exceptions for parse errors
            return cls(Tokenizer.from_str(Path(path).read_text(encoding="utf-8")), openai)
        except Exception as problem:
            raise ValueError(f"cannot read the tokenizer {path}: {problem}") from problem


def _build(ids: Mapping[str, int], merges: Merges, source: str | PathLike[str]) -> Tokenizer:
    """Build the tokenizer from the id of each token and the pairs to merge. Raises ValueError if they do not match."""
    for left, right in merges:
        for token in (left, right, left + right):
            if token not in ids:
                raise ValueError(f"{source}: {left!r} and {right!r} are merged, but the vocabulary lacks {token!r}")
    model = models.BPE(dict(ids), list(merges), unk_token=END, end_of_word_suffix=END_OF_WORD)
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    around = [token for token in (START, END) if token in ids]  # `CLIPTokenizer` raises if one is missing
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in around])
    return tokenizer


def _read_merges(path: str | PathLike[str]) -> list[tuple[str, str]]:
    """Read pairs of tokens to merge from a file with one pair per line, after an optional line with a version."""
    content = _read(path)
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        lines = content.decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from error
    merges = []
    for number, line in enumerate(lines, 1):
        if number == 1 and "#version" in line or not line.strip():
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise ValueError(f"{path} is no file of merges: line {number} should be two symbols but is {line[:60]!r}")
        merges.append((pair[0], pair[1]))
    return merges


def _read(path: str | PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"there is no {path}, which the tokenizer needs") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
