"""Index of records: strings stored in arrays, with little overhead."""

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle.data.index import Index, IndexBuilder, RaggedStrings, StringArray, digest_of

# whatever a file may be called
names = st.binary(max_size=12).map(lambda name: name.decode("utf-8", "surrogateescape"))


@given(st.lists(names), st.data())
def test_strings_round_trip_and_can_be_reordered(texts, data):
    strings = StringArray.from_strings(texts)
    assert list(strings) == texts
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1))) if texts else []
    assert list(strings.take(np.array(rows, np.int64))) == [texts[row] for row in rows]


@given(st.lists(st.lists(names, max_size=4)), st.data())
def test_lists_round_trip_and_can_be_reordered(lists, data):
    builder = IndexBuilder()
    for number, texts in enumerate(lists):
        builder.add(str(number), texts, (number, -number))
    index = builder.build()
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1))) if lists else []
    for got, wanted in ((index, range(len(lists))), (index.take(np.array(rows, np.int64)), rows)):
        assert [got.captions[location] for location in range(len(got))] == [tuple(lists[row]) for row in wanted]
        assert list(got.keys) == [str(row) for row in wanted]
        assert got.locations.tolist() == [[row, -row] for row in wanted]


@given(st.lists(st.tuples(st.integers(0, 5), names)))
def test_strings_are_grouped_by_record_in_order(owned):
    owners = np.array([owner for owner, _ in owned], np.int64)
    grouped = RaggedStrings.from_owners(owners, StringArray.from_strings(text for _, text in owned), 6)
    for record in range(6):
        assert grouped[record] == tuple(text for owner, text in owned if owner == record)


@pytest.mark.parametrize("index", [-1, 2, 10**9])
def test_index_out_of_range_raises(index):
    with pytest.raises(IndexError, match="outside of 2 strings"):
        StringArray.from_strings(["a", "b"])[index]


def size_of(index: Index) -> int:
    """Return the bytes of all arrays of an index."""
    return sum(len(part) if isinstance(part, bytes) else part.nbytes for part in index.buffers())


def test_many_records_take_their_bytes_and_48_more_each():
    count, caption = 200_000, "a caption of thirty-two letters."
    builder = IndexBuilder()
    for number in range(count):
        builder.add(f"{number:09d}.jpg", (caption,), (0, number, 1))
    index = builder.build()
    assert size_of(index) == pytest.approx(count * (13 + 32 + 6 * 8), rel=1e-3)
    tracemalloc.start()
    kept = index.take(np.flatnonzero(np.arange(count) % 20 != 0))  # as a split takes most of them
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size_of(kept) == pytest.approx(0.95 * size_of(index), rel=1e-3)
    assert held < 1.05 * size_of(kept)
    assert peak < 2 * size_of(kept)
    assert (kept.keys[len(kept) - 1], kept.captions[len(kept) - 1]) == ("000199999.jpg", (caption,))
    assert len(pickle.dumps(kept)) < 1.01 * size_of(kept)  # for workers that are not forked


def test_digest_depends_on_content_and_boundaries():
    parts = [(b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"ab", b"c", b""), (np.arange(3), b""), (np.arange(4), b"")]
    assert len({digest_of(*contents) for contents in parts}) == len(parts)
    assert digest_of(b"ab", b"c") == digest_of(b"ab", b"c")
    assert digest_of(np.arange(6).reshape(2, 3)[:, ::2]) == digest_of(np.array([0, 2, 3, 5]))


def test_empty_index_has_no_records():
    index = IndexBuilder().build()
    assert isinstance(index, Index) and len(index) == 0
    assert len(index.take(np.array([], np.int64))) == 0
