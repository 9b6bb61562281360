"""Captions from bytes that may be anything."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle.data import captions
from dalle.data.captions import Metadata, clean_caption, decode_lines, parse_metadata


def test_lines_end_as_any_editor_ends_them_and_a_mark_at_the_beginning_is_no_letter():
    assert decode_lines(b"\xef\xbb\xbfone\r\ntwo\rthree\nfour\x0bfive\xe2\x80\xa8six") == (
        "one",
        "two",
        "three",
        "four\x0bfive\u2028six",
    )


def test_bytes_that_are_not_utf8_are_refused():
    with pytest.raises(UnicodeDecodeError):
        decode_lines("été".encode("latin-1"))


def test_of_a_huge_text_the_beginning_is_read_though_it_be_cut_within_a_letter(monkeypatch):
    monkeypatch.setattr(captions, "MAX_TEXT_BYTES", 5)
    assert decode_lines("ééé".encode()) == ("éé",)
    with pytest.raises(UnicodeDecodeError):
        decode_lines("éé".encode()[:3])  # this text ends within a letter


def test_control_characters_and_runs_of_blanks_are_one_blank():
    assert clean_caption("\x1b[31mred\x1b[0m\t\ta  \x00dog\x85\u3000") == "[31mred [0m a dog"
    assert clean_caption("👩\u200d🚀 naïve") == "👩\u200d🚀 naïve"
    assert clean_caption("\x00\x07 \n") == ""


@given(st.text(st.characters(codec=None)))
def test_a_cleaned_caption_is_plain_text_and_stays_so(text):
    once = clean_caption(text)
    assert once.encode("utf-8").decode() == once == clean_caption(once)
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in once)


def test_metadata_are_read_as_img2dataset_writes_them():
    told = {"caption": "a dog", "url": "https://a.b/c.jpg", "sha256": "00", "width": 5, "exif": "{}"}
    assert parse_metadata(json.dumps(told).encode()) == Metadata(("a dog",), ("https://a.b/c.jpg",), ("00",))
    assert parse_metadata(b'{"caption": null, "text": ["a", "", 3, "b"]}') == Metadata(("a", "b"))
    assert parse_metadata(b'{"caption": {"a": 1}, "url": 5}') == Metadata()


@pytest.mark.parametrize("data", [b"", b"[1]", b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": 1} {"b": 2}'])
def test_what_is_no_json_object_is_refused(data):
    with pytest.raises(ValueError):
        parse_metadata(data)
