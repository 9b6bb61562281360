"""Image edits: kept and free tokens of each edit, and errors for invalid settings."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dalle import DALLE
from dalle.sampling.canvas import EncodedImage
from dalle.sampling.command_config import SampleCommandConfig
from dalle.sampling.decode import MASKED
from dalle.sampling.edits import EDITS, build_canvas
from dalle.sampling.edits.complete import CompleteConfig, complete
from dalle.sampling.edits.inpaint import InpaintConfig, inpaint
from dalle.sampling.edits.outpaint import OutpaintConfig, outpaint
from dalle.sampling.edits.remix import RemixConfig, remix
from dalle.sampling.edits.variations import VariationsConfig, check_share, variations
from dalle.sampling.sampling_config import SamplingConfig


def made(grid: int = 8, start: int = 0) -> EncodedImage:
    """Return an image of grid x grid tokens, all different, of 2 x 2 pixels each."""
    tokens = start + torch.arange(grid * grid).view(grid, grid)
    return EncodedImage((2 * grid, 2 * grid), Image.new("RGB", (2 * grid, 2 * grid), "green"), tokens)


@pytest.mark.parametrize(("grid", "rows"), [(32, 15), (16, 8), (8, 4), (2, 1)])
def test_complete_keeps_the_papers_fraction_of_rows(grid, rows):
    tokens = complete(made(grid)).tokens
    assert tokens[:rows].equal(made(grid).tokens[:rows])
    assert (tokens[rows:] == MASKED).all()


@pytest.mark.parametrize("rows", [0, 8, 40, -1])
def test_complete_with_no_kept_or_no_free_rows_raises(rows):
    with pytest.raises(ValueError, match=f"cannot keep rows={rows} of an image of 8 rows of tokens; use 1 to 7"):
        complete(made(), CompleteConfig(rows=rows))


def test_inpaint_frees_white_cells():
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 6, 9, 8))  # columns 4 to 8 of pixels are tokens 2 to 4
    canvas = inpaint(made(), mask, InpaintConfig(refinement_passes=1, proposals=3))
    assert (canvas.tokens == MASKED).nonzero().tolist() == [[3, 2], [3, 3], [3, 4]]
    assert (canvas.refinement_passes, canvas.proposals) == (1, 3)
    assert canvas.tokens[canvas.tokens != MASKED].equal(made().tokens[canvas.tokens != MASKED])


SIDES = [(4, 0, 0, 0), (0, 3, 0, 0), (0, 0, 5, 0), (0, 0, 0, 9), (2, 5, 7, 1), (20, 0, 0, 20)]


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_outpaint_keeps_the_image_in_place(sides):
    left, right, up, down = sides
    canvas = outpaint(made(), OutpaintConfig(left=left, right=right, up=up, down=down))
    assert canvas.tokens.shape == (up + 8 + down, left + 8 + right)
    assert canvas.tokens[up : up + 8, left : left + 8].equal(made().tokens)
    assert (canvas.tokens != MASKED).sum() == 64
    assert canvas.pixels is not None
    assert canvas.pixels.size == (2 * (left + 8 + right), 2 * (up + 8 + down))
    green = (np.asarray(canvas.pixels) == (0, 128, 0)).all(axis=-1)
    assert green.sum() == 256
    assert green[2 * up : 2 * up + 16, 2 * left : 2 * left + 16].all()


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_outpaint_windows_cover_the_canvas_and_overlap_by_half(sides):
    left, right, up, down = sides
    canvas = outpaint(made(), OutpaintConfig(left=left, right=right, up=up, down=down))
    canvas.check(8, 64, 1)
    known = canvas.tokens != MASKED
    for top, start in canvas.windows:
        window = known[top : top + 8, start : start + 8]
        assert 32 <= window.sum() < 64
        window[:] = True
    assert known.all()


def test_outpaint_sweeps_only_if_kept_cells_follow_free_ones():
    assert outpaint(made(), OutpaintConfig(down=9)).refinement_passes == 0
    assert outpaint(made(), OutpaintConfig(down=9, right=1)).refinement_passes == OutpaintConfig().refinement_passes


@pytest.mark.parametrize("sides", [{}, {"left": -1, "right": 4}])
def test_outpaint_without_new_cells_raises(sides):
    with pytest.raises(ValueError, match=r"outpaint adds columns and rows of tokens, .* try edit.right=4"):
        outpaint(made(), OutpaintConfig(**sides))


@pytest.mark.parametrize(("keep", "kept"), [("cells", 19), ("rows", 16), ("columns", 16)])
def test_variations_keep_the_given_share_differently_per_candidate(keep, kept):
    tokens = variations(made(), VariationsConfig(share=0.3, keep=keep), candidates=20).tokens
    assert tokens.shape == (20, 8, 8)
    assert ((tokens != MASKED).sum(dim=(1, 2)) == kept).all()
    assert ((tokens == MASKED) | (tokens == made().tokens)).all()
    assert len({tuple(variation.flatten().tolist()) for variation in tokens}) > 10
    shown = (tokens != MASKED).float()
    if keep != "cells":
        along = 2 if keep == "rows" else 1
        assert shown.std(dim=along).max() == 0


def test_variations_depend_only_on_seed_and_candidate():
    tokens = variations(made(), candidates=20, seed=3).tokens
    assert variations(made(), candidates=4, seed=3, candidate_offset=7).tokens.equal(tokens[7:11])
    assert not variations(made(), candidates=20, seed=4).tokens.equal(tokens)


@pytest.mark.parametrize(
    ("layout", "from_other"),
    [("top", [[0, 1], [0, 1]]), ("left", [[0, 0], [1, 1]]), ("checkerboard", [[0, 1], [1, 0]])],
)
def test_remix_joins_two_images_and_frees_the_border(layout, from_other):
    """`from_other`: 1 for each quarter taken from the second image, columns first."""
    one, other = made(), made(start=100)
    whole = remix(one, other, RemixConfig(layout=layout, seam=0)).tokens
    quarters = whole.view(2, 4, 2, 4)
    assert [[int((quarters[y, :, x] >= 100).all()) for y in (0, 1)] for x in (0, 1)] == from_other
    assert ((whole == one.tokens) | (whole == other.tokens)).all()
    seamed = remix(one, other, RemixConfig(layout=layout, seam=1)).tokens
    middle = torch.zeros(8, 8, dtype=torch.bool)
    if layout != "left":
        middle[3:5] = True
    if layout != "top":
        middle[:, 3:5] = True
    assert (seamed == MASKED).equal(middle)
    assert seamed[~middle].equal(whole[~middle])


def test_random_remix_uses_a_share_of_each_image_per_candidate():
    tokens = remix(made(), made(start=100), RemixConfig(layout="random", share=0.25), candidates=9).tokens
    assert ((tokens < 100).sum(dim=(1, 2)) == 16).all()
    assert (tokens % 100 == made().tokens).all()
    assert not tokens[0].equal(tokens[1])


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: variations(made(), VariationsConfig(share=1.0)), "share=1.0 keeps all tokens or none"),
        (lambda: variations(made(), VariationsConfig(share=0.001)), "share=0.001 of 64 cells is 0 of them"),
        (lambda: variations(made(), VariationsConfig(share=0.95, keep="rows")), "share=0.95 of 8 rows is 8 of them"),
        (lambda: variations(made(), VariationsConfig(keep="dots")), "keep=dots is unknown; choose one of cells, rows"),
        (lambda: remix(made(), made(), RemixConfig(layout="spiral")), "layout=spiral is unknown; choose one of top"),
        (lambda: remix(made(), made(), RemixConfig(share=0.0)), "share=0.0 takes all tokens from one image"),
        (lambda: remix(made(), made(), RemixConfig(share=0.05)), "share=0.05 of 8 rows is 0 of them"),
        (lambda: remix(made(), made(), RemixConfig(layout="left", share=0.95)), "share=0.95 of 8 columns is 8"),
        (lambda: remix(made(), made(), RemixConfig(layout="random", share=0.999)), "share=0.999 of 64 cells is 64"),
        (
            lambda: remix(made(), made(), RemixConfig(layout="checkerboard", share=0.3)),
            "share=0.3 has no effect with layout=checkerboard",
        ),
        (lambda: remix(made(), made(), RemixConfig(seam=-1)), "seam=-1 is below 0"),
        (lambda: remix(made(), made(), RemixConfig(seam=5_000_000_000)), "seam=5000000000 is more than the image's"),
        (
            lambda: outpaint(made(), OutpaintConfig(right=2_000_000_000)),
            "outpaint makes an image of .* at most 1048576",
        ),
    ],
)
def test_invalid_settings_raise(make, problem):
    with pytest.raises(ValueError, match=problem):
        make()


# --- from the command line ----------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path) -> Path:
    """Return a folder with one.png and two.png of 12 x 8 pixels, mask.png for them, and invalid files."""
    generator = np.random.default_rng(0)
    for name in ("one.png", "two.png"):
        Image.fromarray(generator.integers(0, 256, (8, 12, 3), dtype=np.uint8)).save(tmp_path / name)
    mask = Image.new("L", (12, 8))
    mask.paste(255, (4, 2, 8, 6))
    mask.save(tmp_path / "mask.png")
    Image.new("L", (12, 8)).save(tmp_path / "black.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_text("no picture")
    return tmp_path


QUICK = ["edit.refinement_passes=1", "edit.proposals=2"]
OPTIONS = {
    "complete": ["edit.rows=1"],
    "inpaint": ["edit.mask=mask.png", *QUICK],
    "outpaint": ["edit.right=2", "edit.up=1", *QUICK],
    "variations": ["edit.share=0.3", *QUICK],
    "remix": ["edit.other=two.png", *QUICK],
}


def test_every_edit_has_a_command_line_test():
    assert set(OPTIONS) == set(EDITS)


@pytest.mark.parametrize("edit", OPTIONS)
def test_each_edit_writes_images_and_settings(checkpoints, files, run_command, edit):
    status, told = run_command(
        "sample",
        f"checkpoint={checkpoints}",
        "caption=a red circle",
        "candidates=3",
        "keep=2",
        "image=one.png",
        f"edit={edit}",
        "out=drawn",
        *OPTIONS[edit],
    )
    assert status == 0, told
    facts = json.loads((files / "drawn" / "samples.json").read_text())
    assert facts["settings"]["edit"]["name"] == edit
    names = [image["file"] for image in facts["captions"][0]["images"]]
    pictures = [Image.open(files / "drawn" / name) for name in names]
    assert [picture.size for picture in pictures] == [(12, 10) if edit == "outpaint" else (8, 8)] * 2
    if edit in ("complete", "inpaint"):  # kept pixels are the picture's own, the middle 8 of its 12 columns
        own = np.asarray(Image.open(files / "one.png").convert("RGB"))[:2, 2:10]
        assert all(np.array_equal(np.asarray(picture)[:2], own) for picture in pictures)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["edit=inpaint", "image=one.png", "edit.mask=small.png"], "mask has 8x8 pixels and the image 12x8"),
        (["edit=inpaint", "image=one.png", "edit.mask=black.png"], "the mask has no white pixel"),
        (["edit=inpaint", "image=one.png"], "edit.mask is empty; set it to an image file"),
        (["edit=complete", "image=broken.png"], "image=broken.png cannot be read as an image"),
        (["edit=complete", "image=nowhere.png"], "image=nowhere.png cannot be read as an image"),
        (["edit=complete"], "edit=complete needs an image; add image=<file>"),
        (["image=one.png"], f"image=one.png needs an edit; add edit=<name>, one of {', '.join(EDITS)}"),
        (["edit=complete", "image=one.png", "edit.rows=9"], "cannot keep rows=9 of an image of 4 rows"),
        (["edit=outpaint", "image=one.png"], "right=0, up=0, down=0 adds none; try edit.right=4"),
        (
            ["edit=outpaint", "image=one.png", "edit.up=1", "rerank=mixture"],
            "rerank=mixture: the transformer scores images of 4 x",
        ),
        (
            ["edit=outpaint", "image=one.png", "edit.up=1", "attention=true"],
            "attention=true: the transformer scores images of 4",
        ),
        (["edit=remix", "image=one.png", "edit.other=broken.png"], "edit.other=broken.png cannot be read"),
        (["edit=inpant", "image=one.png"], f"there is no edit=inpant; choose one of {', '.join(sorted(EDITS))}"),
        (["edit=inpaint", "image=one.png", "edit.msk=mask.png"], "no setting edit.msk; did you mean edit.mask"),
    ],
)
def test_edit_errors_are_one_sentence(checkpoints, files, run_command, arguments, sentence):
    status, told = run_command("sample", f"checkpoint={checkpoints}", "caption=a red circle", "out=drawn", *arguments)
    assert status == 2
    assert sentence in told
    assert told.count("\n") == 1
    assert not (files / "drawn").exists()


def test_strokes_on_a_transparent_mask_file_are_all_that_is_sampled(files):
    mask = Image.open(files / "mask.png")
    strokes = Image.new("RGBA", mask.size)
    strokes.paste("white", mask=mask)
    strokes.save(files / "strokes.png")
    original = EncodedImage((12, 8), Image.new("RGB", (8, 8)), torch.zeros(4, 4, dtype=torch.int64))
    found, expected = (
        build_canvas(
            SampleCommandConfig(image=str(files / "one.png"), edit=InpaintConfig(mask=str(files / name))),
            lambda _: original,
        )
        for name in ("strokes.png", "mask.png")
    )
    assert found is not None and expected is not None
    assert found.tokens.equal(expected.tokens)


def test_the_range_of_shares_that_a_message_gives_works():
    with pytest.raises(ValueError, match=r"share=0.999 of 256 cells is 256 of them, .* use 0.0039 to 0.996$"):
        check_share(0.999, 256, "cells")
    for share in (0.0039, 0.996):
        check_share(share, 256, "cells")


def test_no_edit_gives_no_canvas():
    assert build_canvas(SampleCommandConfig(), lambda image: made()) is None


def test_generate_accepts_a_canvas(checkpoints):
    dalle = DALLE.load(checkpoints)
    photo = dalle.encode_image(Image.new("RGB", (20, 30), "orange"))
    result = dalle.generate("a red circle", candidates=3, keep=2, canvas=complete(photo, CompleteConfig(rows=3)))
    assert (result.tokens[:, :3] == photo.tokens[:3]).all()
    canvas = outpaint(photo, OutpaintConfig(right=3, refinement_passes=1, proposals=2))
    wide = dalle.generate("a red circle", candidates=3, keep=2, canvas=canvas)
    assert (wide.tokens[:, :, :4] == photo.tokens).all()
    assert wide.images[0].size == (14, 8)
    seen = []
    with pytest.raises(ValueError, match="rerank=mixture: the transformer scores images of 4 x 4 tokens"):
        list(dalle.stream(["a"], SamplingConfig(rerank="mixture"), canvas=canvas, on_tokens=seen.append))
    assert not seen  # it is said before anything is sampled
