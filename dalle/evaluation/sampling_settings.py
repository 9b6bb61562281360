"""Sampling and reranking settings of an evaluation, as recorded in metrics.json."""

from dataclasses import asdict
from hashlib import sha256
from typing import Any

import torch

from dalle.sampling.parallel_decode import recorded_settings
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import UNRANKED, SamplingConfig

LOGITS_PROCESSORS = ("top_k", "top_p", "min_p")


def decoding_settings(dalle: DALLE, config: SamplingConfig) -> dict[str, Any]:
    """Return the settings of a resolved config that determine the candidates of a caption.

    Logits processors, the batch size, the diffusion decoder's steps and parallel decoding are listed only where images
    depend on them.
    """
    processors = {name: getattr(config, name) for name in LOGITS_PROCESSORS if getattr(config, name) is not None}
    settings = {"seed": config.seed, "temperature": config.temperature, **processors, "guidance": config.guidance}
    parallel = recorded_settings(config, dalle.precision)
    decoder = {} if dalle.decoder is None else {"decoder_steps": dalle.decoder.num_steps(config.decoder_steps)}
    # in 16 bits rounding depends on the images of a batch
    batch = {} if dalle.precision == torch.float32 else {"batch_size": config.batch_size}
    return {**settings, "precision": str(dalle.precision), **batch, **decoder, **parallel}


def rerank_settings(config: SamplingConfig) -> dict[str, Any]:
    """Return the settings of a resolved config that determine the ranking: scores, weights and reference captions."""
    weights, references = asdict(config.rerank_weights), list(config.rerank_references)
    return {"by": config.rerank or UNRANKED, "weights": weights, "references": references}


def sampling_settings(dalle: DALLE, config: SamplingConfig) -> dict[str, Any]:
    """Return the settings of a resolved config that determine the candidates of each caption and their ranking."""
    return {"candidates": config.candidates, **decoding_settings(dalle, config), "rerank": rerank_settings(config)}


def captions_digest(captions: list[str]) -> str:
    """Return the hash of the captions in this order: 16 hex digits of SHA-256."""
    return sha256("\n".join(captions).encode()).hexdigest()[:16]
