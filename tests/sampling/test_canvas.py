import numpy as np
import pytest
import torch
from PIL import Image

from dalle.data.transforms import inference_crop
from dalle.image_conversion import to_tensor
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.sampling.canvas import Canvas, EncodedImage, dilate, encode_image
from dalle.sampling.decode import MASKED


@pytest.fixture(scope="module")
def dvae() -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(DVAEConfig(vocabulary=13, width=8, groups=2, blocks_per_group=1, decoder_input=8, gain=1.0))


def noise(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def marked(size: tuple[int, int], *pixels: tuple[int, int], level: int = 255) -> Image.Image:
    mask = Image.new("L", size)
    for pixel in pixels:
        mask.putpixel(pixel, level)
    return mask


def wide() -> EncodedImage:
    """Return an image of 48 x 32 pixels and a canvas of 4 x 4 tokens for its 32 x 32 pixels from column 8."""
    return EncodedImage((48, 32), Image.new("RGB", (8, 8)), torch.zeros(4, 4, dtype=torch.int64))


def test_original_is_cropped_and_encoded_like_held_out_images(dvae):
    image = noise(31, 20)
    found = encode_image(image, dvae, 4)
    seen = inference_crop(image, 8)
    assert found.size == (31, 20)
    assert np.array_equal(np.asarray(found.pixels), seen)
    assert found.tokens.equal(dvae.encode(to_tensor([Image.fromarray(seen)]))[0])


def test_a_photo_is_turned_as_its_exif_data_say(dvae):
    image = noise(31, 20)
    lying = image.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6  # orientation: to be turned by 90 degrees clockwise
    found, expected = encode_image(lying, dvae, 4), encode_image(image, dvae, 4)
    assert found.size == expected.size and found.tokens.equal(expected.tokens)


@pytest.mark.parametrize(
    ("pixel", "cell"), [((8, 0), (0, 0)), ((15, 7), (0, 0)), ((16, 7), (0, 1)), ((39, 31), (3, 3)), ((23, 8), (1, 1))]
)
def test_one_white_pixel_marks_only_its_token(pixel, cell):
    assert wide().mask_to_tokens(marked((48, 32), pixel)).nonzero().tolist() == [list(cell)]


def test_half_white_marks_a_token_in_every_image_mode():
    mask = marked((48, 32), (20, 20), level=128)
    for mode in ("L", "RGB", "RGBA"):
        assert wide().mask_to_tokens(mask.convert(mode)).nonzero().tolist() == [[2, 1]]


def test_transparent_pixels_of_a_mask_are_not_white():
    for colour in ("white", "black"):
        mask = Image.new("RGBA", (48, 32), colour)
        mask.putalpha(0)
        mask.putpixel((20, 20), (255, 255, 255, 255))
        assert wide().mask_to_tokens(mask).nonzero().tolist() == [[2, 1]]


@pytest.mark.parametrize("mask", [marked((48, 32)), marked((48, 32), (20, 20), level=127), marked((48, 32), (7, 9))])
def test_mask_outside_the_crop_raises(mask):
    with pytest.raises(ValueError, match="has no white pixel in the image's centre square: paint white"):
        wide().mask_to_tokens(mask)


def test_mask_of_another_size_raises():
    with pytest.raises(ValueError, match="mask has 32x32 pixels and the image 48x32"):
        wide().mask_to_tokens(Image.new("L", (32, 32), 255))


def test_kept_cells_can_keep_their_original_pixels():
    tokens = torch.zeros(4, 4, dtype=torch.int64)
    tokens[1:3, 2] = MASKED
    before, drawn = noise(8, 8), Image.new("RGB", (8, 8), "red")
    (pasted,) = Canvas(tokens, pixels=before).paste([drawn])
    pixels, free = np.asarray(pasted), np.zeros((8, 8), dtype=bool)
    free[2:6, 4:6] = True
    assert np.array_equal(pixels[~free], np.asarray(before)[~free])
    assert (pixels[free] == (255, 0, 0)).all()
    assert Canvas(tokens).paste([drawn]) == [drawn]


def test_each_candidate_keeps_the_pixels_of_its_own_tokens():
    tokens = torch.zeros(3, 4, 4, dtype=torch.int64)
    for candidate in range(3):
        tokens[candidate, candidate] = MASKED
    before, drawn = Image.new("RGB", (8, 8), "blue"), Image.new("RGB", (8, 8), "red")

    def drawn_rows(images: list[Image.Image]) -> list[list[int]]:
        return [(np.asarray(image)[:, 0, 0] == 255).nonzero()[0].tolist() for image in images]

    canvas = Canvas(tokens, pixels=before)
    assert drawn_rows(canvas.paste([drawn] * 3)) == [[0, 1], [2, 3], [4, 5]]
    assert drawn_rows(canvas.paste([drawn] * 2, [2, 0])) == [[4, 5], [0, 1]]


@pytest.mark.parametrize(
    ("canvas", "problem"),
    [
        (
            Canvas(torch.full((6, 6), MASKED)),
            "6 x 6 tokens, but the model samples 4 x 4, and some masked tokens are in no window",
        ),
        (
            Canvas(torch.full((3, 4), MASKED)),
            "3 x 4 tokens, too few for the model's window of 4 x 4 at row 0, column 0",
        ),
        (Canvas(torch.full((4, 6), MASKED), ((0, 0), (0, 3))), "too few .* at row 0, column 3"),
        (Canvas(torch.full((4, 4), 13)), "tokens from 13 to 13; use 0 to 12, or -1"),
        (Canvas(torch.full((4, 4), -2)), "tokens from -2"),
        (Canvas(torch.full((3, 4, 4), MASKED)), r"for \[3\] candidates, but candidates=2"),
    ],
)
def test_canvas_of_wrong_shape_raises(canvas, problem):
    with pytest.raises(ValueError, match=problem):
        canvas.check(4, 13, 2)


def test_cells_outside_all_windows_may_be_kept():
    tokens = torch.zeros(6, 6, dtype=torch.int64)
    tokens[:4, :4] = MASKED
    Canvas(tokens).check(4, 13, 2)


@pytest.mark.parametrize("settings", [{"refinement_passes": -1}, {"refinement_passes": 1, "proposals": 0}])
def test_sweeps_without_proposals_raise(settings):
    with pytest.raises(ValueError, match=r"refinement_passes=.* proposals="):
        Canvas(torch.zeros(4, 4), **settings)


def test_near_covers_a_square_around_each_cell():
    cells = torch.zeros(2, 5, 5, dtype=torch.bool)
    cells[0, 2, 1] = True
    assert dilate(cells, 0).equal(cells)
    assert dilate(cells, 1)[0].nonzero().tolist() == [[row, column] for row in (1, 2, 3) for column in (0, 1, 2)]
    assert not dilate(cells, 2)[1].any()
