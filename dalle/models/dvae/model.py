"""Discrete VAE: encodes an image as a grid of codebook indices and decodes such a grid to an image.

The architecture follows the paper (Section 2.1, Appendix A.1) and OpenAI's released code, with configurable sizes.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from dalle import checkpoint, hub
from dalle.models.dvae import gumbel_embedding
from dalle.models.dvae.config import DVAEConfig
from dalle.models.dvae.encoder_decoder import Decoder, Encoder
from dalle.models.dvae.relaxation import RELAXATIONS, negative_squared_distance, straight_through_vectors
from dalle.pretrained.openai_dvae import read_openai_dvae
from dalle.pretrained.pretrained_weights import PretrainedWeights

PIXEL_MARGIN = 0.1  # epsilon of Appendix A.3, Equation 3: keeps pixels away from 0 and 1, where the likelihood diverges


def map_pixels(images: Tensor) -> Tensor:
    """Map pixels from [0, 1] to the interval (0.1, 0.9), for the likelihood (Appendix A.3, Eq. 3)."""
    return (1 - 2 * PIXEL_MARGIN) * images + PIXEL_MARGIN


def unmap_pixels(images: Tensor) -> Tensor:
    """Map pixels from the interval (0.1, 0.9) back to [0, 1], clamped: the inverse of `map_pixels`."""
    return ((images - PIXEL_MARGIN) / (1 - 2 * PIXEL_MARGIN)).clamp(0, 1)


class DiscreteVAE(nn.Module):
    """Discrete VAE: images to codebook indices and back. Trained by `dalle.stages.dvae`."""

    def __init__(self, config: DVAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.relax = RELAXATIONS[config.relaxation]
        if config.quantises_vectors and self.decoder.input.bias is not None:
            self.decoder.input.bias.requires_grad_(False)  # the codebook is the weight alone; gradients bypass the bias
        # convolutions are up to twice as fast in channels-last layout
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def vocabulary(self) -> int:
        return self.config.vocabulary

    @property
    def downsample(self) -> int:
        """Number of image pixels per code along each side."""
        return self.config.downsample

    def forward(
        self, images: Tensor, temperature: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the likelihood parameters of relaxed codes, (b, 6, ., .), and the codes' logits, (b, v, h, w)."""
        encoded = self._encoded(images)  # (b, v, h, w), or (b, decoder_input, h, w)
        logits = self._logits(encoded)  # (b, v, h, w)
        embeddings = self.embed_relaxed(logits, temperature, generator)  # (b, decoder_input, h, w)
        if self.config.quantises_vectors:
            embeddings = straight_through_vectors(encoded, embeddings)
        return self.decoder.decode_embeddings(embeddings), logits

    def embed_relaxed(self, logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
        """Relax the codes and embed them by the decoder's first layer: (b, v, h, w) -> (b, decoder_input, h, w)."""
        layer = self.decoder.input
        if self.config.relaxation == "gumbel_softmax" and gumbel_embedding.is_worthwhile(logits, layer):
            return gumbel_embedding.gumbel_embedding(logits, layer, temperature, generator)
        return self.decoder.embed(self.relax(logits, temperature, generator))

    def logits(self, images: Tensor) -> Tensor:
        """Compute unnormalised log-probabilities of the codes.

        images: (b, 3, h * downsample, w * downsample) in [0, 1] -> (b, v, h, w). Raises `ValueError` for integer
        images and for sides that are not a multiple of `downsample`. The range [0, 1] is not checked.
        """
        return self._logits(self._encoded(images))

    def encode(self, images: Tensor) -> Tensor:
        """Return the most probable code at each position (Section 2.2): (b, 3, ., .) in [0, 1] -> (b, h, w) int64."""
        return self.logits(images).argmax(dim=1)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Decode one-hot or relaxed codes to likelihood parameters: (b, v, h, w) -> (b, 6, ., .)."""
        return self.decoder(codes)

    def decode(self, tokens: Tensor) -> Tensor:
        """Decode indices to an image: (b, h, w) integers -> (b, 3, h * downsample, w * downsample) in [0, 1].

        The scale ln b is ignored, as in the paper (Appendix A.3). Raises `ValueError` for indices that are floats
        or outside the codebook.
        """
        self.check_tokens(tokens)
        return mean_image(self.decoder.decode_embeddings(self.decoder.embed_tokens(tokens)))

    def check_tokens(self, tokens: Tensor) -> None:
        """Raise `ValueError` for indices that are floats or outside the codebook."""
        if tokens.is_floating_point():
            raise ValueError(f"tokens are indices of the codebook as integers, not {tokens.dtype}")
        if not tokens.numel():
            return
        indices = tokens.long()  # torch has no minimum of unsigned integers above 8 bits
        low, high = indices.min().item(), indices.max().item()
        if low < 0 or high >= self.vocabulary:
            raise ValueError(f"tokens span {low} to {high}, but the codebook has indices 0 to {self.vocabulary - 1}")

    def _encoded(self, images: Tensor) -> Tensor:
        self._check_images(images)
        return self.encoder(map_pixels(images))

    def _logits(self, encoded: Tensor) -> Tensor:
        if not self.config.quantises_vectors:
            return encoded
        return negative_squared_distance(encoded, self.decoder.input.weight[:, :, 0, 0].T)

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (b, 3, height, width), not {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"images must be floats in [0, 1], not {images.dtype}; divide 8-bit pixels by 255")
        if images.shape[2] % self.downsample or images.shape[3] % self.downsample:
            raise ValueError(
                f"images of {images.shape[3]}x{images.shape[2]} pixels do not divide into codes of "
                f"{self.downsample}x{self.downsample} pixels; crop or resize them first"
            )

    def save(self, folder: str | Path, meta: dict | None = None) -> None:
        """Write the model to a checkpoint folder, which `load` reads. `meta`: further entries, JSON-serialisable."""
        checkpoint.save_model(folder, "dvae", self, self.config, meta)

    @classmethod
    def load(cls, folder: str | Path) -> "DiscreteVAE":
        """Load a model in eval mode from a checkpoint folder. Raises `CheckpointError` if it is missing or invalid."""
        return checkpoint.load_model(folder, "dvae", DVAEConfig, cls)

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> "DiscreteVAE":
        """Load a model in eval mode from a folder, by a name in the package, or from user/name on the Hugging Face Hub.

        The model may be in a sub-folder dvae there. Raises `CheckpointError` as `load` and `hub.local_folder` do.
        """
        return cls.load(hub.model_folder(name, "dvae", revision))

    @classmethod
    def from_openai(cls, encoder: str | Path = "encoder.pkl", decoder: str | Path = "decoder.pkl") -> "DiscreteVAE":
        """Load OpenAI's dVAE in eval mode from its two published files, without executing the code in them.

        The files are https://cdn.openai.com/dall-e/encoder.pkl and .../decoder.pkl. Raises `CheckpointError` if one is
        missing or invalid.
        """
        return cls.from_pretrained_weights(read_openai_dvae(encoder, decoder))

    @classmethod
    def from_pretrained_weights(cls, weights: PretrainedWeights) -> "DiscreteVAE":
        """Build a model in eval mode from weights read by `dalle.pretrained`."""
        model = cls(DVAEConfig(**weights.sizes))
        model.load_state_dict(weights.tensors)
        return model.eval()


def codebook_use(counts: Tensor) -> tuple[int, float]:
    """Compute codebook usage from the codes' counts, (v,): the number of codes used, and their perplexity.

    The perplexity, exp(entropy), is between 1 and v: the number of equally frequent codes with the same entropy.
    """
    share = counts / counts.sum()
    entropy = -torch.special.xlogy(share, share).sum()
    return int((counts > 0).sum()), entropy.exp().item()


def mean_image(likelihood_params: Tensor) -> Tensor:
    """Return the image of likelihood parameters: (b, 6, h, w) -> (b, 3, h, w) in [0, 1] (Appendix A.3)."""
    return unmap_pixels(likelihood_params[:, :3].sigmoid())
