"""Metric `likelihood`: negative log-likelihood of held-out pairs, in nats per text token and per image token."""

from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.held_out import HeldOut, captions_of
from dalle.evaluation.metric_result import MetricResult
from dalle.image_conversion import to_unit_range
from dalle.losses import token_nll
from dalle.models.linear_cross_entropy import IGNORED
from dalle.sampling.pipeline import DALLE

DESCRIPTION = (
    "Teacher-forced negative log-likelihood of held-out pairs, in nats per token; lower is better. `text_nats_*` is "
    "the mean over text tokens including the end of each caption, `image_nats_*` the mean over image tokens (the "
    "dVAE's most probable codes) given the caption. A uniform distribution has the logarithm of the vocabulary's size: "
    "{text:.3f} and {image:.3f}."
)
BATCH_SIZE = 16  # pairs scored at a time: their logits over both vocabularies are large
PAD_LOSS = "first"  # the end of the caption counts, the predictable padding after it does not


def measure(context: EvaluationContext, config: EvaluateConfig) -> MetricResult:
    """Score the first `config.pairs` pairs of each held-out split with the transformer."""
    dalle = context.require_pipeline()
    sequence = dalle.transformer.sequence
    numbers: dict[str, float] = {}
    settings: dict[str, Any] = {"pad_targets": PAD_LOSS}
    notes: list[str] = []
    for split, source in context.sources.items():
        pairs = HeldOut(source, config.pairs, BATCH_SIZE)
        numbers |= {f"{name}_{split}": value for name, value in nats_per_token(dalle, pairs).items()}
        settings[split] = pairs.settings()
        notes += [f"{split}: {note}" for note in pairs.shortfall(config.pairs)]
    vocabularies = torch.tensor([sequence.text_vocabulary + 1, sequence.image_vocabulary]).log().tolist()
    return MetricResult(DESCRIPTION.format(text=vocabularies[0], image=vocabularies[1]), numbers, settings, notes=notes)


def nats_per_token(dalle: DALLE, pairs: HeldOut) -> dict[str, float]:
    """Compute `text_nats` and `image_nats`: means over all tokens of all pairs, independent of the batch size."""
    sums, tokens = torch.zeros(2, dtype=torch.float64), torch.zeros(2)
    for text, image in _token_nlls(dalle, pairs):
        sums += torch.stack([text.double().sum(), image.double().sum()])
        tokens += torch.tensor([len(text), len(image)])
    text, image = (sums / tokens).tolist()
    return {"text_nats": text, "image_nats": image}


@torch.inference_mode()
def _token_nlls(dalle: DALLE, pairs: HeldOut) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the NLL of each token in nats, for each batch: (text tokens,), (image tokens,), on the CPU."""
    model = dalle.transformer
    device = model.image_head.weight.device
    for batch in pairs:
        caption = dalle.tokenize(captions_of(batch), truncate=True).to(device)
        image = rearrange(dalle.dvae.encode(to_unit_range(batch.images.to(device))), "b h w -> b (h w)")
        logits = model(caption, image)
        targets = model.sequence.text_targets(caption, PAD_LOSS)
        text = token_nll(logits.text, targets)[targets != IGNORED]
        yield text.cpu(), token_nll(logits.image, image).flatten().cpu()
