"""The pairs that are measured: the first of a split, whatever the batches, and a digest that tells them from others."""

import pytest
import torch

from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.evaluation.held_out import HeldOut, unit


def source(**changes) -> BlocksSource:
    return BlocksSource(BlocksConfig(**{"image_size": 8, "val": 12, **changes}), "val")


def passed(count: int, batch_size: int = 64, **changes) -> dict:
    pairs = HeldOut(source(**changes), count, batch_size)
    for _ in pairs:
        pass
    return pairs.described()


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(5, 2, [2, 2, 1]), (12, 8, [8, 4]), (99, 5, [5, 5, 2])])
def test_the_first_pairs_come_in_order_once_each(count, batch_size, sizes):
    pairs = HeldOut(source(), count, batch_size)
    batches = list(pairs)
    assert [len(batch.captions) for batch in batches] == [len(batch.images) for batch in batches] == sizes
    keys = [key for batch in batches for key in batch.keys]
    assert keys == [f"val/{index:06d}" for index in range(min(count, 12))]
    assert pairs.seen == min(count, 12)


def test_the_digest_is_of_the_pairs_and_not_of_the_batches():
    assert passed(7, 3) == passed(7, 64)
    assert passed(7)["digest"] != passed(6)["digest"]
    assert passed(7)["digest"] != passed(7, seed=1)["digest"]


def test_another_caption_or_another_pixel_is_another_digest(monkeypatch):
    before = passed(7)["digest"]
    original = BlocksSource.__getitem__
    for change in ("captions", "image"):

        def changed(self, index, change=change):
            record = original(self, index)
            if change == "captions":
                return type(record)(record.image, ("another", *record.captions), record.key)
            image = record.image.copy()
            image.putpixel((0, 0), (0, 0, 0))
            return type(record)(image, record.captions, record.key)

        with monkeypatch.context() as patch:
            patch.setattr(BlocksSource, "__getitem__", changed)
            assert passed(7)["digest"] != before


def test_passing_through_again_begins_anew():
    pairs = HeldOut(source(), 7)
    described = [(list(pairs), pairs.described())[1] for _ in range(2)]
    assert described[0] == described[1] == passed(7)


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="0 pictures are none to measure"):
        HeldOut(source(), 0)


def test_pixels_are_taken_to_the_unit_interval():
    assert unit(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
