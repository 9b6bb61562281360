import numpy as np

from dalle.data.audit.near_duplicates import find_near_duplicates
from dalle.data.audit.perceptual_hash import HASH_DTYPE, NEAR_BITS, NEAR_LEVELS, colour_distance, hamming_distance


def prints_of(hashes) -> np.ndarray:
    prints = np.zeros(len(hashes), HASH_DTYPE)
    prints["hash"], prints["readable"] = hashes, True
    return prints


def flipped(hash_: int, *bits: int) -> int:
    return hash_ ^ sum(1 << bit for bit in bits)


def each_with_each(prints: np.ndarray) -> set[frozenset[int]]:
    """Reference: compare every pair, then join."""
    group = list(range(len(prints)))
    for one in range(len(prints)):
        near = hamming_distance(prints["hash"], prints["hash"][one]) <= NEAR_BITS
        near &= colour_distance(prints["colours"], prints["colours"][one]) <= NEAR_LEVELS
        for other in np.flatnonzero(near):
            old, new = group[other], group[one]
            group = [new if label == old else label for label in group]
    sets = [frozenset(place for place, label in enumerate(group) if label == name) for name in set(group)]
    return {members for members in sets if len(members) > 1}


def test_groups_match_pairwise_comparison():
    generator = np.random.default_rng(0)
    hashes = []
    for centre in generator.integers(0, 2**63, 40, dtype=np.uint64):
        for _ in range(5):
            hashes.append(flipped(int(centre), *generator.choice(64, generator.integers(0, 4), replace=False).tolist()))
    prints = prints_of(np.array(hashes, np.uint64))
    prints["colours"] = generator.integers(0, 2, (len(prints), 1, 1, 1)) * (NEAR_LEVELS + 1)
    found = find_near_duplicates(prints)
    assert {frozenset(group.tolist()) for group in found} == each_with_each(prints)
    assert [len(group) for group in found] == sorted((len(group) for group in found), reverse=True)


def test_groups_are_transitive():
    a = 0x0123_4567_89AB_CDEF
    b, c = flipped(a, 0, 20, 40), flipped(a, 0, 20, 40, 1, 21, 41)
    (group,) = find_near_duplicates(prints_of([a, 7, c, b]))
    assert group.tolist() == [0, 2, 3]


def test_distance_above_threshold_or_other_colour_is_no_duplicate():
    assert find_near_duplicates(prints_of([5, flipped(5, 9, 19, 29, 39)])) == []
    prints = prints_of([5, 5])
    prints["colours"][1, 2, 3, 0] = NEAR_LEVELS + 1
    assert find_near_duplicates(prints) == []


def test_unreadable_images_have_no_duplicates():
    prints = prints_of([5, 5, 5])
    prints["readable"][1] = False
    (group,) = find_near_duplicates(prints)
    assert group.tolist() == [0, 2]
    assert find_near_duplicates(prints[:0]) == []


def test_thousands_of_equal_images_are_fast():
    hashes = np.random.default_rng(0).integers(0, 2**63, 30_000, dtype=np.uint64)
    hashes[:20_000] = hashes[0]
    (group,) = find_near_duplicates(prints_of(hashes))
    assert group.tolist() == list(range(20_000))
