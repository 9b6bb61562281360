"""Data module: random samples of training images, some of which cannot be read."""

import pytest
from tiny_stages import build
from unreadable_source import PartlyUnreadable

from dalle.data.prefetch import LoadingError

COUNT = 10


def data_module(broken=()):
    data = build("dvae").data
    data.train = PartlyUnreadable(data.train, set(broken))
    return data


def images(broken=(), count: int = COUNT) -> list[bytes]:
    return [each.numpy().tobytes() for each in data_module(broken).sample_of_training(count, number=3)]


@pytest.fixture(scope="module")
def drawn() -> list[int]:
    """Return the records of the sample, found by breaking one record at a time."""
    before = images()
    return [record for record in range(64) if images({record}) != before]


def test_unreadable_images_are_replaced_by_others(drawn):
    before = images()
    assert len(drawn) == COUNT
    after = images(drawn[:3])
    assert len(after) == COUNT
    assert set(before) - set(after) and len(set(before) & set(after)) >= COUNT - 3


def test_images_that_are_not_drawn_change_nothing(drawn):
    assert images(set(range(64)) - set(drawn)) == images()


def test_a_sample_is_smaller_if_few_images_can_be_read():
    assert len(images(set(range(64)) - {5, 9})) == 2


def test_a_sample_of_unreadable_images_raises():
    with pytest.raises(LoadingError, match="none of 64 records can be read; the first is record .*broken for a test"):
        images(range(64))
