"""BPE tokenizer: lossless encoding of any text, and seeded BPE dropout."""

import json
import logging
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle.tokenizer import CaptionTokenizer

CAPTIONS = [
    f"a {size} {colour} {shape} {relation} a {other} banana, isn't it?"
    for size in ("small", "large")
    for colour in ("red", "green", "blue")
    for shape in ("circle", "square")
    for relation in ("above", "left of")
    for other in ("yellow", "purple")
]

PAD = (
    '{"id": 300, "content": "<pad>", "single_word": false, "lstrip": false, "rstrip": false,'
    ' "normalized": false, "special": true}'
)


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer.train(CAPTIONS, 300)


@settings(deadline=None)
@given(caption=st.text(max_size=60), dropout=st.sampled_from([0.0, 0.1, 0.9]))
def test_any_text_round_trips_normalised(tokenizer, caption, dropout):
    ids = tokenizer.encode(caption, dropout, np.random.default_rng(0))
    assert tokenizer.decode(ids) == tokenizer.normalise(caption)
    assert all(0 <= token < tokenizer.vocabulary for token in ids)


def test_text_is_lower_cased_with_single_spaces(tokenizer):
    assert tokenizer.normalise("  A\tRed \n\n Circle ") == "a red circle"
    assert tokenizer.encode("A  RED circle") == tokenizer.encode("a red circle")
    assert tokenizer.decode(tokenizer.encode("L'Été 🍎 🏴󠁧󠁢󠁥󠁮󠁧󠁿")) == "l'été 🍎 🏴󠁧󠁢󠁥󠁮󠁧󠁿"


def test_empty_captions_have_no_tokens(tokenizer):
    for caption in ("", "   \n"):
        assert tokenizer.encode(caption) == tokenizer.encode(caption, 0.1, np.random.default_rng(0)) == []
    assert tokenizer.decode([]) == ""


def test_text_with_surrogates_is_encoded(tokenizer):
    assert tokenizer.decode(tokenizer.encode("red \ud800 circle")) == "red ? circle"


def test_word_has_the_same_tokens_at_start_and_inside(tokenizer):
    assert tokenizer.encode("circle circle") == 2 * tokenizer.encode("circle")


@settings(deadline=None)
@given(
    caption=st.one_of(
        st.lists(st.sampled_from(" ".join(CAPTIONS).split()), max_size=12).map(" ".join),
        st.text(st.sampled_from("abn lrge'0,é"), max_size=30),
    )
)
def test_encoding_without_dropout_matches_the_library(tokenizer, caption):
    assert tokenizer.encode(caption, 1e-12, np.random.default_rng(0)) == tokenizer.encode(caption)


def test_dropout_depends_only_on_generator_state(tokenizer):
    draws = [tokenizer.encode(CAPTIONS[0], 0.3, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_more_dropout_gives_shorter_tokens(tokenizer):
    def tokens(dropout):
        generator = np.random.default_rng(0)
        return sum(len(tokenizer.encode(caption, dropout, generator)) for caption in CAPTIONS)

    letters = sum(len(" " + caption) for caption in CAPTIONS)
    assert tokens(0.0) < tokens(0.1) < tokens(0.5) < tokens(0.99) <= letters


def spelt_by_the_definition(symbols, merges, dropout, generator):
    """Reference: BPE dropout of Provilkov et al., where each possible merge is dropped independently at each step."""
    while True:
        pairs = list(pairwise(symbols))
        left = [(merges.index(pair), at) for at, pair in enumerate(pairs) if pair in merges]
        left = [candidate for candidate in left if generator.random() >= dropout]
        if not left:
            return tuple(symbols)
        at = min(left)[1]
        symbols = [*symbols[:at], symbols[at] + symbols[at + 1], *symbols[at + 2 :]]


def test_dropout_frequencies_match_the_definition(tmp_path):
    tokenizer = CaptionTokenizer.train(["banana bandana ban an"] * 5, 270)
    tokenizer.save(tmp_path / "tokenizer.json")
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    names = {token: name for name, token in model["vocab"].items()}
    merges = [tuple(pair) for pair in model["merges"]]
    generator = np.random.default_rng(0)
    draws = 4000
    ours = Counter(tuple(names[token] for token in tokenizer.encode("banana", 0.3, generator)) for _ in range(draws))
    theirs = Counter(spelt_by_the_definition(list("\u0120banana"), merges, 0.3, generator) for _ in range(draws))
    assert len(theirs) > 10
    for spelling in ours | theirs:
        assert abs(ours[spelling] - theirs[spelling]) < 0.04 * draws  # more than five standard deviations


def test_dropout_without_generator_or_out_of_range_raises(tokenizer):
    with pytest.raises(ValueError, match=r"needs a generator"):
        tokenizer.encode("red", 0.1)
    for dropout in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\)"):
            tokenizer.encode("red", dropout, np.random.default_rng(0))


def test_training_is_deterministic(tokenizer, tmp_path):
    again = CaptionTokenizer.train(iter(CAPTIONS), 300)
    tokenizer.save(tmp_path / "one.json")
    again.save(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_too_few_words_give_a_smaller_vocabulary_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        tokenizer = CaptionTokenizer.train(["red circle"], 1000)
    assert 256 < tokenizer.vocabulary < 280
    assert f"only {tokenizer.vocabulary} vocabulary entries of the 1000 asked for" in caplog.text
    assert len(tokenizer.encode("red circle")) == 2


def test_vocabulary_below_256_raises():
    with pytest.raises(ValueError, match="at least the 256 bytes, got 255"):
        CaptionTokenizer.train(CAPTIONS, 255)


def test_saved_tokenizer_encodes_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = CaptionTokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.vocabulary == tokenizer.vocabulary == 300
    for caption in CAPTIONS:
        assert loaded.encode(caption) == tokenizer.encode(caption)
        drawn = [encoder.encode(caption, 0.2, np.random.default_rng(3)) for encoder in (loaded, tokenizer)]
        assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: "", "EOF"),
        (lambda text: text[: len(text) // 2], "EOF"),
        (lambda text: "[1, 2]", ""),
        (lambda text: text.replace('"ByteLevel"', '"Whitespace"'), ""),
        (lambda text: json.dumps(json.loads(text) | {"normalizer": None}), "lower-cases"),
        (lambda text: json.dumps(json.loads(text) | {"pre_tokenizer": None}), "byte-level"),
        (lambda text: text.replace('"added_tokens": []', f'"added_tokens": [{PAD}]'), "special tokens"),
    ],
)
def test_damaged_tokenizer_files_raise(tokenizer, tmp_path, damage, reason):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    whole = path.read_text(encoding="utf-8")
    path.write_text(damage(whole), encoding="utf-8")
    assert damage(whole) != whole
    with pytest.raises(ValueError, match=rf"cannot read the tokenizer .*tokenizer\.json: .*{reason}"):
        CaptionTokenizer.load(path)


def test_missing_and_binary_tokenizer_files_raise(tmp_path):
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.json", "binary.json"):
        with pytest.raises(ValueError, match=f"cannot read the tokenizer .*{name}"):
            CaptionTokenizer.load(tmp_path / name)


def test_dropout_encoding_is_fast(tokenizer):
    caption = "a small red circle above a large blue square left of it"
    generator = np.random.default_rng(0)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        tokenizer.encode(caption, 0.1, generator)
        times.append(time.perf_counter() - start)
    assert min(times) < 500e-6  # about 60e-6 on an idle core
