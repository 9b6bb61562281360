"""Find near duplicates among many images by perceptual hash, with sorting instead of all-pairs comparison."""

from itertools import combinations

import numpy as np

from dalle.data.audit.fingerprints import NEAR_BITS, NEAR_LEVELS, differing_bits, differing_levels

REACH = 256  # maximum comparisons per image in sorted order, so that many equal images do not give quadratic cost


def groups_of_near_copies(prints: np.ndarray) -> list[np.ndarray]:
    """Return groups of two or more near duplicates (connected components of near-duplicate pairs).

    prints: (n) FINGERPRINT. Returns the sorted positions of each group, largest group first. Finds all pairs with
    hashes that differ in at most `NEAR_BITS` bits and colours that differ by at most `NEAR_LEVELS`. Exception: pairs
    may be missed if more than `REACH` hashes agree in half of their bits.
    """
    readable = np.flatnonzero(prints["readable"])
    found = np.ascontiguousarray(prints[readable])
    # the big-endian hash comes first, so that rows sort by hash and equal rows are adjacent
    rows = np.concatenate([found["hash"].astype(">u8").view("u1").reshape(-1, 8), found["colours"].reshape(-1, 48)], 1)
    _, first, which = np.unique(rows.view("V56").reshape(-1), return_index=True, return_inverse=True)
    label = _joined(len(first), _near_pairs(found[first]))[which.reshape(-1)]
    order = np.argsort(label, kind="stable")
    groups = np.split(readable[order], np.flatnonzero(np.diff(label[order])) + 1) if len(order) else []
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0]))


def _near_pairs(prints: np.ndarray) -> np.ndarray:
    """Return near-duplicate pairs (m, 2) among `prints`, which are sorted by hash. Pairs may be repeated."""
    hashes, colours = prints["hash"], prints["colours"]
    pairs = [np.empty((0, 2), np.int64)]
    for mask in _masks():
        kept = hashes & mask
        order = np.argsort(kept, kind="stable")  # equal values under the mask stay sorted by hash
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
    """Return masks for every choice of half of the 2 * NEAR_BITS blocks of a hash.

    NEAR_BITS differing bits leave at least NEAR_BITS blocks unchanged, so near hashes are equal under at least one
    mask.
    """
    blocks = [sum(1 << int(bit) for bit in bits) for bits in np.array_split(np.arange(64), 2 * NEAR_BITS)]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, NEAR_BITS)]


def _joined(count: int, pairs: np.ndarray) -> np.ndarray:
    """Label the connected components of `pairs` (m, 2): returns (count) labels, the smallest member of each."""
    # like scipy.sparse.csgraph.connected_components, but SciPy is an extra and this module does not need it
    label = np.arange(count)
    one, other = pairs.T
    while True:
        least = np.minimum(label[one], label[other])
        joined = label.copy()
        for end in (label[one], label[other]):  # update the labels of both ends, so that whole groups merge
            np.minimum.at(joined, end, least)
        joined = joined[joined]
        if np.array_equal(joined, label):
            return label
        label = joined
