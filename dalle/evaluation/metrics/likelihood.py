"""Metric `likelihood`: negative log-likelihood of held-out pairs, in nats per text token and per image token."""

from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from dalle.evaluation.held_out import HeldOut, unit
from dalle.evaluation.measured import Measured
from dalle.evaluation.settings import EvaluateConfig
from dalle.evaluation.subject import Subject
from dalle.losses import token_nll
from dalle.models.transformer.sequence import IGNORED
from dalle.sampling.pipeline import DALLE

ABOUT = (
    "Negative log-likelihood of pairs that training never saw, teacher-forced; lower is better. `text_nats_*` is the "
    "mean over the words' tokens and the end of each caption, `image_nats_*` over image tokens, the most probable "
    "codes, given their caption. A uniform guess has ln of the vocabulary: {text:.3f} and {image:.3f}."
)
BATCH_SIZE = 16  # pairs scored at a time: their logits over both vocabularies are large
PAD_TARGETS = "first"  # the end of the caption counts, the predictable padding after it does not


def measure(subject: Subject, config: EvaluateConfig) -> Measured:
    """Score the first `config.pictures` pairs of each held-out split with the transformer."""
    dalle = subject.whole()
    sequence = dalle.transformer.sequence
    numbers: dict[str, float] = {}
    settings: dict[str, Any] = {"pad_targets": PAD_TARGETS}
    notes: list[str] = []
    for split, source in subject.sources.items():
        pairs = HeldOut(source, config.pictures, BATCH_SIZE)
        numbers |= {f"{name}_{split}": value for name, value in nats_per_token(dalle, pairs).items()}
        settings[split] = pairs.described()
        notes += [f"{split}: {each}" for each in pairs.shortfall(config.pictures)]
    vocabularies = torch.tensor([sequence.text_vocabulary + 1, sequence.image_vocabulary]).log().tolist()
    return Measured(ABOUT.format(text=vocabularies[0], image=vocabularies[1]), numbers, settings, notes=notes)


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
    """Yield the nats of every token that counts, for each batch: (text tokens), (image tokens), on the CPU."""
    model = dalle.transformer
    device = model.image_head.weight.device
    for batch in pairs:
        caption = dalle.tokenize(batch.captions, truncate=True).to(device)
        image = rearrange(dalle.dvae.encode(unit(batch.images.to(device))), "b h w -> b (h w)")
        logits = model(caption, image)
        targets = model.sequence.text_targets(caption, PAD_TARGETS)
        text = token_nll(logits.text, targets)[targets != IGNORED]
        yield text.cpu(), token_nll(logits.image, image).flatten().cpu()
