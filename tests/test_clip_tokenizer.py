"""Tokenizer of published CLIPs: ids equal to transformers and to OpenAI's algorithm."""

import gzip
import html
import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from transformers import CLIPTokenizer as Reference

from dalle.clip_tokenizer import CLIPTokenizer

MERGES = ["t h", "th e</w>", "c a", "ca t</w>", "r e", "re d</w>", "' s</w>", "Ã ©</w>", "! !</w>", "a n", "an d</w>"]
SYMBOLS = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*SYMBOLS, *(symbol + "</w>" for symbol in SYMBOLS), *(pair.replace(" ", "") for pair in MERGES)]
START, END = len(TOKENS), len(TOKENS) + 1
VOCABULARY = {token: number for number, token in enumerate([*TOKENS, "<|startoftext|>", "<|endoftext|>"])}

CAPTIONS = [
    "The cat's red  cat,\tand the\nCAFÉ",
    "they'RE 12 o'clock!! we'll see don't 's",
    "  naïve cafe\u0301 \u3000 Straße ﬁ ½ ②",
    "猫と犬 кошка 🐈\u200d⬛ e\u0301e",
    "a <|endoftext|> b<|startoftext|>",
    "bread &amp; butter &lt;b&gt; &amp;amp; &#39;s",
    "ΟΔΟΣ",
    "",
    "   ",
]
PIECES = [
    "the",
    "cat",
    "The Cat's",
    "caf\u00e9",
    "ΟΔΟΣ ",
    "&amp;",
    "&#39;s",
    "12",
    "!!",
    "'ll",
    "'",
    " ",
    "x",
    "¿",
    "猫",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write vocab.json, merges.txt and OpenAI's merges file, which has more merges than are used."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]), encoding="utf-8")
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *MERGES, "z z</w>", ""]
    (folder / "bpe.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode("utf-8")))
    return folder


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(vocab=VOCABULARY, merges=[tuple(pair.split()) for pair in MERGES])


@pytest.fixture(scope="module")
def huggingfaces(folder) -> CLIPTokenizer:
    return CLIPTokenizer.read(folder, len(VOCABULARY))


@pytest.fixture(scope="module")
def openais(folder) -> CLIPTokenizer:
    return CLIPTokenizer.from_merges(folder / "bpe.txt.gz", len(VOCABULARY))


# --- the same ids ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("caption", CAPTIONS)
def test_hugging_face_ids_match_transformers(huggingfaces, reference, caption):
    assert [START, *huggingfaces.encode(caption), END] == reference(caption).input_ids


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
@settings(max_examples=200, deadline=None)
def test_ids_of_random_text_match_transformers(huggingfaces, reference, text):
    assert huggingfaces.encode(text) == reference(text, add_special_tokens=False).input_ids


def test_tokenizer_json_matches_vocab_and_merges_files(huggingfaces, reference, tmp_path):
    reference.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.read(tmp_path, 0)
    assert (loaded.start, loaded.end, loaded.vocabulary) == (START, END, len(VOCABULARY))
    for caption in CAPTIONS:
        assert loaded.encode(caption) == huggingfaces.encode(caption)


def as_published(caption: str) -> list[int]:
    """Reference: OpenAI's algorithm; ftfy is replaced by Unicode composition."""
    caption = html.unescape(html.unescape(unicodedata.normalize("NFC", caption)))
    return [token for word in words(caption.lower()) for token in merged(word)]


CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def words(text: str) -> list[str]:
    """Return contractions, runs of letters, single digits, and runs of other characters except white space."""
    found = []
    while text := text.lstrip():
        kinds = [" " if character.isspace() else unicodedata.category(character)[0] for character in text]
        kinds = [kind if kind in " LN" else "other" for kind in kinds]
        length = next((at for at, kind in enumerate(kinds) if kind != kinds[0]), len(text))
        if kinds[0] == "N":
            length = 1
        length = next((len(contraction) for contraction in CONTRACTIONS if text.startswith(contraction)), length)
        found.append(text[:length])
        text = text[length:]
    return found


def merged(word: str) -> list[int]:
    """Apply merges one after the other, each wherever it fits."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves; the rest follow
    order = [*shown, *(byte for byte in range(256) if byte not in shown)]
    symbol_of = dict(zip(order, SYMBOLS, strict=True))
    parts = [symbol_of[byte] for byte in word.encode("utf-8")]
    parts[-1] += "</w>"
    for pair in MERGES:
        left, right = pair.split()
        at = 0
        while at < len(parts) - 1:
            if (parts[at], parts[at + 1]) == (left, right):
                parts[at : at + 2] = [left + right]
            at += 1
    return [VOCABULARY[part] for part in parts]


@pytest.mark.parametrize("caption", [caption for caption in CAPTIONS if "<|" not in caption])
def test_openai_ids_match_published_algorithm(openais, caption):
    assert openais.encode(caption) == as_published(caption)


@given(st.lists(st.sampled_from(PIECES)).map("".join))
@settings(max_examples=200, deadline=None)
def test_ids_of_random_words_match_published_algorithm(openais, text):
    assert openais.encode(text) == as_published(text)


def test_html_entities_are_resolved_by_openai_only(openais, huggingfaces):
    assert openais.encode("red &amp; red") == openais.encode("red & red") == huggingfaces.encode("red & red")
    assert openais.encode("&amp;lt;") == openais.encode("<")
    assert huggingfaces.encode("red &amp; red") != huggingfaces.encode("red & red")


def test_id_order_is_bytes_end_of_word_bytes_merges_start_end(openais):
    assert openais.encode("!") == [256]
    assert openais.encode("ab") == [SYMBOLS.index("a"), 256 + SYMBOLS.index("b")]
    assert openais.encode("THE cat") == [513, 515]
    assert (openais.start, openais.end, openais.vocabulary) == (START, END, len(VOCABULARY))
    assert openais.encode("<|endoftext|>") == [END]


def test_invalid_unicode_becomes_question_marks(openais):
    assert openais.encode("a\ud800b") == openais.encode("a?b")


# --- files -----------------------------------------------------------------------------------------------------


def test_gzipped_and_surplus_merges_are_read(folder, openais, tmp_path):
    (tmp_path / "dos.txt").write_bytes(b"#version: 0.2\r\n" + "\r\n".join(MERGES).encode("utf-8"))
    for path in (folder / "merges.txt", tmp_path / "dos.txt"):
        read = CLIPTokenizer.read(path, len(VOCABULARY), openai=True)
        assert [read.encode(caption) for caption in CAPTIONS] == [openais.encode(caption) for caption in CAPTIONS]
    fewer = CLIPTokenizer.from_merges(folder / "merges.txt", len(VOCABULARY) - 1)
    assert fewer.end == END - 1
    assert len(openais.encode("and")) == 1
    assert len(fewer.encode("and")) == 2


@pytest.mark.parametrize("kind", ["openais", "huggingfaces"])
def test_tokenizer_round_trip(kind, request, tmp_path):
    tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = CLIPTokenizer.load(tmp_path / "tokenizer.json", tokenizer.openai)
    assert (loaded.start, loaded.end, loaded.vocabulary) == (START, END, len(VOCABULARY))
    assert [loaded.encode(caption) for caption in CAPTIONS] == [tokenizer.encode(caption) for caption in CAPTIONS]


def test_truncation_and_padding_of_the_file_are_disabled(huggingfaces, tmp_path):
    huggingfaces.save(tmp_path / "tokenizer.json")
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.enable_truncation(3)
    library.enable_padding(length=50)
    library.save(str(tmp_path / "tokenizer.json"))
    assert CLIPTokenizer.read(tmp_path, 0).encode(CAPTIONS[0]) == huggingfaces.encode(CAPTIONS[0])


# --- what is no tokenizer of a CLIP ----------------------------------------------------------------------------


def refused(reading, *arguments) -> str:
    with pytest.raises(ValueError) as error:
        reading(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_too_few_merges_raise(folder):
    sentence = refused(CLIPTokenizer.from_merges, folder / "merges.txt", 49_408)
    assert "merges.txt has 11 merges, but a vocabulary of 49,408 needs 48,894, besides 512 symbols" in sentence
    assert "a vocabulary of 99 needs -415" in refused(CLIPTokenizer.from_merges, folder / "merges.txt", 99)


def test_missing_files_raise(folder, tmp_path):
    assert "there is no" in refused(CLIPTokenizer.from_merges, tmp_path / "bpe.txt.gz")
    assert "vocab.json" in refused(CLIPTokenizer.read, tmp_path, 0)
    (tmp_path / "vocab.json").write_bytes((folder / "vocab.json").read_bytes())
    assert "merges.txt, which the tokenizer needs" in refused(CLIPTokenizer.read, tmp_path, 0)
    assert "cannot read the tokenizer" in refused(CLIPTokenizer.load, tmp_path / "tokenizer.json")


def test_damaged_files_raise(folder, tmp_path):
    cut = tmp_path / "cut.gz"
    cut.write_bytes((folder / "bpe.txt.gz").read_bytes()[:40])
    assert "cut.gz is truncated or damaged" in refused(CLIPTokenizer.from_merges, cut, len(VOCABULARY))
    prose = tmp_path / "prose.txt"
    prose.write_text("t h\nthree words here\n")
    sentence = refused(CLIPTokenizer.from_merges, prose, len(VOCABULARY))
    assert "line 2 should be two symbols but is 'three words here'" in sentence
    (tmp_path / "vocab.json").write_text("{")
    assert "vocab.json is not valid JSON" in refused(CLIPTokenizer.read, tmp_path, 0)
    (tmp_path / "vocab.json").write_text("[1]")
    assert "should hold tokens and their ids" in refused(CLIPTokenizer.read, tmp_path, 0)


def test_mismatched_vocabulary_and_merges_raise(folder, tmp_path):
    (tmp_path / "merges.txt").write_text("t h\nth ing</w>\n")
    (tmp_path / "vocab.json").write_bytes((folder / "vocab.json").read_bytes())
    assert "'th' and 'ing</w>' are merged, but the vocabulary lacks 'ing</w>'" in refused(
        CLIPTokenizer.read, tmp_path, 0
    )
    assert "lacks 'ing</w>'" in refused(CLIPTokenizer.from_merges, tmp_path / "merges.txt", 512 + 2 + 2)


def test_other_tokenizer_type_raises(huggingfaces, tmp_path):
    huggingfaces.save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))

    def changed(**model):
        other = {**content, "model": {**content["model"], **model}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(other))
        return refused(CLIPTokenizer.read, tmp_path, 0)

    assert "no BPE that marks the ends of words by '</w>'" in changed(end_of_word_suffix=None)
    (tmp_path / "vocab.json").write_text(json.dumps({token: n for token, n in VOCABULARY.items() if "<|" not in token}))
    (tmp_path / "merges.txt").write_text("t h")
    (tmp_path / "tokenizer.json").unlink()
    assert "lacks <|startoftext|> or <|endoftext|>" in refused(CLIPTokenizer.read, tmp_path, 0)
