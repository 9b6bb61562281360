"""Encoding of all training images of a data set to a token cache, by prepare.py or the transformer's stage."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dalle import checkpoint, distributed
from dalle.data import loader
from dalle.data.source import Source
from dalle.data.token_cache import ENCODED, TODO, UNREADABLE, StaleTokens, TokenCache, TokenKind, is_cache, place_of
from dalle.data.transforms import transform_named
from dalle.models.dvae.model import DiscreteVAE
from dalle.stages.image_tokens import argmax
from dalle.stages.pictures import pixels_of


def check_views(views: int, transform: str) -> None:
    """Raise ValueError if `views` is below 1, or above 1 with the transform "none"."""
    if views < 1 or (transform == "none" and views > 1):
        most = "1: without a transform, every view of a picture is the same" if transform == "none" else "at least 1"
        raise ValueError(f"views={views} must be {most}")


def grid_of(image_size: int, dvae: DiscreteVAE, folder: Path) -> int:
    """Return the number of tokens along each side of an image. Raises ValueError if `image_size` is not divisible."""
    if image_size % dvae.downsample:
        raise ValueError(
            f"pictures of {image_size} pixels do not divide into the codes of {folder}, "
            f"which are {dvae.downsample} pixels wide; change data.image_size"
        )
    return image_size // dvae.downsample


class Encoding:
    """Encoder of the transformed training images of a data set to tokens of the dVAE in `dvae_folder`."""

    def __init__(self, data: Any, source: Source, transform: str, views: int, dvae_folder: Path, device: torch.device):
        """device: device to encode on."""
        check_views(views, transform)
        self.data, self.source, self.dvae_folder, self.device = data, source, dvae_folder, device
        self.transform = transform
        # one rank reads the metadata of up to millions of files, and broadcasts the digest
        digests = (source.digest(), checkpoint.digest(dvae_folder)) if distributed.is_first() else ("", "")
        data_digest, dvae_digest = distributed.broadcast(digests)
        self.kind = TokenKind(data_digest, source.image_size, transform, dvae_digest, views, device.type)

    def place(self, tokens: Path) -> Path:
        """Return the cache's folder: `tokens` itself if it is a cache, else a subfolder named by the token kind."""
        return tokens if is_cache(tokens) else place_of(tokens, self.data.name, self.kind)

    def cache(self, folder: Path, dvae: DiscreteVAE, workers: int) -> TokenCache:
        """Open the token cache in `folder`; missing tokens are encoded first, by all ranks.

        An interrupted encoding resumes at the next call. Raises `StaleTokens` if the folder has tokens of another kind,
        or some are still missing, and LoadingError as the loaders do.
        """
        positions = grid_of(self.source.image_size, dvae, self.dvae_folder) ** 2
        about = {
            "data": asdict(self.data),
            "dvae": str(self.dvae_folder.resolve()),
            "records": len(self.source),
            "positions": positions,
            "vocabulary": dvae.vocabulary,
        }
        if distributed.is_first():
            TokenCache.create(folder, self.kind, len(self.source), positions, dvae.vocabulary, about)
        distributed.barrier()
        cache = TokenCache(folder, self.kind)
        blocks = distributed.broadcast(list(cache.unfinished()))
        if not blocks:
            return cache
        own = blocks[distributed.rank() :: distributed.world()]
        pictures = sum(block.last - block.first for block in blocks)
        if distributed.is_first():
            tqdm.write(f"encoding {pictures:,} pictures into {folder}", file=sys.stderr)
        shown = distributed.is_first() and sys.stderr.isatty()
        with tqdm(total=pictures, desc="tokens", unit=" pictures", dynamic_ncols=True, disable=not shown) as bar:
            for seen in loader.encoder_batches(self.source, transform_named(self.transform), own, workers):
                tokens = encode(dvae, seen.images, self.device)
                cache.write(seen.block, tokens.cpu().numpy(), seen.readable)
                bar.update(min(len(seen.images) * distributed.world(), pictures - bar.n))
        distributed.barrier()
        finished = TokenCache(folder, self.kind)
        if finished.count(TODO):
            raise StaleTokens(f"{finished.count(TODO):,} pictures of {folder} are not encoded yet: run the same again")
        return finished


def described(cache: TokenCache) -> str:
    """Summarise a cache: "190 pictures in 4 views of 1,024 tokens each; 10 could not be read"."""
    views, records, positions = cache.tokens.shape
    unreadable = cache.count(UNREADABLE) // views
    said = f"{cache.count(ENCODED) // views:,} pictures in {views} views of {positions:,} tokens each"
    return said + (f"; {unreadable:,} could not be read" if unreadable else "")


@torch.no_grad()
def encode(dvae: DiscreteVAE, images: Tensor, device: torch.device) -> Tensor:
    """Encode images to their most probable codes: (b, 3, s, s) uint8 -> (b, n) int64 on the device, raster order."""
    return argmax(dvae.logits(pixels_of(images, device))).inputs
