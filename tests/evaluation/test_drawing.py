"""Records of how pictures were drawn and chosen, by which evaluations are told apart."""

from dataclasses import replace

import pytest

from dalle.evaluation.drawing import choice_settings, decoding_settings


def test_a_record_tells_what_decides_the_pictures_and_the_choice(subject, config):
    assert choice_settings(subject.whole(), replace(config, seed=3, temperature=0.5), 16) == {
        "candidates": 16,
        "seed": 3,
        "temperature": 0.5,
        "guidance": 1.0,
        "precision": "torch.float32",
        "rerank": {
            "by": "clip",
            "weights": {"clip": 1.0, "image_likelihood": 0.5, "caption_likelihood": 0.0},
            "references": [],
        },
    }


@pytest.mark.parametrize("filters", [{"top_k": 4}, {"top_p": 0.9, "min_p": 0.1}])
def test_filters_are_recorded_where_they_are_set(subject, config, filters):
    plain, filtered = (decoding_settings(subject.whole(), each) for each in (config, replace(config, **filters)))
    assert filtered == {**plain, **filters}
