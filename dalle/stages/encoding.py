"""All training pictures of a data set as a dVAE's tokens: made once, by prepare.py or by the stage that needs them."""

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
    """Raises ValueError for a number of views that this transform cannot give."""
    if views < 1 or (transform == "none" and views > 1):
        most = "1: without a transform, every view of a picture is the same" if transform == "none" else "at least 1"
        raise ValueError(f"views={views} must be {most}")


def grid_of(image_size: int, dvae: DiscreteVAE, folder: Path) -> int:
    """Tokens along each side of a picture. Raises ValueError where `image_size` does not divide into them."""
    if image_size % dvae.downsample:
        raise ValueError(
            f"pictures of {image_size} pixels do not divide into the codes of {folder}, "
            f"which are {dvae.downsample} pixels wide; change data.image_size"
        )
    return image_size // dvae.downsample


class Encoding:
    """The training pictures of a data set, as `transform` shows them, in tokens of the dVAE in `dvae_folder`."""

    def __init__(self, data: Any, source: Source, transform: str, views: int, dvae_folder: Path, device: torch.device):
        """device: that the pictures are encoded on."""
        check_views(views, transform)
        self.data, self.source, self.dvae_folder, self.device = data, source, dvae_folder, device
        self.transform = transform
        # a million files are looked at by one rank, not by all
        digests = (source.digest(), checkpoint.digest(dvae_folder)) if distributed.is_first() else ("", "")
        data_digest, dvae_digest = distributed.broadcast(digests)
        self.kind = TokenKind(data_digest, source.image_size, transform, dvae_digest, views, device.type)

    def place(self, tokens: Path) -> Path:
        """Where they are, or will be: `tokens` itself where that is a cache, else a folder in it, named by its kind."""
        return tokens if is_cache(tokens) else place_of(tokens, self.data.name, self.kind)

    def cache(self, folder: Path, dvae: DiscreteVAE, workers: int) -> TokenCache:
        """The tokens in `folder`; what is missing is encoded first, by all ranks. Stopped midway, it goes on there.

        Raises `StaleTokens` where the folder holds tokens of something else, and LoadingError as loaders do.
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
            for seen in loader.views(self.source, transform_named(self.transform), own, workers):
                tokens = encode(dvae, seen.images, self.device)
                cache.write(seen.block, tokens.cpu().numpy(), seen.readable)
                bar.update(min(len(seen.images) * distributed.world(), pictures - bar.n))
        distributed.barrier()
        finished = TokenCache(folder, self.kind)
        if finished.count(TODO):
            raise StaleTokens(f"{finished.count(TODO):,} pictures of {folder} are not encoded yet: run the same again")
        return finished


def described(cache: TokenCache) -> str:
    """For example "190 pictures in 4 views of 1,024 tokens each, 10 could not be read"."""
    views, records, positions = cache.tokens.shape
    unreadable = cache.count(UNREADABLE) // views
    said = f"{cache.count(ENCODED) // views:,} pictures in {views} views of {positions:,} tokens each"
    return said + (f"; {unreadable:,} could not be read" if unreadable else "")


@torch.no_grad()
def encode(dvae: DiscreteVAE, images: Tensor, device: torch.device) -> Tensor:
    """The most probable codes of pictures: (b, 3, s, s) uint8 -> (b, n) int64 on the device, in raster order."""
    return argmax(dvae.logits(pixels_of(images, device))).inputs
