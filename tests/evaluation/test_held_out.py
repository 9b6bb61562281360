"""Held-out pairs: the first of a split in order, for any batch size, and a digest of their content."""

import pytest
import torch
from unreadable_source import PartlyUnreadable

from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.data.collate import ImageBatch
from dalle.evaluation.held_out import HeldOut, captions_of, readable_images
from dalle.image_conversion import to_unit_range


def source(**changes) -> BlocksSource:
    return BlocksSource(BlocksConfig(**{"image_size": 8, "val": 12, **changes}), "val")


def settings_of(count: int, batch_size: int = 64, **changes) -> dict:
    pairs = HeldOut(source(**changes), count, batch_size)
    for _ in pairs:
        pass
    return pairs.settings()


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(5, 2, [2, 2, 1]), (12, 8, [8, 4]), (99, 5, [5, 5, 2])])
def test_first_pairs_in_order(count, batch_size, sizes):
    pairs = HeldOut(source(), count, batch_size)
    batches = list(pairs)
    assert [len(batch.captions) for batch in batches] == [len(batch.images) for batch in batches] == sizes
    keys = [key for batch in batches for key in batch.keys]
    assert keys == [f"val/{index:06d}" for index in range(min(count, 12))]
    assert pairs.num_pairs == min(count, 12)


def test_digest_does_not_depend_on_the_batch_size():
    assert settings_of(7, 3) == settings_of(7, 64)
    assert settings_of(7)["digest"] != settings_of(6)["digest"]
    assert settings_of(7)["digest"] != settings_of(7, seed=1)["digest"]


def test_digest_depends_on_captions_and_pixels(monkeypatch):
    before = settings_of(7)["digest"]
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
            assert settings_of(7)["digest"] != before


def test_settings_refer_to_the_last_iteration():
    pairs = HeldOut(source(), 7)
    settings = [(list(pairs), pairs.settings())[1] for _ in range(2)]
    assert settings[0] == settings[1] == settings_of(7)


def test_record_without_a_caption_is_named():
    batch = ImageBatch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["a red circle", " "], ["a.png", "b.png"])
    with pytest.raises(ValueError, match=r"record b\.png has no caption .*data\.allow_missing_captions=false leaves"):
        captions_of(batch)


def test_count_below_one_raises():
    with pytest.raises(ValueError, match="cannot evaluate on 0 pairs"):
        HeldOut(source(), 0)


def test_pixels_are_scaled_to_the_unit_range():
    assert to_unit_range(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])


@pytest.mark.parametrize(
    ("broken", "records"),
    [
        (set(), [0, 3, 4, 8]),
        ({3, 8}, [0, 4, 5, 9]),
        ({0, 1, 2, 3, 4, 5, 6}, [7, 8, 9, 10]),
        ({8, 9, 10, 11}, [0, 3, 4]),
    ],
)
def test_the_next_readable_record_replaces_an_unreadable_one(broken, records):
    assert [record for record, _ in readable_images(PartlyUnreadable(source(), broken), [0, 3, 4, 8])] == records
