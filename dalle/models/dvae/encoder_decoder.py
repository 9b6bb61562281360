"""Encoder and decoder of the discrete VAE: groups of residual blocks between convolutions (Appendix A.1).

There is no codebook module: the decoder's first 1x1 convolution, applied to one-hot (or relaxed) codes, is the
embedding.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.models.dvae.config import DVAEConfig
from dalle.models.dvae.convolutions import ResidualBlock, SameConv2d


class Encoder(nn.Module):
    """Encoder: mapped pixels (b, 3, 8h, 8w) -> (b, v, h, w) logits of the codes.

    For vector quantisation: -> (b, decoder_input, h, w) vectors to be quantised.
    """

    def __init__(self, config: DVAEConfig):
        super().__init__()
        widths = [config.width * 2**g for g in range(config.groups)]
        self.input = SameConv2d(3, config.width, 7)
        self.groups = nn.ModuleList(
            _group(a, b, config, kernels=(3, 3, 3, 1))
            for a, b in zip([config.width, *widths[:-1]], widths, strict=True)
        )
        outputs = config.decoder_input if config.quantises_vectors else config.vocabulary
        self.output = SameConv2d(widths[-1], outputs, config.bottleneck_kernel)
        self.pool = nn.MaxPool2d(2) if config.pool == "max" else nn.AvgPool2d(2)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.output.in_full_precision(self.features(pixels))  # (b, v, h, w), or (b, decoder_input, h, w)

    def features(self, pixels: Tensor) -> Tensor:
        """Compute the input of the last layer: (b, 3, 8h, 8w) mapped pixels -> (b, c, h, w)."""
        x = self.input(pixels)  # (b, width, 8h, 8w)
        for number, group in enumerate(self.groups):
            x = group(x if number == 0 else self.pool(x))
        return F.relu(x)


class Decoder(nn.Module):
    """Decoder: one-hot or relaxed codes (b, v, h, w) -> likelihood parameters (b, 6, 8h, 8w).

    The parameters are mu of each colour channel, then ln b of each.
    """

    def __init__(self, config: DVAEConfig):
        super().__init__()
        widths = [config.width * 2**g for g in reversed(range(config.groups))]
        self.input = SameConv2d(config.vocabulary, config.decoder_input, config.bottleneck_kernel)
        self.groups = nn.ModuleList(
            _group(a, b, config, kernels=(1, 3, 3, 3), upsample=number > 0)
            for number, (a, b) in enumerate(zip([config.decoder_input, *widths[:-1]], widths, strict=True))
        )
        self.output = SameConv2d(widths[-1], 6, 1)

    def forward(self, codes: Tensor) -> Tensor:
        return self.decode_embeddings(self.embed(codes))

    def embed(self, codes: Tensor) -> Tensor:
        """Embed one-hot or relaxed codes: (b, v, h, w) -> (b, decoder_input, h, w)."""
        return self.input.in_full_precision(codes)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Compute `embed` of one-hot codes from their indices: (b, h, w) integers -> (b, decoder_input, h, w)."""
        weight, bias = self.input.weight, self.input.bias
        tokens = tokens.to(torch.int64, copy=True)  # copied, as autograd cannot save tensors created in inference mode
        if self.input.kernel_size != (1, 1):
            codes = rearrange(F.one_hot(tokens, weight.shape[1]), "b h w v -> b v h w")
            return self.embed(codes.to(weight.dtype))
        embedded = F.embedding(tokens, weight[:, :, 0, 0].T) + (0 if bias is None else bias)
        return rearrange(embedded, "b h w d -> b d h w")

    def decode_embeddings(self, embeddings: Tensor) -> Tensor:
        """Decode code embeddings to likelihood parameters: (b, decoder_input, h, w) -> (b, 6, 8h, 8w)."""
        x = embeddings
        for group in self.groups:
            x = group(x)
        return self.output.in_full_precision(F.relu(x))  # (b, 6, 8h, 8w)


def _group(
    inputs: int, outputs: int, config: DVAEConfig, kernels: tuple[int, int, int, int], upsample: bool = False
) -> nn.Sequential:
    first = ResidualBlock(inputs, outputs, kernels, config.branch_gain, upsample)
    rest = (ResidualBlock(outputs, outputs, kernels, config.branch_gain) for _ in range(config.blocks_per_group - 1))
    return nn.Sequential(first, *rest)
