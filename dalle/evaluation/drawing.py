"""Records of how evaluation draws its pictures and chooses among them, for metrics.json."""

from dataclasses import asdict
from hashlib import sha256
from typing import Any

from dalle.evaluation.settings import EvaluateConfig
from dalle.sampling.pipeline import DALLE

FILTERS = ("top_k", "top_p", "min_p")


def decoding_settings(dalle: DALLE, config: EvaluateConfig) -> dict[str, Any]:
    """Settings that decide the candidates; filters only where some are set."""
    guidance = dalle.guidance if config.guidance is None else config.guidance
    filters = {name: getattr(config, name) for name in FILTERS if getattr(config, name) is not None}
    told = {"seed": config.seed, "temperature": config.temperature, **filters, "guidance": guidance}
    return {**told, "precision": str(dalle.precision)}


def rerank_settings(config: EvaluateConfig) -> dict[str, Any]:
    """Settings that favourites are chosen by."""
    weights, references = asdict(config.rerank_weights), list(config.rerank_references)
    return {"by": config.rerank, "weights": weights, "references": references}


def choice_settings(dalle: DALLE, config: EvaluateConfig, candidates: int) -> dict[str, Any]:
    """Settings that decide the pictures that are drawn for captions, and which of them is the favourite."""
    return {"candidates": candidates, **decoding_settings(dalle, config), "rerank": rerank_settings(config)}


def digest(captions: list[str]) -> str:
    """Short hash of these captions in this order."""
    return sha256("\n".join(captions).encode()).hexdigest()[:16]
