import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dalle.models.transformer.model import Transformer
from dalle.sampling import decode
from dalle.sampling.canvas import Canvas
from dalle.sampling.cuda_graphs import decoding_step
from dalle.sampling.decode import MASKED, sample_all_tokens
from dalle.sampling.inpainting import (
    band_of_rows,
    inpaint_batches,
    inpaint_canvas,
    inpaint_window,
    suffix_log_likelihood,
)
from dalle.sampling.likelihood import token_log_likelihood
from dalle.sampling.sampling_config import DecodingConfig


def captions(model: Transformer) -> Tensor:
    return model.sequence.pad_captions([[1, 2, 3], [4]])


def picture() -> Tensor:
    return torch.arange(16).view(4, 4) * 5 % 13


def hole() -> Tensor:
    free = torch.zeros(4, 4, dtype=torch.bool)
    free[1:3, 1:3] = True
    return free


def inpainted(
    model: Transformer, canvas: Canvas, candidates: int = 6, candidate_offset: int = 0, on_progress=None, **settings
) -> Tensor:
    images = torch.full((2, candidates, *canvas.tokens.shape[-2:]), MASKED)
    options = {"canvas": canvas, "candidate_offset": candidate_offset, "on_progress": on_progress}
    for batch in inpaint_batches(model, captions(model), candidates, DecodingConfig(**settings), **options):
        rows, columns = batch.tokens.shape[:2]
        images[batch.caption : batch.caption + rows, batch.candidate : batch.candidate + columns] = batch.tokens
    return images


def kept_likelihood(model: Transformer, images: Tensor, free: Tensor) -> Tensor:
    cells = [token_log_likelihood(model, text, some) for text, some in zip(captions(model), images, strict=True)]
    return torch.stack(cells).masked_fill(free, 0).sum(dim=(-2, -1))


def test_without_sweeps_matches_ordinary_decoding(make_transformer):
    model = make_transformer()
    tokens = picture().masked_fill(hole(), MASKED)
    expected = sample_all_tokens(model, captions(model), 6, DecodingConfig(seed=3), canvas=tokens)
    assert inpainted(model, Canvas(tokens), seed=3).equal(expected)


@pytest.mark.parametrize("refinement_passes", [0, 1, 3])
def test_kept_tokens_are_kept(make_transformer, refinement_passes):
    images = inpainted(
        make_transformer(),
        Canvas(picture().masked_fill(hole(), MASKED), refinement_passes=refinement_passes, proposals=2),
    )
    assert (images == picture())[..., ~hole()].all()
    assert images.min() >= 0


def test_candidates_can_have_different_kept_cells(make_transformer):
    free = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    images = inpainted(
        make_transformer(), Canvas(torch.where(free, MASKED, picture()), refinement_passes=2, proposals=2)
    )
    assert (images == picture())[(~free).expand(images.shape)].all()
    assert images.min() >= 0


def test_sweeps_never_lower_the_likelihood_of_kept_tokens(make_transformer):
    model, tokens = make_transformer(), picture().masked_fill(hole(), MASKED)
    found = [
        kept_likelihood(
            model,
            inpainted(model, Canvas(tokens, refinement_passes=refinement_passes, proposals=proposals), seed=4),
            hole(),
        )
        for refinement_passes, proposals in [(0, 1), (1, 1), (1, 4), (1, 12)]
    ]
    for before, after in itertools.pairwise(found):
        assert (after >= before - 1e-4).all()
        assert (after > before + 0.1).any()


@pytest.mark.parametrize("refinement_passes", [1, 2])
def test_sweeps_change_nothing_without_kept_cells_after_the_hole(make_transformer, refinement_passes):
    model, tokens, told = make_transformer(), picture(), []
    tokens[1:] = MASKED
    expected = inpainted(model, Canvas(tokens), seed=2)
    canvas = Canvas(tokens, refinement_passes=refinement_passes, proposals=3)
    assert inpainted(model, canvas, seed=2, on_progress=told.append).equal(expected)
    assert len(told) == 12  # sampled positions of one pass: no proposals are sampled
    # the same beside a candidate that has kept cells after its hole
    mixed = replace(canvas, tokens=torch.stack([tokens, picture().masked_fill(hole(), MASKED)]))
    assert inpainted(model, mixed, candidates=2, seed=2)[:, 0].equal(expected[:, 0])


def test_a_window_without_kept_cells_after_its_hole_does_not_move_the_seeds_of_others(make_transformer):
    model = make_transformer()
    seeds = {}
    for row, column in ((0, 0), (3, 3)):  # the only kept token: the first or the last one of the first window
        tokens, asked = torch.full((4, 8), MASKED), []
        tokens[row, column] = 7

        def draw(*, canvas: Tensor, seed: int, asked: list[int] = asked) -> Tensor:
            asked.append(seed)
            return sample_all_tokens(model, captions(model), 2, DecodingConfig(seed=seed), canvas=canvas)

        canvas = Canvas(tokens, windows=((0, 0), (0, 4)), refinement_passes=1, proposals=2)
        inpaint_canvas(tokens.expand(2, 2, 4, 8), canvas, 4, draw, torch.zeros_like, seed=5)
        seeds[column] = asked
    assert len(seeds[3]) == 4
    assert seeds[0] == [seeds[3][0], seeds[3][3]]


def test_suffix_log_likelihood_sums_kept_cells_after_the_first_free_one():
    likelihoods = torch.arange(16.0).view(4, 4)
    assert suffix_log_likelihood(hole(), likelihoods) == sum([7, 8, 11, 12, 13, 14, 15])


def test_sweep_chooses_the_likeliest_proposal(make_transformer):
    model, free = make_transformer(), torch.zeros(4, 4, dtype=torch.bool)
    free[1, 2] = True
    every = picture().expand(2, 13, 4, 4).clone()
    every[..., 1, 2] = torch.arange(13)
    best = kept_likelihood(model, every, free).argmax(dim=1)
    # at this temperature each of the 13 tokens is about as likely to be drawn, so 60 draws miss none
    canvas = Canvas(picture().masked_fill(free, MASKED), refinement_passes=1, proposals=60)
    images = inpainted(model, canvas, candidates=1, temperature=50)
    assert images[:, 0, 1, 2].tolist() == best.tolist()


@pytest.mark.parametrize("batch_size", [2, 4])
def test_candidates_depend_only_on_index_and_seed(make_transformer, batch_size):
    model = make_transformer()
    tokens = picture().repeat(8, 1, 1)
    tokens[torch.rand(8, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.6] = MASKED
    expected = inpainted(model, Canvas(tokens, refinement_passes=2, proposals=2), candidates=8, seed=1)
    some = Canvas(tokens[3:6], refinement_passes=2, proposals=2)
    assert inpainted(model, some, candidates=3, seed=1, candidate_offset=3, batch_size=batch_size).equal(
        expected[:, 3:6]
    )
    assert not inpainted(model, some, candidates=3, seed=2, candidate_offset=3).equal(expected[:, 3:6])


def test_proposals_of_a_sweep_differ(make_transformer):
    model, seen = make_transformer(), []

    def draw(*, canvas: Tensor, seed: int) -> Tensor:
        seen.append(sample_all_tokens(model, captions(model), 2, DecodingConfig(seed=seed), canvas=canvas))
        return seen[-1]

    given = picture().masked_fill(hole(), MASKED).repeat(2, 2, 1, 1)
    before = given.clone()
    inpaint_canvas(given, Canvas(given[0, 0], refinement_passes=1, proposals=5), 4, draw, torch.zeros_like, seed=0)
    assert len({tuple(images.flatten().tolist()) for images in seen}) == 6
    assert given.equal(before)  # the caller's stay as they were


def test_windows_condition_on_earlier_windows():
    """Windows of 4 x 4 cells over a canvas of 4 x 8, of which the first 2 columns are kept."""
    given = torch.full((1, 1, 4, 8), MASKED)
    given[..., :2] = 7
    asked = []

    def draw(*, canvas: Tensor, seed: int) -> Tensor:
        asked.append(canvas.clone())
        return canvas.where(canvas != MASKED, torch.tensor(len(asked)))

    canvas = Canvas(given[0, 0], windows=((0, 0), (0, 2), (0, 4)))
    images = inpaint_canvas(given, canvas, 4, draw, torch.zeros_like, seed=0)
    assert [window[0, 0, 0].tolist() for window in asked] == [[7, 7, -1, -1], [1, 1, -1, -1], [2, 2, -1, -1]]
    assert images[0, 0, 0].tolist() == [7, 7, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_bands_of_rows_partition_free_cells(bands):
    free = torch.rand(20, 6, 5, generator=torch.Generator().manual_seed(1)) < 0.3
    free[0] = False
    cut = torch.stack([band_of_rows(free, bands, number) for number in range(bands)])
    assert cut.sum(dim=0).equal(free.long())
    for image in range(20):
        rows = [band[image].any(dim=-1).nonzero().flatten().tolist() for band in cut]
        assert sum(rows, []) == free[image].any(dim=-1).nonzero().flatten().tolist()
        assert max(map(len, rows)) - min(map(len, rows)) <= 1


@pytest.mark.parametrize(("tokens", "passes"), [(torch.full((4, 4), MASKED), 1), (picture(), 1 + 2 * 3)])
def test_progress_sums_to_images(make_transformer, tokens, passes):
    told = []
    canvas = Canvas(tokens.masked_fill(hole(), MASKED), refinement_passes=2, proposals=2)
    inpainted(make_transformer(), canvas, candidates=3, batch_size=2, on_progress=told.append)
    assert canvas.sampling_passes(4) == passes
    assert sum(told) == pytest.approx(6)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": 1}], ids=str)
def test_greedy_proposals_are_compared_once(make_transformer, monkeypatch, settings):
    model = make_transformer()
    canvas = Canvas(picture().masked_fill(hole(), MASKED), refinement_passes=2, proposals=4)
    samplings, told = [], []
    sample = decode.TokenSampler.sample
    monkeypatch.setattr(decode.TokenSampler, "sample", lambda *options: samplings.append(1) or sample(*options))
    images = inpainted(model, canvas, on_progress=told.append, **settings)
    assert len(samplings) == 1 + 3
    assert sum(told) == pytest.approx(12)
    monkeypatch.setattr(DecodingConfig, "greedy", False)
    assert inpainted(model, canvas, **settings).equal(images)
    assert len(samplings) == 4 + 1 + 3 * 4


def test_bands_without_rows_are_not_sampled_and_do_not_move_the_seeds_of_others():
    """A hole of 2 rows has bands without rows from the third pass on."""
    tokens, used, scored = picture().masked_fill(hole(), MASKED).expand(1, 1, 4, 4), [], []

    def sample(*, canvas: Tensor, seed: int) -> Tensor:
        used.append((seed, int((canvas == MASKED).sum())))
        return canvas.clamp(min=0)

    def log_likelihood(images: Tensor) -> Tensor:
        scored.append(1)
        return torch.zeros(images.shape)

    inpaint_window(tokens, 2, 4, sample, log_likelihood, itertools.count())
    passes = [(1, 2), (3, 4, 5, 6), (7, 8, 9, 10), (13, 14, 17, 18)]  # 11, 12, 15, 16 and 19, 20 are left out
    assert [seed for seed, _ in used] == [0, *itertools.chain(*passes)]
    assert all(cells for _, cells in used)
    assert len(scored) == 3 * 7  # the images and two proposals for each band with rows


def test_canvas_of_wrong_shape_raises_before_decoding(make_transformer):
    with pytest.raises(ValueError, match="5 x 5 tokens, but the model samples 4 x 4"):
        inpainted(make_transformer(), Canvas(torch.full((5, 5), MASKED)))


def test_windows_and_sweeps_share_one_cache_and_one_prefill(make_transformer, monkeypatch):
    """Otherwise each would capture its own CUDA graph on a GPU."""
    made, read = [], []
    model = make_transformer()
    monkeypatch.setattr(decode, "decoding_step", lambda *a: made.append(a) or decoding_step(*a))
    monkeypatch.setattr(model, "prefill", lambda caption, of=model.prefill: read.append(caption) or of(caption))
    canvas = Canvas(torch.full((4, 8), MASKED), windows=((0, 0), (0, 2), (0, 4)), refinement_passes=1, proposals=2)
    inpainted(model, canvas, candidates=2, batch_size=4)
    assert (len(made), len(read)) == (1, 1)


def test_the_token_callback_sees_the_whole_canvas_and_no_rejected_proposal(make_transformer):
    """Windows of 4 x 4 cells over a canvas of 4 x 6, of which the first 4 columns are kept."""
    model, seen = make_transformer(), []
    given = torch.full((4, 6), MASKED)
    given[:, :4] = picture()
    canvas = Canvas(given, windows=((0, 2),), refinement_passes=1, proposals=3)
    options = {"canvas": canvas, "on_tokens": lambda grids: seen.append(grids.clone())}
    (batch,) = inpaint_batches(model, captions(model), 2, DecodingConfig(seed=1), **options)
    assert len(seen) == 16 + 3  # each position of the first pass, and each step of the refinement
    assert all(grids[..., :4].equal(picture().expand(2, 2, 4, 4)) for grids in seen)
    assert (seen[0][..., 4:] == MASKED).all() and not (seen[15] == MASKED).any()
    assert seen[-1].equal(batch.tokens)
