"""Stage 2: the transformer, trained on caption and image tokens as one sequence (Section 2.2, Appendix B)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dalle import distributed
from dalle.data.collate import ImageBatch, TokenBatch
from dalle.data.token_cache import TokenCache, is_cache
from dalle.device_transfer import to_device
from dalle.models.dvae.config import DVAEConfig
from dalle.models.linear_cross_entropy import IGNORED
from dalle.models.transformer.model import Targets, TokenLosses, Transformer, TransformerConfig
from dalle.models.transformer.sequence import PAD, PAD_LOSS_OPTIONS
from dalle.precision import without_autocast
from dalle.sampling.labelled_grid import ImageRow, labelled_grid
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import DEFAULT_SCORES, DecodingConfig, SamplingConfig
from dalle.sampling.sampling_defaults import SamplingDefaults
from dalle.stages.data_config import CaptionedDataConfig
from dalle.stages.data_module import DataModule, StageContext
from dalle.stages.encode_dataset import DatasetEncoder, check_crops
from dalle.stages.frozen_dvae import dvae_record, encoding_cost, load_frozen_dvae, require_dvae, token_grid_size
from dalle.stages.image_tokens import ImageTokens, most_probable_tokens, token_choice_named
from dalle.training.ema import EMAConfig
from dalle.training.flops import EncodingCost, ImageCost, forward_flops
from dalle.training.optimizer import OptimizerConfig, PlateauConfig
from dalle.training.schedules import Schedule


@dataclass(frozen=True)
class TransformerStageConfig(CaptionedDataConfig):
    """Stage 2, the transformer: the paper's recipe (Section 2.2, Appendix B.2). Needs dvae=<checkpoint folder>."""

    model_class: ClassVar[type[nn.Module]] = Transformer
    trained_on_tokens: ClassVar[bool] = True
    validates_sharded: ClassVar[bool] = True

    name: str = "transformer"
    # grid and image_vocabulary come from the dVAE; text_vocabulary is a maximum, overwritten by the tokenizer's size
    model: TransformerConfig = field(default_factory=TransformerConfig)
    text_weight: float = 1 / 8  # weight of the text loss; the image loss has the rest (Section 2.2)
    pad_loss: str = "first"  # padding positions in the text loss: none | first | all (the paper does not say)
    image_targets: str = "argmax"  # "argmax" of the dVAE's logits | "sampled" | "soft": its distribution (fn. 6)
    crops: int = 0  # crops of each image, encoded once and used in turn; 0: a new crop each time (paper)
    bpe_dropout: float = 0.1  # BPE dropout rate of training captions (Section 2.2)
    caption_dropout: float = 0.0  # share of training captions dropped, for classifier-free guidance; the paper has none
    guidance: float = 1.0  # default scale of classifier-free guidance when sampling; 1: none, as in the paper
    sampling_temperature: float = 1.0  # default temperature when sampling; 1 in the paper
    sampling_rerank: str = "clip"  # default score for ranking samples: clip (the paper) | image_likelihood | mixture
    # further validation splits: [novel] of data=blocks adds the metrics novel_text and novel_image
    also_validate: list[str] = field(default_factory=list)
    transform: str = "transformer"
    steps: int = 430_000
    batch_size: int = 1_024
    clip_norm: float | None = 4.0
    gradient_scaling: str = "resblock"
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=Schedule("constant", 4.5e-4),
            warmup_steps=5_000,
            plateau=PlateauConfig(max_reductions=5),
            betas=(0.9, 0.96),
            weight_decay=4.5e-2,
            variance_clip=5.0,
        )
    )
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(decay=0.99, every=25))

    def __post_init__(self) -> None:
        super().__post_init__()
        token_choice_named(self.image_targets)  # reject an unknown name before anything starts
        if self.pad_loss not in PAD_LOSS_OPTIONS:
            raise ValueError(f"pad_loss={self.pad_loss!r} is unknown; choose one of {', '.join(PAD_LOSS_OPTIONS)}")
        for name in ("bpe_dropout", "caption_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and below 1")
        if not 0 <= self.text_weight <= 1:
            raise ValueError(f"text_weight={self.text_weight} must lie between 0 and 1; the image loss has the rest")
        DecodingConfig(guidance=self.guidance, temperature=self.sampling_temperature)  # reject what sampling would
        if self.guidance != 1 and not self.caption_dropout:
            raise ValueError(f"guidance={self.guidance} needs training with dropped captions: set caption_dropout=0.1")
        if self.sampling_rerank not in DEFAULT_SCORES:
            raise ValueError(
                f"sampling_rerank={self.sampling_rerank} is no default score; choose one of {', '.join(DEFAULT_SCORES)}"
            )
        if self.crops:
            check_crops(self.crops, self.transform)
        if self.crops and self.image_targets != "argmax":
            raise ValueError(
                f"crops={self.crops} caches argmax tokens, so image_targets={self.image_targets} needs crops=0"
            )

    def model_for(self, image_size: int, dvae: DVAEConfig | None = None) -> TransformerConfig:
        assert dvae is not None
        return replace(self.model, image_vocabulary=dvae.vocabulary, grid=token_grid_size(image_size, dvae))

    def example_batch(self, images: int, image_size: int) -> tuple[Any, ...]:
        lengths = self.model.text_positions, self.model.grid**2
        caption, image = (torch.zeros(images, length, dtype=torch.int64) for length in lengths)
        soft = self.image_targets == "soft"
        return caption, image, torch.zeros(*image.shape, self.model.image_vocabulary) if soft else image

    def example_loss(self, model: nn.Module, batch: tuple[Any, ...], ranks: int) -> Tensor:
        caption, image, targets = batch
        nll: TokenLosses = model(caption, image, targets=Targets(caption, targets))
        return self.text_weight * nll.text.mean() + (1 - self.text_weight) * nll.image.mean()

    @property
    def tokens_are_fixed(self) -> bool:
        """True if an image has the same tokens each time it is seen: the most probable ones, of one crop."""
        return (self.transform, self.image_targets) == ("none", "argmax")

    def encoding_cost(self, image_size: int, dvae: DVAEConfig) -> EncodingCost:
        cost = encoding_cost(dvae, image_size, self.image_targets)
        return cost._replace(flops=0) if self.crops or self.tokens_are_fixed else cost

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        return SamplingDefaults(self.caption_dropout, self.guidance, self.sampling_temperature, self.sampling_rerank)


@dataclass(frozen=True)
class TokenizedBatch:
    """Captions and images of one micro-batch as tokens: the transformer's input, and the targets of image tokens."""

    caption: Tensor  # (b, text_positions) int64, padded with PAD
    image: Tensor  # (b, grid * grid) int64
    image_targets: Tensor  # (b, grid * grid) int64, or distributions over the codes, (b, grid * grid, image_vocabulary)
    keys: list[str]  # b, keys of the records


class TransformerStage:
    """Training stage of the transformer, see `dalle.training.stage.Stage`."""

    name = "transformer"
    validation_loss = "loss"

    def __init__(self, config: TransformerStageConfig, data: Any, context: StageContext):
        self.config = config
        self.data = DataModule(data, config, context)
        self.dvae_folder = require_dvae(context.dvae, self.name)
        self.dvae = load_frozen_dvae(self.dvae_folder, self.data.image_size, context.device)
        self.tokenizer = self.data.load_or_train_tokenizer(config, config.model.text_vocabulary)
        model = config.model_for(self.data.image_size, self.dvae.config)
        model = replace(model, text_vocabulary=self.tokenizer.vocabulary)
        self.choose_tokens = token_choice_named(config.image_targets)
        # raise for settings that do not work before all images are encoded, which may take hours
        for split in config.also_validate:
            self.data.held_out_split(split)
        with torch.device("meta"):
            Transformer(model)
        self.cache = self._open_cache(context)
        # this rank's validation batches by split, encoded once; False: the batch does not count
        self._held_out: dict[str, list[tuple[TokenizedBatch, bool]]] = {}
        # mean number of text targets in a micro-batch of this update, over all ranks; None: no update has begun
        self._mean_text_targets: Tensor | None = None
        self.model = Transformer(model).to(context.device)

    def batches(self, start: int) -> Iterator[TokenizedBatch]:
        data, config = self.data, self.config
        batches = data.batches(start) if self.cache is None else data.token_batches(self.cache, start)
        for number, batch in enumerate(batches, start):
            yield self._tokenize(batch, config.bpe_dropout, config.caption_dropout, data.generators(number))

    def before_update(self, step: int, batches: Sequence[Any]) -> None:
        """Count the text targets of the update, so that each text token has the same weight in its loss."""
        counts = torch.stack([(self._text_targets(batch) != IGNORED).sum() for batch in batches])
        self._mean_text_targets = distributed.all_reduce_mean(counts.float().mean())

    def loss(
        self, model: nn.Module, batch: TokenizedBatch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Compute the weighted sum of nats per text token and per image token (Sec. 2.2)."""
        text, image = self._nll(model, batch)
        loss = self.config.text_weight * text + (1 - self.config.text_weight) * image
        return loss, {"text": text, "image": image}

    def image_cost(self) -> ImageCost:
        """Return the cost of caption and image as one sequence. The dVAE, which is not trained, is left out."""
        config = self.model.config
        text, image = config.text_positions, config.grid**2
        return ImageCost(forward_flops(self.model, (text,), (image,), integers=True), tokens=text + image)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Compute nats per text token and per image token on held-out data, and their weighted sum.

        Image tokens are the most probable codes for every value of `image_targets`, so results are comparable.
        """
        text, image = self._held_out_nll(model, "val")
        weight = self.config.text_weight
        metrics = {"loss": weight * text + (1 - weight) * image, "text": text, "image": image}
        for split in self.config.also_validate:
            text, image = self._held_out_nll(model, split)
            metrics |= {f"{split}_text": text, f"{split}_image": image}
        return metrics

    def preview(self, model: nn.Module) -> Image.Image | None:
        """Return a grid of images sampled for held-out captions, without reranking; None without any caption."""
        assert isinstance(model, Transformer)
        dalle = DALLE(self.dvae, model, self.tokenizer, defaults=self.config.sampling_defaults)
        captions = [caption for batch in self.data.held_out(4) for caption in batch.captions if caption]
        if not captions:  # of images without captions (data.allow_missing_captions)
            return None
        results = dalle.generate_many(captions, SamplingConfig(candidates=4, keep=4), truncate=True, progress=False)
        return labelled_grid([ImageRow(result.caption, result.images, None) for result in results])

    def save(self, folder: Path, model: nn.Module, meta: dict[str, Any]) -> None:
        """Write a checkpoint; its meta has the dVAE's path and digest, and the default settings of sampling."""
        assert isinstance(model, Transformer)
        dvae = dvae_record(self.dvae_folder, folder)
        meta = self.data.add_provenance(meta, folder) | {"dvae": dvae} | asdict(self.config.sampling_defaults)
        model.save(folder, meta, self.tokenizer)

    def _held_out_nll(self, model: nn.Module, split: str) -> tuple[float, float]:
        if split not in self._held_out:
            with without_autocast(self.data.device.type):  # the loop enables it for validation
                batches = self.data.held_out_share(self.config.validation_images, split)
                self._held_out[split] = [(self._tokenize(batch), not batch.is_padding) for batch in batches]
        nats, tokens = torch.zeros(2), torch.zeros(2)
        for batch, counts in self._held_out[split]:
            # on padding too: ranks call a sharded model equally often
            text, image, text_tokens = self._token_nlls(model, batch)
            if counts:
                nats += torch.stack([text.sum(), image.sum()]).cpu()
                tokens += torch.tensor([text_tokens.item(), image.numel()])
        nats, tokens = distributed.all_reduce_sum([nats, tokens])
        text, image = (nats / tokens.clamp(min=1)).tolist()
        return text, image

    def _nll(self, model: nn.Module, batch: TokenizedBatch) -> tuple[Tensor, Tensor]:
        """Compute mean nats per text token and per image token of a micro-batch: two scalars.

        Micro-batches have different numbers of text tokens. Each sum is divided by the mean number in the update, so
        the mean of the results over micro-batches and ranks is the mean over all text tokens of the update.
        """
        text, image, text_tokens = self._token_nlls(model, batch)
        count = text_tokens.float() if self._mean_text_targets is None else self._mean_text_targets
        count = count.clamp(min=torch.finfo(count.dtype).tiny)  # all captions may be dropped: 0 nats
        return text.sum() / count, image.mean()

    def _token_nlls(self, model: nn.Module, batch: TokenizedBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Compute nats of each text token, (b, T), and image token, (b, grid * grid), and count the text targets."""
        text_targets = self._text_targets(batch)
        nll: TokenLosses = model(batch.caption, batch.image, targets=Targets(text_targets, batch.image_targets))
        return nll.text, nll.image, (text_targets != IGNORED).sum()

    def _text_targets(self, batch: TokenizedBatch) -> Tensor:
        """Return the target of each text position, (b, T) int64; IGNORED for padding without a loss."""
        targets = self.model.sequence.text_targets(batch.caption, self.config.pad_loss)
        # dropped and missing captions have no text targets: p(caption) is learned from the data's captions only
        return targets.masked_fill(batch.caption[:, :1] == PAD, IGNORED)

    @torch.no_grad()
    def _tokenize(
        self,
        batch: ImageBatch | TokenBatch,
        bpe_dropout: float = 0.0,
        caption_dropout: float = 0.0,
        generators: list[np.random.Generator] | None = None,
    ) -> TokenizedBatch:
        """Encode captions and images as tokens. An empty caption is all padding, like a dropped one.

        generators: one per image, for all random choices; None: no dropout, and the most probable image tokens.
        """
        per_caption = generators or [None] * len(batch.captions)
        ids = [
            self.tokenizer.encode(caption, bpe_dropout, generator)
            for caption, generator in zip(batch.captions, per_caption, strict=True)
        ]
        caption = self.model.sequence.pad_captions([token_ids or [PAD] for token_ids in ids], truncate=True)
        if caption_dropout and generators:
            dropped = torch.tensor([generator.random() < caption_dropout for generator in generators])
            caption = caption.masked_fill(dropped[:, None], PAD)
        image = self._encode_images(batch, generators)
        return TokenizedBatch(to_device(caption, self.data.device), image.inputs, image.targets, batch.keys)

    def _encode_images(
        self, batch: ImageBatch | TokenBatch, generators: list[np.random.Generator] | None
    ) -> ImageTokens:
        """Encode images with the dVAE, or move cached tokens to the device. generators: as for `_tokenize`."""
        if isinstance(batch, TokenBatch):
            tokens = to_device(batch.tokens, self.data.device)
            return ImageTokens(tokens, tokens)
        logits = self.dvae.logits(self.data.pixels(batch))
        return self.choose_tokens(logits, generators) if generators else most_probable_tokens(logits)

    def _open_cache(self, context: StageContext) -> TokenCache | None:
        """Open the token cache of all training images, encoding them if needed; None to encode each batch instead."""
        config, train, tokens = self.config, self.data.train, context.tokens
        has_cache = tokens is not None and is_cache(tokens)
        crops = config.crops
        if config.tokens_are_fixed:  # encode them once if images are seen more than once
            crops = int(crops or has_cache or config.steps * config.batch_size > len(train))
        if has_cache and not crops:
            raise ValueError(
                f"tokens={tokens} is a token cache, but stage.crops=0 encodes a new crop of each image every time: set "
                "stage.crops to the cache's number of crops"
            )
        if tokens is None or not crops:
            return None
        encoder = DatasetEncoder(
            self.data.data_config, train, config.transform, crops, self.dvae_folder, context.device
        )
        return encoder.open_cache(encoder.cache_folder(tokens), self.dvae, config.workers)
