"""Encoding of all training images of a data set to a token cache, for prepare.py and the transformer stage."""

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
from dalle.data.token_cache import (
    ENCODED,
    PENDING,
    UNREADABLE,
    TokenCache,
    TokenCacheMismatch,
    TokenCacheSettings,
    cache_folder,
    is_cache,
)
from dalle.data.transforms import get_transform
from dalle.models.dvae.model import DiscreteVAE
from dalle.progress import progress_bar
from dalle.stages.data_module import pixels_of
from dalle.stages.frozen_dvae import token_grid_size
from dalle.stages.image_tokens import most_probable_tokens


def check_crops(crops: int, transform: str) -> None:
    """Raise ValueError if `crops` is below 1, or above 1 with the transform "none"."""
    if crops < 1 or (transform == "none" and crops > 1):
        allowed = "1: without a transform, all crops of an image are equal" if transform == "none" else "at least 1"
        raise ValueError(f"crops={crops} must be {allowed}")


class DatasetEncoder:
    """Encoder of the transformed training images of a data set to tokens of the dVAE in `dvae_folder`."""

    def __init__(self, data: Any, source: Source, transform: str, crops: int, dvae_folder: Path, device: torch.device):
        """Read the digests of data set and dVAE. All ranks must call it.

        data: config of the data set; `source` is its training split.
        transform: name of the transform of training images.
        crops: number of crops of each image that are encoded.
        dvae_folder: checkpoint of the dVAE.
        device: device to encode on.

        Raises ValueError as `check_crops` does, and for an unknown transform.
        """
        check_crops(crops, transform)
        get_transform(transform)  # a typo must not reach the settings of a cache in a folder that the user named
        self.data, self.source, self.dvae_folder, self.device = data, source, dvae_folder, device
        self.transform = transform
        # one rank reads the metadata of up to millions of files, and broadcasts the digest
        digests = (source.digest(), checkpoint.digest(dvae_folder)) if distributed.is_main_process() else ("", "")
        data_digest, dvae_digest = distributed.broadcast_object(digests)
        self.settings = TokenCacheSettings(data_digest, source.image_size, transform, dvae_digest, crops, device.type)

    def cache_folder(self, tokens: Path) -> Path:
        """Return the token cache's folder: `tokens` if it is itself a cache, else its subfolder for these settings."""
        return tokens if is_cache(tokens) else cache_folder(tokens, self.data.name, self.settings)

    def open_cache(self, folder: Path, dvae: DiscreteVAE, workers: int, retry_unreadable: bool = False) -> TokenCache:
        """Open the token cache in `folder`; missing tokens are encoded first, by all ranks.

        An interrupted encoding resumes at the next call. With `retry_unreadable`, images that could not be read before
        are tried again. Raises `TokenCacheMismatch` if the folder has tokens made with
        other settings, or some are still missing, and LoadingError as the loaders do.
        """
        positions = token_grid_size(self.source.image_size, dvae.config, self.dvae_folder) ** 2
        metadata = {
            "data": asdict(self.data),
            "dvae": str(self.dvae_folder.resolve()),
            "records": len(self.source),
            "positions": positions,
            "vocabulary": dvae.vocabulary,
        }
        if distributed.is_main_process():
            TokenCache.create(folder, self.settings, len(self.source), positions, dvae.vocabulary, metadata)
        distributed.barrier()
        cache = TokenCache(folder, self.settings)
        blocks = distributed.broadcast_object(list(cache.pending_blocks(retry_unreadable)))
        if not blocks:
            return cache
        rank_blocks = blocks[distributed.get_rank() :: distributed.get_world_size()]
        images = sum(block.last - block.first for block in blocks)
        if distributed.is_main_process():
            tqdm.write(f"encoding {images:,} images into {folder}", file=sys.stderr)
        with progress_bar(images, "tokens", shown=distributed.is_main_process()) as bar:
            for batch in loader.encoder_batches(self.source, get_transform(self.transform), rank_blocks, workers):
                tokens = encode(dvae, batch.images, self.device)
                cache.write(batch.block, tokens.cpu().numpy(), batch.readable)
                bar.update(min(len(batch.images) * distributed.get_world_size(), images - bar.n))
        distributed.barrier()
        finished = TokenCache(folder, self.settings)
        if finished.count(PENDING):
            raise TokenCacheMismatch(
                f"{finished.count(PENDING):,} images of {folder} are not encoded yet: run the same command again"
            )
        return finished


def summary(cache: TokenCache) -> str:
    """Summarise a cache: "190 images in 4 crops of 1,024 tokens each; 10 could not be read"."""
    crops, _, positions = cache.tokens.shape
    unreadable = cache.count(UNREADABLE) // crops
    text = f"{cache.count(ENCODED) // crops:,} images in {crops} crops of {positions:,} tokens each"
    return text + (f"; {unreadable:,} could not be read" if unreadable else "")


@torch.no_grad()
def encode(dvae: DiscreteVAE, images: Tensor, device: torch.device) -> Tensor:
    """Encode images to their most probable codes: (b, 3, s, s) uint8 -> (b, n) int64 on the device, raster order."""
    return most_probable_tokens(dvae.logits(pixels_of(images, device))).inputs
