"""Near copies among many pictures, by their fingerprints: sorted, never each compared with each."""

from itertools import combinations

import numpy as np

from dalle.data.audit.fingerprints import NEAR_BITS, NEAR_LEVELS, differing_bits, differing_levels

REACH = 256  # neighbours in sorted order that each is compared with, lest a thousand alike make a million pairs


def groups_of_near_copies(prints: np.ndarray) -> list[np.ndarray]:
    """Groups of two or more pictures that are near copies, or near copies of near copies, of each other.

    prints: (n) FINGERPRINT. Gives each group's positions in order, the largest group first. All pairs whose hashes
    differ in at most `NEAR_BITS` and whose colours differ by at most `NEAR_LEVELS` are found, but where more than
    `REACH` hashes are alike in half of their bits: there a pair may be missed.
    """
    readable = np.flatnonzero(prints["readable"])
    found = np.ascontiguousarray(prints[readable])
    # the hash comes first and big-endian, so that equal fingerprints lie together and are in the order of hashes
    rows = np.concatenate([found["hash"].astype(">u8").view("u1").reshape(-1, 8), found["colours"].reshape(-1, 48)], 1)
    _, first, which = np.unique(rows.view("V56").reshape(-1), return_index=True, return_inverse=True)
    label = _joined(len(first), _near_pairs(found[first]))[which.reshape(-1)]
    order = np.argsort(label, kind="stable")
    groups = np.split(readable[order], np.flatnonzero(np.diff(label[order])) + 1) if len(order) else []
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0]))


def _near_pairs(prints: np.ndarray) -> np.ndarray:
    """(m, 2): pairs of near copies among `prints`, which are in the order of their hashes; one may come twice."""
    hashes, colours = prints["hash"], prints["colours"]
    pairs = [np.empty((0, 2), np.int64)]
    for mask in _masks():
        kept = hashes & mask
        order = np.argsort(kept, kind="stable")  # what is equal under the mask stays in the order of hashes
        kept = kept[order]
        for step in range(1, min(REACH + 1, len(order))):
            place = np.flatnonzero(kept[:-step] == kept[step:])
            if len(place) == 0:
                break
            one, other = order[place], order[place + step]
            near = differing_bits(hashes[one], hashes[other]) <= NEAR_BITS
            one, other = one[near], other[near]
            near = differing_levels(colours[one], colours[other]) <= NEAR_LEVELS
            pairs.append(np.stack([one[near], other[near]], axis=1))
    return np.concatenate(pairs)


def _masks() -> list[np.uint64]:
    """Every choice of half of the 2 * NEAR_BITS blocks that a hash is cut into.

    NEAR_BITS differing bits leave at least as many blocks untouched: near hashes are equal under one mask or more.
    """
    blocks = [sum(1 << int(bit) for bit in bits) for bits in np.array_split(np.arange(64), 2 * NEAR_BITS)]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, NEAR_BITS)]


def _joined(count: int, pairs: np.ndarray) -> np.ndarray:
    """(count) labels, equal for all that `pairs` (m, 2) join, directly or by others: the smallest member."""
    # as scipy.sparse.csgraph.connected_components does; but data are looked over without SciPy, which is an extra
    label = np.arange(count)
    one, other = pairs.T
    while True:
        least = np.minimum(label[one], label[other])
        joined = label.copy()
        for end in (label[one], label[other]):  # the members' labels, so that whole groups come along
            np.minimum.at(joined, end, least)
        joined = joined[joined]
        if np.array_equal(joined, label):
            return label
        label = joined
