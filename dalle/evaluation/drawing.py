"""Sampling and reranking settings of an evaluation, as recorded in metrics.json."""

from dataclasses import asdict
from hashlib import sha256
from typing import Any

from dalle.evaluation.settings import EvaluateConfig
from dalle.sampling.pipeline import DALLE

FILTERS = ("top_k", "top_p", "min_p")


def decoding_settings(dalle: DALLE, config: EvaluateConfig) -> dict[str, Any]:
    """Settings that decide the candidates. Logits processors are listed only if set."""
    guidance = dalle.guidance if config.guidance is None else config.guidance
    filters = {name: getattr(config, name) for name in FILTERS if getattr(config, name) is not None}
    told = {"seed": config.seed, "temperature": config.temperature, **filters, "guidance": guidance}
    return {**told, "precision": str(dalle.precision)}


def rerank_settings(config: EvaluateConfig) -> dict[str, Any]:
    """Settings of the reranking."""
    weights, references = asdict(config.rerank_weights), list(config.rerank_references)
    return {"by": config.rerank, "weights": weights, "references": references}


def choice_settings(dalle: DALLE, config: EvaluateConfig, candidates: int) -> dict[str, Any]:
    """Settings that decide the candidates of each caption and the one that ranks first."""
    return {"candidates": candidates, **decoding_settings(dalle, config), "rerank": rerank_settings(config)}


def digest(captions: list[str]) -> str:
    """Hash of the captions in this order: 16 hex digits of SHA-256."""
    return sha256("\n".join(captions).encode()).hexdigest()[:16]
