"""Batches of cached tokens: the records and crops of the batches of images whose tokens they are."""

import os
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered_source import SIZE, Numbered, taken

from dalle.data.collate import TokenBatch
from dalle.data.index import StringArray
from dalle.data.loader import encoder_batches, image_batches, token_batches
from dalle.data.source import Record
from dalle.data.token_cache import RecordBlock, TokenCache, TokenCacheSettings
from dalle.data.transforms import dvae_augmentation, inference_crop


def made_up_tokens(images: torch.Tensor) -> torch.Tensor:
    """Compute four numbers that identify an image: (b, 3, s, s) -> (b, 4)."""
    return images[:, :, :2, :2].sum(dim=1, dtype=torch.int64).flatten(1)


def encoded(source: Numbered, folder: Path, count: int) -> TokenCache:
    """Return a cache of `count` crops of all records."""
    kind = TokenCacheSettings(source.digest(), SIZE, "dvae", "made up", count)
    cache = TokenCache.create(folder, kind, len(source), positions=4, vocabulary=766, about={})
    for seen in encoder_batches(source, dvae_augmentation, list(cache.pending_blocks())):
        cache.write(seen.block, made_up_tokens(seen.images).numpy(), seen.readable)
    return cache


def tokens_taken(count: int, source: Numbered, cache: TokenCache, **options) -> list[TokenBatch]:
    settings = {"batch_size": 3, "seed": 0} | options
    return list(islice(token_batches(source, cache, **settings), count))


@pytest.mark.parametrize(("rank", "world_size", "start"), [(0, 1, 0), (0, 1, 5), (1, 2, 2)])
def test_one_crop_per_epoch_matches_batches_of_images(tmp_path, rank, world_size, start):
    source = Numbered(11, broken=(4,))
    cache = encoded(source, tmp_path / "tokens", 4)
    options = {"seed": 0, "rank": rank, "world_size": world_size, "start": start}
    count = 4 * 11 // (3 * world_size) - start
    opened, read = taken(count, source, **options), tokens_taken(count, source, cache, **options)
    assert len(opened) == len(read) == count
    for pictures, tokens in zip(opened, read, strict=True):
        assert tokens.tokens.equal(made_up_tokens(pictures.images))
        assert (tokens.captions, tokens.keys) == (pictures.captions, pictures.keys)
        assert tokens.unreadable.keys() == pictures.unreadable.keys()


def test_crops_repeat_after_the_last(tmp_path):
    source = Numbered(6)
    cache = encoded(source, tmp_path / "tokens", 2)
    epochs = [{}, {}, {}, {}]
    for epoch in range(4):
        for batch in tokens_taken(2, source, cache, seed=3, start=2 * epoch):
            epochs[epoch] |= dict(zip(batch.keys, batch.tokens.tolist(), strict=True))
    assert epochs[0] == epochs[2] and epochs[1] == epochs[3]
    assert all(epochs[0][key] != epochs[1][key] for key in epochs[0])


def test_reading_tokens_opens_no_image(tmp_path):
    cache = encoded(Numbered(6), tmp_path / "tokens", 1)

    class Closed(Numbered):
        def __getitem__(self, index: int) -> Record:
            pytest.fail("opened")

    assert len(tokens_taken(3, Closed(6), cache)) == 3


def test_workers_encode_the_same_tokens(tmp_path):
    source = Numbered(40, broken=(7, 39))
    cache = encoded(source, tmp_path / "tokens", 1)
    seen = list(encoder_batches(source, dvae_augmentation, [RecordBlock(0, 0, 32), RecordBlock(0, 32, 40)], workers=2))
    assert torch.cat([made_up_tokens(batch.images) for batch in seen]).numpy().tolist() == cache.tokens[0].tolist()
    assert [list(batch.unreadable) for batch in seen] == [["record 7"], ["record 39"]]
    assert np.flatnonzero(~np.concatenate([batch.readable for batch in seen])).tolist() == [7, 39]


def test_one_million_records_take_only_the_memory_of_their_arrays(tmp_path):
    records = 1_000_000

    class Million(Numbered):
        names = StringArray(b"x" * 8 * records, np.arange(records + 1) * 8)

        def keys(self) -> StringArray:
            return self.names

    source = Million(records)
    cache = TokenCache.create(tmp_path / "tokens", TokenCacheSettings("", SIZE, "none", "", 1), records, 16, 8192, {})
    with open(tmp_path / "tokens" / "states.npy", "r+b") as file:
        file.seek(-records, os.SEEK_END)
        file.write(b"\1" * records)
    streams = (
        token_batches(source, cache, batch_size=64, seed=0),
        image_batches(source, inference_crop, batch_size=4, seed=0),
    )
    tracemalloc.start()
    try:
        for stream in streams:
            assert len(list(islice(stream, 50))) == 50
        first = tracemalloc.get_traced_memory()[0]
        for stream in streams:
            list(islice(stream, 50))
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - first < 100_000
    assert peak < 6 * 8 * records  # an order of eight bytes each for either stream, and what numpy needs to draw it
