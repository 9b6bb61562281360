"""Settings of sampling and reranking in metrics.json, by which results are told apart."""

from dataclasses import replace

import pytest
import torch

from dalle.evaluation.sampling_settings import decoding_settings, sampling_settings
from dalle.sampling.sampling_defaults import SamplingDefaults


def test_settings_of_candidates_and_reranking(context, config):
    dalle = context.require_pipeline()
    sampling = dalle.resolve(replace(config, seed=3, temperature=0.5).sampling(16))
    assert sampling_settings(dalle, sampling) == {
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


@pytest.mark.parametrize("processors", [{"top_k": 4}, {"top_p": 0.9, "min_p": 0.1}])
def test_logits_processors_are_recorded_if_set(context, config, processors):
    dalle = context.require_pipeline()
    sampling = dalle.resolve(config.sampling(16))
    default = decoding_settings(dalle, sampling)
    assert decoding_settings(dalle, replace(sampling, **processors)) == {**default, **processors}


def test_the_batch_size_is_recorded_in_16_bits_where_it_changes_rounding(context, config, monkeypatch):
    dalle = context.require_pipeline()
    sampling = dalle.resolve(replace(config, batch_size=5).sampling(16))
    assert "batch_size" not in decoding_settings(dalle, sampling)
    monkeypatch.setattr(dalle, "precision", torch.bfloat16)
    assert decoding_settings(dalle, sampling)["batch_size"] == 5


@pytest.mark.parametrize(("given", "used"), [(None, "mixture"), ("clip", "clip"), ("image_likelihood",) * 2])
def test_score_that_ranks_is_recorded(context, config, monkeypatch, given, used):
    dalle, sampling = context.require_pipeline(), replace(config, rerank=given).sampling(16)
    monkeypatch.setattr(dalle, "defaults", SamplingDefaults(rerank="mixture"))
    assert sampling_settings(dalle, dalle.resolve(sampling))["rerank"]["by"] == used
    monkeypatch.setattr(dalle, "clip", None)
    if given == "clip":
        with pytest.raises(ValueError, match="rerank=clip needs a CLIP"):
            dalle.resolve(sampling)
    else:
        assert sampling_settings(dalle, dalle.resolve(sampling))["rerank"]["by"] == (given or "none")
