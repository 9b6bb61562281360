from dataclasses import replace

import pytest
import torch

from dalle.models.linear_cross_entropy import IGNORED
from dalle.models.transformer.sequence import PAD, SequenceEmbedding, SequenceLayout

SEQUENCE = SequenceLayout(text_positions=5, text_vocabulary=10, image_vocabulary=7, grid=2)
CAPTIONS = SEQUENCE.pad_captions([[3, 4], [5, 6, 7, 8]])
IMAGES = torch.tensor([[0, 1, 2, 3], [6, 5, 4, 3]])


def test_paper_sizes():
    sequence = SequenceLayout(256, 16_384, 8192, 32)
    assert (sequence.positions, sequence.image_positions, sequence.caption_limit) == (1280, 1024, 255)


def test_captions_are_padded_to_the_text_positions():
    assert CAPTIONS.tolist() == [[3, 4, PAD, PAD, PAD], [5, 6, 7, 8, PAD]]


def test_inputs_are_shifted_right_by_one():
    assert SEQUENCE.text_inputs(CAPTIONS).tolist() == [[10, 3, 4, PAD, PAD], [10, 5, 6, 7, 8]]
    assert SEQUENCE.image_inputs(IMAGES).tolist() == [[7, 0, 1, 2], [7, 6, 5, 4]]


@pytest.mark.parametrize(
    ("pads", "targets"),
    [
        ("none", [3, 4, IGNORED, IGNORED, IGNORED]),
        ("first", [3, 4, 10, IGNORED, IGNORED]),
        ("all", [3, 4, 10, 10, 10]),
    ],
)
def test_padding_counts_in_text_targets_as_configured(pads: str, targets: list[int]):
    assert SEQUENCE.text_targets(CAPTIONS, pads)[0].tolist() == targets


def test_unknown_pad_targets_are_rejected():
    with pytest.raises(ValueError, match="none, first, all"):
        SEQUENCE.text_targets(CAPTIONS, "some")


def test_embeddings_are_those_of_figure_10():
    torch.manual_seed(0)
    embed = SequenceEmbedding(SEQUENCE, width=3)
    word, place, pad = embed.text_token.weight, embed.text_position.weight, embed.pad.weight
    token, row, column = embed.image_token.weight, embed.row.weight, embed.column.weight
    expected = [
        word[10] + place[0],  # start of text
        word[3] + place[1],
        word[4] + place[2],
        pad[3],
        pad[4],
        token[7] + row[0] + column[0],  # start of image
        token[0] + row[0] + column[1],
        token[1] + row[1] + column[0],
        token[2] + row[1] + column[1],
    ]
    torch.testing.assert_close(embed(CAPTIONS[:1], IMAGES[:1])[0], torch.stack(expected))


def test_image_tokens_can_have_the_position_embeddings_of_their_own_cells():
    torch.manual_seed(0)
    embed = SequenceEmbedding(replace(SEQUENCE, image_position_embedding="own"), width=3)
    token, row, column = embed.image_token.weight, embed.row.weight, embed.column.weight
    expected = [
        token[7],  # the start of image has no cell
        token[0] + row[0] + column[0],
        token[1] + row[0] + column[1],
        token[2] + row[1] + column[0],
    ]
    torch.testing.assert_close(embed.image(IMAGES[:1])[0], torch.stack(expected))


def test_masked_padding_has_a_key_padding_mask_and_learned_padding_has_none():
    masked = replace(SEQUENCE, pads="masked")
    assert masked.key_padding_mask(CAPTIONS).tolist() == [[False, False, False, True, True], [False] * 5]
    assert SEQUENCE.key_padding_mask(CAPTIONS) is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pads": "none"}, "pads='none' is unknown; choose one of learned, masked"),
        (
            {"image_position_embedding": "next"},
            "image_position_embedding='next' is unknown; choose one of predicted, own",
        ),
    ],
)
def test_an_unknown_option_is_rejected_with_the_valid_ones(change: dict[str, str], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        replace(SEQUENCE, **change)


@pytest.mark.parametrize("embedding", ["predicted", "own"])
def test_embedding_one_token_at_a_time_equals_embedding_all(embedding: str):
    torch.manual_seed(0)
    embed = SequenceEmbedding(replace(SEQUENCE, image_position_embedding=embedding), width=3)
    inputs = SEQUENCE.image_inputs(IMAGES)
    states = [embed.embed_decoding_step(inputs[:, position], position) for position in range(4)]
    torch.testing.assert_close(torch.stack(states, dim=1), embed.image(IMAGES))


@pytest.mark.parametrize("embedding", ["predicted", "own"])
def test_positions_given_as_tensors_have_the_embeddings_of_all(embedding: str):
    torch.manual_seed(0)
    embed = SequenceEmbedding(replace(SEQUENCE, image_position_embedding=embedding), width=3)
    inputs, expected = SEQUENCE.image_inputs(IMAGES), embed.image(IMAGES)
    assert embed.embed_image_tokens(inputs, torch.arange(4)).equal(expected)
    assert embed.embed_image_tokens(inputs[:, 3:], torch.tensor([9])).equal(expected[:, 3:])  # past the last one
    for position in range(4):
        state = embed.embed_decoding_step(inputs[:, position], torch.tensor([position]))
        assert state.equal(expected[:, position])


def test_the_callers_tensors_are_not_modified():
    caption, image = CAPTIONS.clone(), IMAGES.clone()
    SequenceEmbedding(SEQUENCE, width=3)(caption, image)
    SEQUENCE.text_targets(caption)
    assert caption.equal(CAPTIONS)
    assert image.equal(IMAGES)


def test_a_caption_that_is_too_long_is_rejected():
    with pytest.raises(ValueError, match=r"6 tokens long and 4 fit \(text_positions=5\)"):
        SEQUENCE.pad_captions([[1], [1, 2, 3, 4, 5, 6]])


def test_a_caption_that_is_too_long_can_be_truncated():
    assert SEQUENCE.pad_captions([[1, 2, 3, 4, 5, 6]], truncate=True).tolist() == [[1, 2, 3, 4, PAD]]


def test_an_empty_caption_is_rejected():
    with pytest.raises(ValueError, match="empty"):
        SEQUENCE.pad_captions([[]])


@pytest.mark.parametrize("sizes", [{"text_positions": 1}, {"grid": 0}])
def test_sizes_without_room_for_a_caption_or_an_image_are_rejected(sizes: dict[str, int]):
    with pytest.raises(ValueError, match="use at least"):
        SequenceLayout(**{"text_positions": 5, "text_vocabulary": 10, "image_vocabulary": 7, "grid": 2, **sizes})
