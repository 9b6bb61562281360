"""Captions decoded from arbitrary bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle.data import captions
from dalle.data.captions import Metadata, clean_caption, decode_lines, parse_metadata


def test_line_endings_and_byte_order_mark_are_removed():
    assert decode_lines(b"\xef\xbb\xbfone\r\ntwo\rthree\nfour\x0bfive\xe2\x80\xa8six") == (
        "one",
        "two",
        "three",
        "four\x0bfive\u2028six",
    )


def test_invalid_utf8_raises():
    with pytest.raises(UnicodeDecodeError):
        decode_lines("été".encode("latin-1"))


def test_huge_text_is_truncated_at_a_character(monkeypatch):
    monkeypatch.setattr(captions, "MAX_TEXT_BYTES", 5)
    assert decode_lines("ééé".encode()) == ("éé",)
    with pytest.raises(UnicodeDecodeError):
        decode_lines("éé".encode()[:3])  # this text ends within a letter


def test_control_characters_and_whitespace_become_one_space():
    assert clean_caption("\x1b[31mred\x1b[0m\t\ta  \x00dog\x85\u3000") == "[31mred [0m a dog"
    assert clean_caption("👩\u200d🚀 naïve") == "👩\u200d🚀 naïve"
    assert clean_caption("\x00\x07 \n") == ""


@given(st.text(st.characters(codec=None)))
def test_clean_caption_is_idempotent_plain_text(text):
    once = clean_caption(text)
    assert once.encode("utf-8").decode() == once == clean_caption(once)
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in once)


def test_img2dataset_metadata_is_read():
    told = {"caption": "a dog", "url": "https://a.b/c.jpg", "sha256": "00", "width": 5, "exif": "{}"}
    assert parse_metadata(json.dumps(told).encode()) == Metadata(("a dog",), ("https://a.b/c.jpg",), ("00",))
    assert parse_metadata(b'{"caption": null, "text": ["a", "", 3, "b"]}') == Metadata(("a", "b"))
    assert parse_metadata(b'{"caption": {"a": 1}, "url": 5}') == Metadata()


@pytest.mark.parametrize("data", [b"", b"[1]", b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": 1} {"b": 2}'])
def test_invalid_json_object_raises(data):
    with pytest.raises(ValueError):
        parse_metadata(data)
