"""Stage 2: the transformer, trained on caption and image tokens as one sequence (Section 2.2, Appendix B)."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dalle import checkpoint, distributed, losses
from dalle.checkpoint import CheckpointError
from dalle.data import open_source
from dalle.data.collate import ImageBatch, TokenBatch
from dalle.data.token_cache import TokenCache, is_cache
from dalle.device_transfer import to_device
from dalle.models.dvae.model import DiscreteVAE
from dalle.models.transformer.model import Logits, Transformer, TransformerConfig
from dalle.models.transformer.sequence import IGNORED, PAD, PAD_TARGETS
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import SamplingConfig
from dalle.sampling.sheet import Row, sample_sheet
from dalle.stages.encoding import Encoding, check_views, grid_of
from dalle.stages.image_tokens import ImageTokens, argmax, image_tokens_named
from dalle.stages.pictures import CaptionedConfig, Pictures, StageContext
from dalle.training.ema import EMAConfig
from dalle.training.optimizer import OptimizerConfig, PlateauConfig
from dalle.training.schedules import Schedule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TransformerStageConfig(CaptionedConfig):
    """Stage 2, the transformer: the paper's recipe (Section 2.2, Appendix B.2). Needs dvae=<checkpoint folder>."""

    name: str = "transformer"
    # grid and image vocabulary come from the dVAE, the text vocabulary from the tokenizer, with this value as maximum
    model: TransformerConfig = field(default_factory=TransformerConfig)
    text_weight: float = 1 / 8  # weight of the text loss; the image loss has the rest (Section 2.2)
    pad_targets: str = "first"  # padding positions in the text loss: none | first | all (the paper does not say)
    image_targets: str = "argmax"  # "argmax" of the dVAE's logits | "sampled" | "soft": its distribution (fn. 6)
    views: int = 0  # crops of each image, encoded once and used in turn; 0: a new crop each time (paper)
    bpe_dropout: float = 0.1  # BPE dropout rate of training captions (Section 2.2)
    caption_dropout: float = 0.0  # share of training captions dropped, for classifier-free guidance; the paper has none
    guidance: float = 1.0  # default scale of classifier-free guidance when sampling; 1: none, as in the paper
    also_validate: list[str] = field(default_factory=list)  # more validation splits: [novel] of blocks adds novel_image
    transform: str = "transformer"
    steps: int = 430_000
    batch_size: int = 1_024
    clip_norm: float | None = 4.0
    gradient_scaling: str = "resblock"
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=Schedule("constant", 4.5e-4),
            warm_up=5_000,
            plateau=PlateauConfig(halvings=5),
            betas=(0.9, 0.96),
            weight_decay=4.5e-2,
            variance_clip=5.0,
        )
    )
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(decay=0.99, every=25))

    def __post_init__(self) -> None:
        super().__post_init__()
        image_tokens_named(self.image_targets)  # reject an unknown name before anything starts
        if self.pad_targets not in PAD_TARGETS:
            raise ValueError(f"pad_targets={self.pad_targets!r} is unknown; choose one of {', '.join(PAD_TARGETS)}")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout={self.caption_dropout} is no share of captions; use 0 to below 1")
        if self.guidance != 1 and not self.caption_dropout:
            raise ValueError(f"guidance={self.guidance} needs captions left empty in training: set caption_dropout=0.1")
        if self.views:
            check_views(self.views, self.transform)
        if self.views and self.image_targets != "argmax":
            raise ValueError(f"views={self.views} keeps a picture's tokens, not {self.image_targets} ones: use views=0")


@dataclass(frozen=True)
class Encoded:
    """A batch of token sequences."""

    caption: Tensor  # (b, text_positions) int64, padded with PAD
    image: Tensor  # (b, grid * grid) int64
    image_targets: Tensor  # (b, grid * grid) int64, or distributions over the codes, (b, grid * grid, image_vocabulary)


class TransformerStage:
    """Training stage of the transformer, see `dalle.training.stage.Stage`."""

    name = "transformer"

    def __init__(self, config: TransformerStageConfig, data: Any, context: StageContext):
        self.config = config
        self.pictures = Pictures(data, config, context)
        self.dvae_folder = find_dvae(context.dvae)
        self.dvae = DiscreteVAE.load(self.dvae_folder).requires_grad_(False)
        self.dvae.to(context.device)
        grid = grid_of(self.pictures.image_size, self.dvae, self.dvae_folder)
        _warn_of_other_size(self.dvae_folder, self.pictures.image_size)
        self.tokenizer = self.pictures.tokenizer(config, config.model.text_vocabulary)
        sizes = replace(
            config.model,
            text_vocabulary=self.tokenizer.vocabulary,
            image_vocabulary=self.dvae.vocabulary,
            grid=grid,
        )
        self.image_tokens = image_tokens_named(config.image_targets)
        self.cache = self._cache(context)
        self._held_out: dict[str, list[Encoded]] = {}  # validation batches by split, encoded once
        for split in config.also_validate:
            open_source(data, split)  # raise for an unknown split before training starts
        self.transformer = Transformer(sizes)
        self.model = self.transformer.to(context.device)

    def batches(self, start: int) -> Iterator[Encoded]:
        pictures, dropped = self.pictures, (self.config.bpe_dropout, self.config.caption_dropout)
        stream = pictures.batches(start) if self.cache is None else pictures.token_batches(self.cache, start)
        for number, batch in enumerate(stream, start):
            yield self._encoded(batch, *dropped, pictures.generators(number))

    def before_update(self, step: int) -> None:
        """Do nothing: weights are changed by the optimizer alone."""

    def loss(
        self, model: nn.Module, batch: Encoded, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        text, image = self._nll(model, batch)
        loss = self.config.text_weight * text + (1 - self.config.text_weight) * image
        return loss, {"text": text, "image": image}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Compute nats per text token and per image token on held-out data, and their weighted sum.

        Image tokens are the most probable codes for every value of `image_targets`, so results are comparable.
        """
        text, image = self._held_out_nll(model, "val")
        weight = self.config.text_weight
        measures = {"loss": weight * text + (1 - weight) * image, "text": text, "image": image}
        for split in self.config.also_validate:
            text, image = self._held_out_nll(model, split)
            measures |= {f"{split}_text": text, f"{split}_image": image}
        return measures

    def preview(self, model: nn.Module) -> Image.Image:
        """Return a grid of images sampled for held-out captions, without reranking."""
        assert isinstance(model, Transformer)
        dropped, guidance = self.config.caption_dropout, self.config.guidance
        dalle = DALLE(self.dvae, model, self.tokenizer, caption_dropout=dropped, guidance=guidance)
        captions = [caption for batch in self.pictures.held_out(4) for caption in batch.captions]
        results = dalle.generate_many(captions, SamplingConfig(candidates=4, keep=4), truncate=True)
        return sample_sheet([Row(result.caption, result.images, None) for result in results])

    def save(self, folder: Path, model: nn.Module, meta: dict[str, Any]) -> None:
        """Write a checkpoint; its meta has the dVAE's path and digest, the caption dropout and the guidance scale."""
        assert isinstance(model, Transformer)
        path = os.path.relpath(self.dvae_folder.resolve(), folder.resolve())
        dvae = {"path": path, "digest": checkpoint.digest(self.dvae_folder)}
        drawing = {"caption_dropout": self.config.caption_dropout, "guidance": self.config.guidance}
        described = self.pictures.described(meta) | {"dvae": dvae} | drawing
        model.save(folder, described, self.tokenizer)

    def _held_out_nll(self, model: nn.Module, split: str) -> tuple[float, float]:
        if split not in self._held_out:
            with torch.autocast(self.pictures.device.type, enabled=False):  # the loop enables it for validation
                pictures = self.pictures.held_out(self.config.validation_pictures, split)
                self._held_out[split] = [self._encoded(batch) for batch in pictures]
        nats, tokens = torch.zeros(2), torch.zeros(2)
        for batch in self._held_out[split]:
            text, image, words = self._token_nlls(model, batch)
            nats += torch.stack([text.sum(), image.sum()]).cpu()
            tokens += torch.tensor([words.item(), image.numel()])
        text, image = (nats / tokens.clamp(min=1)).tolist()
        return text, image

    def _nll(self, model: nn.Module, batch: Encoded) -> tuple[Tensor, Tensor]:
        """Compute mean nats per text token and per image token of a batch."""
        text, image, words = self._token_nlls(model, batch)
        # ranks may have different numbers of text tokens: weight each token equally in the mean over all ranks
        words = distributed.mean(words.float())
        words = words.clamp(min=torch.finfo(words.dtype).tiny)  # all captions may be dropped: 0 nats
        return text.sum() / words, image.mean()

    def _token_nlls(self, model: nn.Module, batch: Encoded) -> tuple[Tensor, Tensor, Tensor]:
        """Compute nats of each text token, (b, T), and image token, (b, grid * grid), and count the text targets."""
        logits: Logits = model(batch.caption, batch.image)
        text_targets = self.transformer.sequence.text_targets(batch.caption, self.config.pad_targets)
        # dropped captions have no text targets: p(caption) is learned from the data's captions only
        text_targets = text_targets.masked_fill(batch.caption[:, :1] == PAD, IGNORED)
        text = losses.token_nll(logits.text, text_targets)
        return text, losses.token_nll(logits.image, batch.image_targets), (text_targets != IGNORED).sum()

    @torch.no_grad()
    def _encoded(
        self,
        batch: ImageBatch | TokenBatch,
        bpe_dropout: float = 0.0,
        caption_dropout: float = 0.0,
        generators: list[np.random.Generator] | None = None,
    ) -> Encoded:
        """Encode captions and images as tokens; deterministic without `generators`."""
        each = generators or [None] * len(batch.captions)
        ids = [
            self.tokenizer.encode(caption, bpe_dropout, generator)
            for caption, generator in zip(batch.captions, each, strict=True)
        ]
        caption = self.transformer.sequence.pad_captions(ids, truncate=True)
        if caption_dropout and generators:
            left_out = torch.tensor([generator.random() < caption_dropout for generator in generators])
            caption = caption.masked_fill(left_out[:, None], PAD)
        image = self._image_tokens(batch, generators)
        return Encoded(to_device(caption, self.pictures.device), image.inputs, image.targets)

    def _image_tokens(
        self, batch: ImageBatch | TokenBatch, generators: list[np.random.Generator] | None
    ) -> ImageTokens:
        if isinstance(batch, TokenBatch):
            tokens = to_device(batch.tokens, self.pictures.device)
            return ImageTokens(tokens, tokens)
        logits = self.dvae.logits(self.pictures.pixels(batch))
        return self.image_tokens(logits, generators) if generators else argmax(logits)

    def _cache(self, context: StageContext) -> TokenCache | None:
        """Open the token cache of all training images, encoding them if needed; None to encode each batch instead."""
        config, train, tokens = self.config, self.pictures.train, context.tokens
        named = tokens is not None and is_cache(tokens)
        views = config.views
        if (config.transform, config.image_targets) == ("none", "argmax"):  # tokens are deterministic
            views = int(views or named or config.steps * config.batch_size > len(train))
        if named and not views:
            raise ValueError(f"stage.views=0 encodes pictures each time they come: to train on {tokens}, set it")
        if tokens is None or not views:
            return None
        encoding = Encoding(self.pictures.data, train, config.transform, views, self.dvae_folder, context.device)
        return encoding.cache(encoding.place(tokens), self.dvae, config.workers)


def _warn_of_other_size(dvae: Path, image_size: int) -> None:
    """Warn if the dVAE was trained on images of another size: it works, but is seldom intended."""
    _, meta = checkpoint.read_config(dvae, "dvae")
    trained = meta.get("data", {}).get("image_size", image_size)
    if trained != image_size:
        log.warning("%s was trained on pictures of %d pixels, and data.image_size is %d", dvae, trained, image_size)


def find_dvae(folder: Path | None) -> Path:
    """Return the dVAE's checkpoint folder. Raises `CheckpointError` if it is None."""
    if folder is None:
        raise CheckpointError(
            "the transformer learns a dVAE's tokens: say which with dvae=<checkpoint folder>, for instance "
            "dvae=outputs/dvae/my-dvae; train one first with stage=dvae"
        )
    return folder
