"""Metric `likelihood`: nats per token, against a computation per pair and a uniform model."""

import math

import pytest
import torch

from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.evaluation.held_out import HeldOut
from dalle.evaluation.metrics.log_likelihood import nats_per_token
from dalle.image_conversion import to_unit_range
from dalle.sampling.pipeline import DALLE


@pytest.fixture
def dalle(checkpoints) -> DALLE:
    return DALLE.load(checkpoints)


@pytest.fixture(scope="module")
def val() -> BlocksSource:
    return BlocksSource(BlocksConfig(image_size=8, val=12), "val")


def test_nats_per_token_agree_with_a_computation_per_pair(dalle, val):
    """Computed here pair by pair and token by token; long captions are truncated as in training."""
    text, image = [], []
    for index in range(7):
        record = val[index]
        ids = dalle.tokenizer.encode(record.captions[0])[: dalle.transformer.sequence.caption_limit]
        caption = dalle.transformer.sequence.pad_captions([ids])
        pixels = to_unit_range(next(iter(HeldOut(val, 7))).images[index : index + 1])
        tokens = dalle.dvae.encode(pixels).flatten(1)
        with torch.inference_mode():
            logits = dalle.transformer(caption, tokens)
        of_text, of_image = logits.text[0].log_softmax(-1), logits.image[0].log_softmax(-1)
        end = [dalle.transformer.sequence.text_vocabulary] if len(ids) < 32 else []
        text += [-of_text[position, token].item() for position, token in enumerate([*ids, *end])]
        image += [-of_image[position, token].item() for position, token in enumerate(tokens[0].tolist())]
    numbers = nats_per_token(dalle, HeldOut(val, 7, batch_size=3))
    assert numbers["text_nats"] == pytest.approx(sum(text) / len(text), rel=1e-4)
    assert numbers["image_nats"] == pytest.approx(sum(image) / len(image), rel=1e-4)


def test_uniform_model_has_the_log_of_the_vocabulary_size(dalle, val):
    with torch.no_grad():
        for head in (dalle.transformer.text_head, dalle.transformer.image_head):
            head.weight.zero_()
            head.bias.zero_()
    numbers = nats_per_token(dalle, HeldOut(val, 5))
    assert numbers["image_nats"] == pytest.approx(math.log(13), rel=1e-5)
    assert numbers["text_nats"] == pytest.approx(math.log(dalle.tokenizer.vocabulary + 1), rel=1e-5)
