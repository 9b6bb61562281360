"""Novelty on `blocks`, through the dVAE of the package: new scenes are no copies, memorised ones are."""

import pytest
import torch
from PIL import Image

from dalle import bundled
from dalle.data import open_source
from dalle.data.blocks import BlocksConfig
from dalle.image_conversion import to_pil_images, to_tensor
from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.novelty import Novelty, TrainingImages
from dalle.sampling.token_overlap import COPY_SHARE

DATA = BlocksConfig(train=6000)
IMAGES = 30


@pytest.fixture(scope="module")
def novelty(tmp_path_factory) -> Novelty:
    with pytest.MonkeyPatch.context() as patch:  # hashes are cached in the working directory
        patch.chdir(tmp_path_factory.mktemp("hashes"))
        training = TrainingImages.open(DATA)
    return Novelty(training, DiscreteVAE.load(bundled.FOLDER / "drawings" / "dvae"))


@torch.inference_mode()
def nearest(novelty: Novelty, image: Image.Image, reconstruct: bool = False):
    """Return the nearest training image of a sample whose tokens are those of `image`."""
    tokens = novelty.dvae.encode(to_tensor([image]))
    shown = to_pil_images(novelty.dvae.decode(tokens))[0] if reconstruct else image
    return novelty.nearest(shown, tokens[0], by_clip=False)


def test_new_scenes_are_no_copies_though_they_share_tokens(novelty):
    """A scene of `novel` has a shape in a colour that no training scene has."""
    held_out = open_source(DATA, "novel")
    found = [nearest(novelty, held_out[index].image) for index in range(IMAGES)]
    assert sum(neighbour.overlap >= COPY_SHARE for neighbour in found) >= 3  # tokens alone call these copies
    assert not any(neighbour.is_near_duplicate for neighbour in found)


def test_memorised_scenes_are_copies(novelty):
    """The sample has the tokens of a training image, and the blur of the dVAE."""
    training = novelty.training.source
    found = {index: nearest(novelty, training[index].image, reconstruct=True) for index in range(IMAGES)}
    recalled = [index for index, neighbour in found.items() if neighbour.index == index]
    assert len(recalled) >= 0.9 * IMAGES  # the others are not among the nearest by perceptual hash
    assert all(found[index].is_near_duplicate for index in recalled)


def test_a_training_image_is_the_same(novelty):
    found = [nearest(novelty, novelty.training.source[index].image) for index in range(10)]
    assert all(neighbour.is_same and neighbour.is_near_duplicate for neighbour in found)


def test_the_search_for_an_image_finds_copies_and_no_other_scenes(novelty):
    training, held_out = novelty.training, open_source(DATA, "novel")
    near = [best for index in range(1000) if (best := training.nearest(held_out[index].image)[0]).is_near_by_hash]
    assert len(near) >= 3  # the hash alone calls these near duplicates
    assert not any(neighbour.is_near_duplicate for neighbour in near)
    for index in range(IMAGES):
        small = training.source[index].image.resize((48, 48), Image.Resampling.BICUBIC)
        (found,) = training.nearest(small)
        assert found.index == index and found.is_near_duplicate
