"""Token cache: writing, reading, resuming an interrupted encoding, and refusing a cache of other settings."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dalle.data import token_cache
from dalle.data.token_cache import (
    BLOCK_SIZE,
    CACHE,
    ENCODED,
    PENDING,
    STATES,
    UNREADABLE,
    TokenCache,
    TokenCacheMismatch,
    TokenCacheSettings,
)

SETTINGS = TokenCacheSettings(data="d1", image_size=16, transform="transformer", dvae="v1", crops=2)
RECORDS = BLOCK_SIZE + 5


def created(folder: Path, vocabulary: int = 8192) -> TokenCache:
    return TokenCache.create(folder, SETTINGS, RECORDS, 16, vocabulary, {"records": RECORDS})


def fill(cache: TokenCache, blocks: int | None = None) -> np.ndarray:
    """Write random tokens into the remaining blocks, or the first of them; record 3 has none."""
    tokens = np.random.default_rng(0).integers(8192, size=(2, RECORDS, 16))
    for block in list(cache.pending_blocks())[:blocks]:
        rows = np.arange(block.first, block.last)
        cache.write(block, tokens[block.crop, rows], rows != 3)
    return tokens


def test_tokens_round_trip_in_any_order_and_with_numpy(tmp_path):
    tokens = fill(created(tmp_path / "tokens"))
    cache = TokenCache(tmp_path / "tokens", SETTINGS)
    found = cache.read([1, 0, 1], [36, 2, 0])
    assert found.dtype == np.int64
    assert (found == tokens[[1, 0, 1], [36, 2, 0]]).all()
    plain = np.load(tmp_path / "tokens" / "tokens.npy", mmap_mode="r")
    assert plain.dtype == np.uint16
    assert (plain == tokens).all()


def test_records_without_image_are_counted(tmp_path):
    cache = created(tmp_path / "tokens")
    fill(cache)
    assert [cache.is_encoded(crop, 3) for crop in (0, 1)] == [False, False]
    assert cache.is_encoded(1, 4)
    assert [cache.count(state) for state in (PENDING, ENCODED, UNREADABLE)] == [0, 2 * RECORDS - 2, 2]


def test_unreadable_records_are_tried_again_only_on_request(tmp_path):
    cache = created(tmp_path / "tokens")
    tokens = fill(cache)
    assert list(cache.pending_blocks()) == []
    blocks = list(cache.pending_blocks(retry_unreadable=True))
    assert [tuple(block) for block in blocks] == [(crop, 0, BLOCK_SIZE) for crop in (0, 1)]
    rows = np.arange(BLOCK_SIZE)
    for block in blocks:
        cache.write(block, np.where(rows[:, None] == 5, 0, tokens[block.crop, rows]), rows != 5)
    assert cache.count(ENCODED) == 2 * RECORDS  # record 3 is readable now, and record 5 keeps its tokens
    assert (cache.tokens == tokens).all()


@pytest.mark.parametrize(("vocabulary", "dtype"), [(256, np.uint8), (8192, np.uint16), (65537, np.uint32)])
def test_tokens_use_the_smallest_dtype(tmp_path, vocabulary, dtype):
    assert created(tmp_path / "tokens", vocabulary).tokens.dtype == dtype


def test_partial_cache_resumes(tmp_path):
    fill(created(tmp_path / "tokens"), blocks=3)
    cache = created(tmp_path / "tokens")
    assert [tuple(block) for block in cache.pending_blocks()] == [(1, BLOCK_SIZE, RECORDS)]
    tokens = fill(cache)
    assert list(cache.pending_blocks()) == []
    assert (cache.tokens == tokens).all()


def test_unmarked_block_is_written_again(tmp_path, monkeypatch):
    cache = created(tmp_path / "tokens")
    put = cache._write_elements
    monkeypatch.setattr(cache, "_write_elements", lambda path, *rest: None if path.name == STATES else put(path, *rest))
    fill(cache, blocks=1)
    assert cache.tokens.any()
    assert next(created(tmp_path / "tokens").pending_blocks()).first == 0


def test_concurrent_creation_shares_one_cache(tmp_path, monkeypatch):
    fill(created(tmp_path / "tokens"), blocks=1)
    monkeypatch.setattr(token_cache, "is_cache", lambda folder: False)  # a moment before the first one's was there
    assert len(list(created(tmp_path / "tokens").pending_blocks())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": "d2"}, "the digest of the records was d1 and is now d2"),
        ({"image_size": 32}, "the image size was 16 and is now 32"),
        ({"transform": "none", "crops": 1}, "transform was transformer and is now none; crops was 2 and is now 1"),
        ({"dvae": "v2"}, "the digest of the dVAE was v1 and is now v2"),
    ],
    ids=str,
)
def test_cache_of_other_settings_raises_with_the_difference(tmp_path, change, said):
    fill(created(tmp_path / "tokens"))
    other = replace(SETTINGS, **change)
    assert other.digest() != SETTINGS.digest()
    with pytest.raises(TokenCacheMismatch, match=said):
        TokenCache(tmp_path / "tokens", other)
    with pytest.raises(TokenCacheMismatch, match=said):
        TokenCache.create(tmp_path / "tokens", other, RECORDS, 16, 8192, {})


def test_folder_with_other_content_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TokenCacheMismatch, match="is not a token cache"):
        created(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_settings_are_saved_under_the_names_and_the_digest_of_earlier_caches(tmp_path):
    created(tmp_path / "tokens")
    assert json.loads((tmp_path / "tokens" / CACHE).read_text())["kind"] == {
        "data": "d1",
        "image_size": 16,
        "transform": "transformer",
        "dvae": "v1",
        "views": 2,
        "device": "cpu",
        "precision": "float32",
    }
    assert SETTINGS.digest() == "cad3b709768d"


def test_damage_raises(tmp_path):
    created(tmp_path / "tokens")
    whole = (tmp_path / "tokens" / STATES).read_bytes()
    (tmp_path / "tokens" / STATES).write_bytes(whole[:-1])
    with pytest.raises(TokenCacheMismatch, match=r"damaged: .*; delete the folder"):
        TokenCache(tmp_path / "tokens", SETTINGS)
    told = json.loads((tmp_path / "tokens" / CACHE).read_text())
    for content, said in [
        *(("{", "cannot be read"), ("{}", "cannot be read"), (told | {"format": 2}, "has format 2")),
        *((told | {"kind": 5}, "cannot be read"), (told | {"kind": {}}, "cannot be read")),
    ]:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "tokens" / CACHE).write_text(text)
        with pytest.raises(TokenCacheMismatch, match=said):
            TokenCache(tmp_path / "tokens", SETTINGS)


def test_tokens_of_another_device_are_used_with_a_warning_if_given(tmp_path, caplog):
    """A cache encoded on another device may differ where two codes are nearly equally probable."""
    tokens = fill(created(tmp_path / "tokens"))
    elsewhere = replace(SETTINGS, device="cuda")
    assert elsewhere.digest() != SETTINGS.digest()
    assert (TokenCache(tmp_path / "tokens", elsewhere).tokens == tokens).all()
    assert "were encoded on cpu, but this run uses cuda" in caplog.text
    with pytest.raises(TokenCacheMismatch, match="precision was float32 and is now bfloat16"):
        TokenCache(tmp_path / "tokens", replace(SETTINGS, precision="bfloat16"))
