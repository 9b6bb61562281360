"""Stream of results: batches of sampled tokens are collected by caption, and each caption's best images selected."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from dalle.sampling.decode import SampledBatch
from dalle.sampling.progress_bar import SamplingStopped
from dalle.sampling.results import Result, SelectBest


def stream_results(
    batches: Iterable[SampledBatch],
    captions: Sequence[str],
    ids: Tensor,
    candidate_offsets: Sequence[int],
    select_best: SelectBest,
) -> Iterator[Result]:
    """Yield the result of each caption as soon as its candidates are sampled, without keeping earlier results.

    If `batches` raises `SamplingStopped`, the finished candidates of the current caption, if any, are ranked and
    yielded last.

    ids: (captions, T), the captions' token ids.
    candidate_offsets: number of the first candidate of each caption.
    """
    finished: list[Tensor] = []  # finished candidates of the current caption
    current = 0  # index of the current caption
    try:
        for batch in batches:
            for current, tokens in enumerate(batch.tokens, batch.caption):
                finished.append(tokens)
                if batch.candidate + len(tokens) == select_best.config.candidates:
                    yield select_best(captions[current], ids[current], torch.cat(finished), candidate_offsets[current])
                    finished = []
    except SamplingStopped:
        if finished:
            yield select_best(captions[current], ids[current], torch.cat(finished), candidate_offsets[current])
