from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.data.token_cache import RecordBlock, TokenCache, TokenCacheSettings
from dalle.sampling.decode import generate
from dalle.sampling.export import export_model
from dalle.sampling.parallel_decode import DecodingCount
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import DecodingConfig
from dalle.sampling.token_counts import FILE, TokenCounts, load_token_counts, neighbours

GRID, VOCABULARY = 4, 13


def striped_images(number: int = 12) -> torch.Tensor:
    """Return images whose rows count up from a number of their own, so that neighbours decide every token but some."""
    starts = torch.randint(VOCABULARY, (number, GRID, 1), generator=torch.Generator().manual_seed(0))
    return ((starts + torch.arange(GRID)) % VOCABULARY).flatten(1)


def test_neighbours_are_the_tokens_left_above_and_above_right():
    image = torch.arange(GRID * GRID).unsqueeze(0)
    left, above, above_right = neighbours(image, image, GRID)
    assert left[0].tolist() == list(range(-1, 15))
    assert above[0].tolist() == [-1] * GRID + list(range(12))
    assert above_right[0].tolist() == [-1] * 4 + [1, 2, 3, -1, 5, 6, 7, -1, 9, 10, 11, -1]


def test_probabilities_sum_to_1_and_follow_the_counted_context():
    images = striped_images()
    counts = TokenCounts.of_images(images, GRID, VOCABULARY)
    positions = torch.arange(GRID * GRID).expand(len(images), -1)
    contexts = [each[:, 6] for each in neighbours(images, positions, GRID)]  # in the middle of the second row
    probabilities = counts.log_probabilities(*contexts).exp()
    assert probabilities.sum(dim=1).allclose(torch.ones(len(images)))
    assert (probabilities.argmax(dim=1) == images[:, 6]).float().mean() > 0.8  # some contexts occur twice
    none = torch.tensor([-1])
    unseen = counts.log_probabilities(none, none, torch.tensor([5])).exp()
    assert unseen.sum() == pytest.approx(1) and unseen.min() > 0


def test_saved_counts_are_read_with_the_checkpoint_and_change_no_image(checkpoints, tmp_path):
    dalle = DALLE.load(checkpoints)
    assert dalle.token_counts is None
    model = dalle.transformer
    vocabulary, grid = model.sequence.image_vocabulary, model.sequence.grid
    ids = dalle.tokenize(["a red circle"])
    sequential = generate(model, ids, 4, DecodingConfig(seed=1))
    TokenCounts.of_images(sequential.flatten(0, 1).flatten(1), grid, vocabulary).save(tmp_path)
    counts = load_token_counts(tmp_path, vocabulary, None)
    assert counts is not None
    passes = {}
    for guess, config in (("auto", DecodingConfig(seed=1)), ("noise", DecodingConfig(seed=1, guess="noise"))):
        count = DecodingCount()
        parallel = replace(config, decoding="parallel", window=4)
        assert generate(model, ids, 4, parallel, token_counts=counts, count=count).equal(sequential)
        passes[guess] = count.passes
    assert passes["auto"] <= passes["noise"]


@pytest.mark.parametrize(
    ("vocabulary", "dvae", "message"),
    [
        (VOCABULARY, "another", "tokens of dVAE this, but the transformer"),
        (64, "this", "13 image tokens, but .* has 64"),
    ],
)
def test_counts_of_another_model_are_refused(tmp_path, vocabulary, dvae, message):
    TokenCounts.of_images(striped_images(), GRID, VOCABULARY, "this").save(tmp_path)
    assert load_token_counts(tmp_path, VOCABULARY, "this") is not None
    with pytest.raises(CheckpointError, match=message):
        load_token_counts(tmp_path, vocabulary, dvae)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=f"{FILE} cannot be read"):
        load_token_counts(tmp_path, VOCABULARY, None)


def token_cache(folder: Path, images: torch.Tensor, vocabulary: int, dvae: str) -> TokenCache:
    settings = TokenCacheSettings("data", 32, "none", dvae, views=1)
    cache = TokenCache.create(folder, settings, len(images), images.shape[1], vocabulary, {})
    cache.write(RecordBlock(0, 0, len(images)), images.numpy(), np.ones(len(images), bool))
    return cache


def test_the_command_writes_counts_that_sampling_and_export_find(checkpoints, run_command, tmp_path):
    model = tmp_path / "model"
    export_model(checkpoints / "transformer", model)
    _, meta = checkpoint.read_config(model, "transformer")
    sequence = DALLE.load(checkpoints).transformer.sequence
    images = torch.randint(sequence.image_vocabulary, (9, sequence.image_positions))
    token_cache(tmp_path / "tokens", images, sequence.image_vocabulary, meta["dvae"]["digest"])
    code, printed = run_command("prepare", f"token_counts={model}", f"tokens={tmp_path / 'tokens'}")
    assert code == 0 and "tokens of 9 images" in printed, printed
    export_model(model, tmp_path / "exported")
    counts = DALLE.load(tmp_path / "exported", dvae=checkpoints / "dvae").token_counts
    assert counts is not None and int(counts.tensors["frequencies"].sum()) == images.numel()


def test_the_command_refuses_tokens_of_another_dvae(checkpoints, run_command, tmp_path):
    images = striped_images()
    token_cache(tmp_path / "tokens", images, VOCABULARY, "another")
    options = (f"token_counts={checkpoints / 'transformer'}", f"tokens={tmp_path / 'tokens'}")
    code, printed = run_command("prepare", *options)
    assert code == 2 and "are those of dVAE another" in printed
    code, printed = run_command("prepare", options[0])
    assert code == 2 and "tokens=<token cache>" in printed
