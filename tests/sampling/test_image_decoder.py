"""Sampling with a diffusion decoder: same tokens and ranks, reproducible images, and decoders of other models."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from dalle import DALLE, checkpoint
from dalle.checkpoint import CheckpointError
from dalle.models.decoder.model import DiffusionDecoder
from dalle.sampling.components import find_components
from dalle.sampling.image_decoder import check_decoder

CAPTION = "a small red circle above a large blue square"


@pytest.fixture(scope="module")
def dalle(checkpoints, decoder_folder) -> DALLE:
    return DALLE.load(checkpoints, decoder=decoder_folder)


def pixels(images) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_a_decoder_changes_pixels_and_neither_tokens_nor_ranks(checkpoints, dalle):
    plain = DALLE.load(checkpoints).generate(CAPTION, candidates=5, keep=3, seed=2)
    found = dalle.generate(CAPTION, candidates=5, keep=3, seed=2)
    assert found.tokens.equal(plain.tokens)
    assert (found.candidates, found.scores) == (plain.candidates, plain.scores)
    assert all(a != b for a, b in zip(pixels(found.images), pixels(plain.images), strict=True))


def test_an_image_depends_on_seed_and_candidate_alone(dalle):
    many = dalle.generate(CAPTION, candidates=6, keep=6, seed=4, batch_size=4)
    place = many.candidates.index(5)
    alone = dalle.generate(CAPTION, candidates=1, keep=1, seed=4, candidate_offset=5)
    difference = torch.tensor(list(alone.images[0].tobytes())) - torch.tensor(list(many.images[place].tobytes()))
    assert difference.abs().max() <= 1  # batches of other sizes may round differently
    tokens = many.tokens[:1].repeat(2, 1, 1)
    noises = dalle.image_decoder().noise(tokens, [0, 1])
    assert not noises[0].equal(noises[1])
    assert noises[1:].equal(dalle.image_decoder().noise(tokens[:1], [1]))


def test_pixels_that_are_not_finite_are_refused(checkpoints, decoder_folder):
    """NaN would be drawn as black pixels."""
    dalle = DALLE.load(checkpoints, decoder=decoder_folder)
    tokens = torch.zeros(1, 4, 4, dtype=torch.int64)
    next(dalle.decoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="the diffusion decoder decodes pixels that are NaN or infinite"):
        dalle.image_decoder()(dalle.dvae, tokens, [0])
    next(dalle.dvae.decoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="the dVAE decodes pixels that are NaN or infinite: its weights are damaged"):
        dalle.decode_images(tokens)


def test_steps_are_a_setting(dalle):
    images = {
        steps: pixels(dalle.generate(CAPTION, candidates=1, keep=1, decoder_steps=steps).images) for steps in (1, 8)
    }
    assert images[1] != images[8]
    with pytest.raises(ValueError, match="decoder_steps=0 must be at least 1"):
        dalle.generate(CAPTION, decoder_steps=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_vocabulary": 14}, "the decoder is for 14 codes of 2 x 2 pixels .* and the dVAE has 13 codes"),
        ({"code_side": 4}, "codes of 4 x 4 pixels"),
        ({"grid": 8}, "trained on images of 8 x 8 tokens, and the transformer samples 4 x 4"),
    ],
)
def test_decoders_of_other_codes_or_grids_are_refused(dalle, changes, message):
    with pytest.raises(ValueError, match=message):
        check_decoder(DiffusionDecoder(replace(dalle.decoder.config, **changes)), dalle.dvae, grid=4)


def test_a_decoder_of_another_dvae_is_refused(checkpoints, decoder_folder, tmp_path):
    other = shutil.copytree(decoder_folder, tmp_path / "decoder")
    content = json.loads((other / checkpoint.CONFIG).read_text())
    content["meta"]["dvae"]["digest"] = "0123456789abcdef"
    (other / checkpoint.CONFIG).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="was trained on the tokens of dVAE 0123456789abcdef"):
        find_components(checkpoints, decoder=other)


def test_another_kind_of_checkpoint_is_no_decoder(checkpoints):
    with pytest.raises(CheckpointError, match="decoder"):
        find_components(checkpoints, decoder=checkpoints / "clip")
