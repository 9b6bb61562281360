"""A session of the studio: one model, its queue of drawings, and the images of the session."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dalle import checkpoint, distributed
from dalle.bundled import checkpoint_folder
from dalle.image_grid import fitted
from dalle.sampling.attention_grid import heat_maps
from dalle.sampling.attention_maps import attention_to_text, word_maps
from dalle.sampling.caption_policy import CaptionPolicy
from dalle.sampling.components import find_components
from dalle.sampling.inference_dtype import dtype_name
from dalle.sampling.novelty import Novelty
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import UNRANKED, SamplingConfig
from dalle.studio.config import StudioConfig
from dalle.studio.drawing import JobRunner
from dalle.studio.edits import build_canvas
from dalle.studio.errors import ApiError
from dalle.studio.jobs import Job, JobQueue
from dalle.studio.model_info import card_limits, example_captions
from dalle.studio.previews import data_url
from dalle.studio.requests import DrawRequest
from dalle.studio.serial_executor import SerialExecutor
from dalle.studio.store import BoundedStore, Store, StoredImage
from dalle.studio.uploads import read_upload

TILE = 192  # pixels of heat maps and of training images
RANDOM_SEEDS = 2**31
IMAGE_WORK_LIMIT = 16  # uploads, edits, attention maps and searches that run or wait


@dataclass
class Session:
    """State of one studio: model, job queue and images. Its methods may take seconds: call them in a thread."""

    dalle: DALLE
    config: StudioConfig
    examples: list[str]  # captions that the model can draw
    limits: list[str]  # sentences about what it cannot
    recorded: Mapping[str, Any]  # settings for the record in each image: checkpoint and digests
    policy: CaptionPolicy | None = None
    novelty: Novelty | None = None

    def __post_init__(self) -> None:
        config = self.config
        self.store = Store(BoundedStore(config.max_images), BoundedStore(config.max_uploads))
        runner = JobRunner(self.dalle, self.store, self.recorded)
        self.jobs = JobQueue(runner, config.queue, runner.warm_up)
        # uploads, edits, attention maps and searches: one at a time, since they take memory and time
        self.image_work = SerialExecutor(IMAGE_WORK_LIMIT)

    @classmethod
    def load(cls, config: StudioConfig) -> "Session":
        """Load the model, and with `config.novelty` index its training images.

        Raises:
            ValueError: a model, a caption policy or training images that cannot be read.
        """
        policy = None if config.caption_policy is None else CaptionPolicy(config.caption_policy)
        device = distributed.init_process_group(config.device)
        paths = config.checkpoint, config.dvae, config.clip, config.decoder
        dalle = DALLE.load(paths[0], device, *paths[1:3], precision=config.precision, decoder=paths[3])
        components = find_components(*paths)
        novelty = Novelty.of_checkpoint(components, dalle.dvae, dalle.clip) if config.novelty else None
        recorded: dict[str, Any] = {name: getattr(config, name) for name in ("checkpoint", "dvae", "clip", "decoder")}
        recorded["precision"] = dtype_name(dalle.precision)
        recorded["digests"] = {name: checkpoint.digest(path) for name, path in components.items()}
        examples = example_captions(components["transformer"], dalle)
        limits = card_limits(checkpoint_folder(config.checkpoint))
        return cls(dalle, config, examples, limits, recorded, policy, novelty)

    def describe(self) -> dict[str, Any]:
        """Return the response body of `GET /api/model`: sizes, defaults, limits and capabilities of the model."""
        dalle, sequence = self.dalle, self.dalle.transformer.sequence
        defaults = dalle.resolve(SamplingConfig())
        return {
            "name": Path(self.config.checkpoint).name,
            "image_size": self.image_size,
            "grid": sequence.grid,
            "codes": dalle.dvae.vocabulary,
            "caption_tokens": sequence.caption_limit,
            "max_candidates": self.config.max_candidates,
            "temperature": defaults.temperature,
            "guidance": defaults.guidance,
            "rerank": defaults.rerank if defaults.ranked else UNRANKED,
            "examples": self.examples,
            "limits": self.limits,
            "has_clip": dalle.clip is not None,
            "scores_captions": self.scores_captions,
            "has_decoder": dalle.decoder is not None,
            "has_training_images": self.novelty is not None,
            "queue_limit": self.config.queue,
        }

    @property
    def image_size(self) -> int:
        return self.dalle.transformer.sequence.grid * self.dalle.dvae.downsample

    @property
    def scores_captions(self) -> bool:
        """True if `rerank=caption_likelihood` works: it compares a caption with the empty one."""
        return self.dalle.defaults.caption_dropout > 0

    def submit(self, request: DrawRequest) -> tuple[Job, int]:
        """Check a drawing and add it to the queue. Returns the job and the number of jobs before it.

        Raises:
            ApiError: the queue is full, or the edit's image is gone.
            ValueError: a caption or a setting that the model or the policy refuses.
        """
        self.jobs.check_capacity()  # before any work
        if request.seed is None:
            request = request.model_copy(update={"seed": random.SystemRandom().randrange(RANDOM_SEEDS)})
        if request.candidates > self.config.max_candidates:
            raise ValueError(
                f"candidates={request.candidates} are more than this studio draws at a time; "
                f"use at most {self.config.max_candidates}"
            )
        if request.top_k is not None and request.top_k > self.dalle.dvae.vocabulary:
            raise ValueError(
                f"top_k={request.top_k} is more than the model's {self.dalle.dvae.vocabulary} image tokens; use at "
                f"most {self.dalle.dvae.vocabulary}, or leave it out"
            )
        if request.decoder and self.dalle.decoder is None:
            raise ValueError("decoder: this studio has no diffusion decoder; start it with decoder=<folder>")
        if request.rerank == "caption_likelihood" and not self.scores_captions:
            raise ValueError("rerank=caption_likelihood needs a model that was trained with caption_dropout")
        config = request.sampling_config()
        self.dalle.tokenize([request.caption])
        if self.policy is not None:
            self.policy.check(request.caption)
        canvas = build_canvas(request, config, self.dalle, self.store)
        job = Job(request, self.dalle.resolve(config, canvas), canvas)
        return job, self.jobs.submit(job)

    def upload(self, data: bytes) -> dict[str, Any]:
        """Decode and keep an uploaded image. Returns its id, size and settings, and the names of those left out.

        Raises ValueError if it cannot be used.
        """
        image, recorded = read_upload(data)
        key = self.store.uploaded.add(StoredImage(image, {}))
        settings = {"settings": None, "left_out": []} if recorded is None else asdict(recorded)
        return {"id": key, "width": image.width, "height": image.height, **settings}

    def attention(self, key: str) -> list[dict[str, Any]]:
        """Return the words of a drawn image's caption, each with a heat map of the attention to it.

        Raises:
            ApiError: no such image.
            ValueError: an image larger than the model's grid.
        """
        drawn, dalle = self.store.find_drawn(key), self.dalle
        caption = drawn.record["caption"]
        if drawn.tokens.shape != (dalle.transformer.sequence.grid,) * 2:
            raise ValueError("attention is computed on images of the model's own size, and this one was extended")
        (ids,) = dalle.tokenize([caption])
        maps = word_maps(attention_to_text(dalle.transformer, ids, drawn.tokens), dalle.tokenizer.words(caption))
        image = fitted(drawn.image, TILE)
        return [
            {"word": word, "image": data_url(heat_map, TILE), "share": round(share, 4)}
            for word, heat_map, share in heat_maps(image, maps)
        ]

    def nearest(self, key: str) -> dict[str, Any]:
        """Return the training images nearest to a drawn image, by perceptual hash and by CLIP.

        Raises:
            ApiError: no such image, or training images are not indexed.
        """
        drawn, novelty = self.store.find_drawn(key), self.novelty
        if novelty is None:
            raise ApiError(404, "the training images are not indexed; start the studio with novelty=true")
        training = novelty.training
        neighbours = [novelty.nearest(drawn.image, drawn.tokens, by_clip) for by_clip in novelty.searches.values()]
        distinct_neighbours = {neighbour.index: neighbour for neighbour in neighbours}.values()
        nearest = [
            {
                "image": data_url(image, TILE),
                "caption": training.source.captions(neighbour.index)[0],
                "distance": neighbour.distances(),
                "near_copy": neighbour.is_near_duplicate,
            }
            for neighbour in distinct_neighbours
            if (image := training.image(neighbour)) is not None
        ]
        return {"training_images": len(training.keys), "nearest": nearest}

    def close(self) -> None:
        """Cancel all drawings and end their events."""
        self.jobs.close()
