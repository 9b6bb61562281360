"""Opt-out list: records are excluded by key, URL, domain or hash."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle.data.opt_out import OptOut


@pytest.mark.parametrize(
    ("line", "key", "left_out"),
    [
        ("a/b.png", "a/b.png", True),
        ("b.png", "a/b.png", True),  # the end of a key
        ("00012", "shards/0.tar/00012", True),
        ("a", "a/b.png", False),
        (".png", "a/b.png", False),
        ("# b.png", "a/b.png", False),
        ("  b.png  ", "a/b.png", True),
        ("photo #3.png", "photo #3.png", True),
    ],
)
def test_keys(line, key, left_out):
    assert OptOut([line]).reason(key) == ("opted out by key" if left_out else None)


@pytest.mark.parametrize(
    ("line", "url", "reason"),
    [
        ("https://a.org/x.jpg", "https://a.org/x.jpg", "opted out by address"),
        ("https://a.org/x.jpg", "http://www.A.org/x.jpg#top", "opted out by address"),
        ("https://a.org/x.jpg?id=1", "https://a.org/x.jpg?id=2", None),
        ("https://a.org/x.jpg", "https://a.org/X.jpg", None),
        ("a.org/x.jpg", "https://www.a.org/x.jpg", "opted out by address"),
        ("a.org/x.jpg", "https://a.org/y/x.jpg", None),
        ("https://a.org", "https://a.org/x.jpg", "opted out by domain"),
        ("https://a.org/", "http://b.a.org/x.jpg", "opted out by domain"),
        ("a.org/", "https://a.org/x.jpg", "opted out by domain"),
        ("https://a.org/?id=1", "https://a.org/x.jpg", None),
        ("a.org", "https://a.org/x.jpg", "opted out by domain"),
        ("www.a.org", "https://a.org/x.jpg", "opted out by domain"),
        ("A.org", "https://cdn.pictures.a.org:8080/x.jpg", "opted out by domain"),
        ("a.org", "https://ba.org/x.jpg", None),
        ("a.org", "https://b.org/a.org", None),
        ("a.org", "https://[broken/x.jpg", None),
        ("https://[broken", "https://[broken", None),
        ("a.org", "", None),
        ("a.org", "a.org/x.jpg", "opted out by domain"),
        ("a.org", "//cdn.a.org/x.jpg", "opted out by domain"),
        ("https://a.org/x.jpg", "a.org/x.jpg", "opted out by address"),
        ("a.org/x%20y.jpg", "https://a.org/x y.jpg", "opted out by address"),
        ("https://", "", None),
    ],
)
def test_urls_and_domains(line, url, reason):
    assert OptOut([line]).reason("key", urls=["https://elsewhere.net/", url]) == reason


def test_entries_without_a_match_are_listed():
    lines = ["b.png", "c.png", "a.org", "b.org/", "https://c.org/x.jpg", "d.org/x.jpg", "https://d.org/y.jpg"]
    opt_out = OptOut([*lines, "0" * 64])
    opt_out.reason("a/b.png", ["https://a.org/x.jpg"])  # matches two entries
    opt_out.reason("a/x.png", ["https://d.org/x.jpg"])
    assert opt_out.unmatched() == ["b.org/", "c.png", "https://c.org/x.jpg", "https://d.org/y.jpg"]


def test_hashes_of_bytes_and_of_metadata():
    digest = hashlib.sha256(b"picture").hexdigest()
    listed = OptOut([digest.upper(), hashlib.sha256(b"other").hexdigest()])
    assert listed.lists_file(b"picture") and listed.lists_file(b"other") and not listed.lists_file(b"")
    assert listed.reason("key", sha256=["nonsense", digest]) == "opted out by hash"
    assert listed.reason(f"0.tar/{digest}") == "opted out by hash"
    assert listed.reason("key", sha256=["0" * 64]) is None


@given(st.lists(st.binary(min_size=32, max_size=32)), st.binary(min_size=32, max_size=32))
def test_listed_hash_is_found(listed, other):
    opt_out = OptOut([digest.hex() for digest in listed])
    assert all(opt_out.reason("key", sha256=[digest.hex()]) for digest in listed)
    assert bool(opt_out.reason("key", sha256=[other.hex()])) == (other in listed)


def test_hashes_take_32_bytes_each():
    hashes = OptOut(f"{number:064x}" for number in range(1000)).hashes
    assert isinstance(hashes, np.ndarray) and hashes.nbytes == 32_000


def test_no_list_excludes_nothing(tmp_path):
    assert not OptOut.read("")
    assert OptOut.read("").reason("key", ["https://a.org"], ["0" * 64]) is None
    assert not OptOut.read("").lists_file(b"")


def test_list_file_may_contain_any_bytes(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf# by mail\r\na.png\r\n\r\ncaf\xe9.png\n")
    listed = OptOut.read(str(tmp_path / "list.txt"))
    assert listed.reason("a.png") and listed.reason("caf\udce9.png")
    assert not listed.reason("") and not listed.reason("# by mail")


def test_missing_list_raises():
    with pytest.raises(ValueError, match=r"data\.opt_out=nowhere\.txt cannot be read"):
        OptOut.read("nowhere.txt")
