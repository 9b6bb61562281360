"""Find near duplicates among many images by perceptual hash, with sorting instead of all-pairs comparison."""

from itertools import combinations

import numpy as np

from dalle.data.audit.perceptual_hash import NEAR_BITS, NEAR_LEVELS, colour_distance, hamming_distance

MAX_COMPARISONS = 256  # per image, in sorted order, so that many equal images do not give quadratic cost


def find_near_duplicates(hashes: np.ndarray) -> list[np.ndarray]:
    """Return groups of two or more near duplicates (connected components of near-duplicate pairs).

    hashes: (n) HASH_DTYPE. Returns the sorted positions of each group, largest group first. Finds all pairs with
    hashes that differ in at most `NEAR_BITS` bits and colours that differ by at most `NEAR_LEVELS`. Exception: pairs
    may be missed if more than `MAX_COMPARISONS` hashes agree in half of their bits.
    """
    readable = np.flatnonzero(hashes["readable"])
    selected = np.ascontiguousarray(hashes[readable])
    # the big-endian hash comes first, so that rows sort by hash and equal rows are adjacent
    rows = np.concatenate(
        [selected["hash"].astype(">u8").view("u1").reshape(-1, 8), selected["colours"].reshape(-1, 48)], 1
    )
    _, first, inverse = np.unique(rows.view("V56").reshape(-1), return_index=True, return_inverse=True)
    label = _connected_components(len(first), _near_pairs(selected[first]))[inverse.reshape(-1)]
    order = np.argsort(label, kind="stable")
    groups = np.split(readable[order], np.flatnonzero(np.diff(label[order])) + 1) if len(order) else []
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0]))


def _near_pairs(hashes: np.ndarray) -> np.ndarray:
    """Return near-duplicate pairs (m, 2) among `hashes`, which are sorted by hash. Pairs may be repeated."""
    bits, colours = hashes["hash"], hashes["colours"]
    pairs = [np.empty((0, 2), np.int64)]
    for mask in _masks():
        masked = bits & mask
        order = np.argsort(masked, kind="stable")  # equal values under the mask stay sorted by hash
        masked = masked[order]
        for step in range(1, min(MAX_COMPARISONS + 1, len(order))):
            position = np.flatnonzero(masked[:-step] == masked[step:])
            if len(position) == 0:
                break
            left, right = order[position], order[position + step]
            is_near = hamming_distance(bits[left], bits[right]) <= NEAR_BITS
            left, right = left[is_near], right[is_near]
            is_near = colour_distance(colours[left], colours[right]) <= NEAR_LEVELS
            pairs.append(np.stack([left[is_near], right[is_near]], axis=1))
    return np.concatenate(pairs)


def _masks() -> list[np.uint64]:
    """Return masks for every choice of half of the 2 * NEAR_BITS blocks of a hash.

    NEAR_BITS differing bits leave at least NEAR_BITS blocks unchanged, so near hashes are equal under at least one
    mask.
    """
    blocks = [sum(1 << int(bit) for bit in bits) for bits in np.array_split(np.arange(64), 2 * NEAR_BITS)]
    return [np.uint64(sum(combination)) for combination in combinations(blocks, NEAR_BITS)]


def _connected_components(count: int, pairs: np.ndarray) -> np.ndarray:
    """Label the connected components of `pairs` (m, 2): returns (count) labels, the smallest member of each."""
    # like scipy.sparse.csgraph.connected_components, but SciPy is an extra and this module does not need it
    labels = np.arange(count)
    left, right = pairs.T
    while True:
        least = np.minimum(labels[left], labels[right])
        merged = labels.copy()
        for end_labels in (labels[left], labels[right]):  # update the labels of both ends, so that whole groups merge
            np.minimum.at(merged, end_labels, least)
        merged = merged[merged]
        if np.array_equal(merged, labels):
            return labels
        labels = merged
