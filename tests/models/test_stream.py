from dataclasses import replace

import pytest
import torch

from dalle.models.transformer.sequence import IGNORED, PAD, Stream, StreamEmbedding

STREAM = Stream(text_positions=5, text_vocabulary=10, image_vocabulary=7, grid=2)
CAPTIONS = STREAM.captions([[3, 4], [5, 6, 7, 8]])
IMAGES = torch.tensor([[0, 1, 2, 3], [6, 5, 4, 3]])


def test_paper_sizes():
    stream = Stream(256, 16_384, 8192, 32)
    assert (stream.positions, stream.image_positions, stream.caption_limit) == (1280, 1024, 255)


def test_captions_are_padded_to_the_slots_of_the_text():
    assert CAPTIONS.tolist() == [[3, 4, PAD, PAD, PAD], [5, 6, 7, 8, PAD]]


def test_inputs_are_shifted_right_by_one():
    assert STREAM.text_inputs(CAPTIONS).tolist() == [[10, 3, 4, PAD, PAD], [10, 5, 6, 7, 8]]
    assert STREAM.image_inputs(IMAGES).tolist() == [[7, 0, 1, 2], [7, 6, 5, 4]]


@pytest.mark.parametrize(
    ("pads", "targets"),
    [
        ("none", [3, 4, IGNORED, IGNORED, IGNORED]),
        ("first", [3, 4, 10, IGNORED, IGNORED]),
        ("all", [3, 4, 10, 10, 10]),
    ],
)
def test_text_targets_count_the_pads_that_are_asked_for(pads: str, targets: list[int]):
    assert STREAM.text_targets(CAPTIONS, pads)[0].tolist() == targets


def test_unknown_pad_targets_are_refused():
    with pytest.raises(ValueError, match="none, first, all"):
        STREAM.text_targets(CAPTIONS, "some")


def test_every_position_has_the_embeddings_that_figure_10_gives_it():
    torch.manual_seed(0)
    embed = StreamEmbedding(STREAM, width=3)
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


def test_image_tokens_can_have_the_places_of_their_own_cells():
    torch.manual_seed(0)
    embed = StreamEmbedding(replace(STREAM, image_places="own"), width=3)
    token, row, column = embed.image_token.weight, embed.row.weight, embed.column.weight
    expected = [
        token[7],  # the start of image is no cell's
        token[0] + row[0] + column[0],
        token[1] + row[0] + column[1],
        token[2] + row[1] + column[0],
    ]
    torch.testing.assert_close(embed.image(IMAGES[:1])[0], torch.stack(expected))


def test_masked_pads_are_hidden_and_learned_ones_are_not():
    masked = replace(STREAM, pads="masked")
    assert masked.key_padding_mask(CAPTIONS).tolist() == [[False, False, False, True, True], [False] * 5]
    assert STREAM.key_padding_mask(CAPTIONS) is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pads": "none"}, "unknown kind of pads 'none'; choose one of learned, masked"),
        ({"image_places": "next"}, "unknown image places 'next'; choose one of predicted, own"),
    ],
)
def test_an_unknown_reading_is_refused_with_those_that_exist(change: dict[str, str], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        replace(STREAM, **change)


@pytest.mark.parametrize("places", ["predicted", "own"])
def test_one_state_at_a_time_has_the_same_inputs(places: str):
    torch.manual_seed(0)
    embed = StreamEmbedding(replace(STREAM, image_places=places), width=3)
    inputs = STREAM.image_inputs(IMAGES)
    states = [embed.image_state(inputs[:, position], position) for position in range(4)]
    torch.testing.assert_close(torch.stack(states, dim=1), embed.image(IMAGES))


def test_the_callers_tensors_stay_as_they_were():
    caption, image = CAPTIONS.clone(), IMAGES.clone()
    StreamEmbedding(STREAM, width=3)(caption, image)
    STREAM.text_targets(caption)
    assert caption.equal(CAPTIONS)
    assert image.equal(IMAGES)


def test_a_caption_too_long_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"6 tokens long and 4 fit \(text_positions=5\)"):
        STREAM.captions([[1], [1, 2, 3, 4, 5, 6]])


def test_a_caption_too_long_can_be_truncated():
    assert STREAM.captions([[1, 2, 3, 4, 5, 6]], truncate=True).tolist() == [[1, 2, 3, 4, PAD]]


def test_an_empty_caption_is_refused():
    with pytest.raises(ValueError, match="empty"):
        STREAM.captions([[]])


@pytest.mark.parametrize("sizes", [{"text_positions": 1}, {"grid": 0}])
def test_a_stream_without_room_is_refused(sizes: dict[str, int]):
    with pytest.raises(ValueError, match="use at least"):
        Stream(**{"text_positions": 5, "text_vocabulary": 10, "image_vocabulary": 7, "grid": 2, **sizes})
