"""Drawing of one job: small batches with previews first, then the ranking of all candidates. Runs in the job thread."""

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dalle.sampling.batch_size import choose_batch_size
from dalle.sampling.output_writer import image_metadata
from dalle.sampling.pipeline import DALLE
from dalle.sampling.progress_bar import SamplingStopped
from dalle.sampling.results import Result, SelectBest
from dalle.sampling.sampling_config import SPEED_SETTINGS, UNRANKED, SamplingConfig
from dalle.studio.edits import canvas_of_candidates
from dalle.studio.jobs import Job
from dalle.studio.previews import Previews
from dalle.studio.requests import DrawRequest
from dalle.studio.store import DrawnImage, Store
from dalle.tokenizer import nearest_words

FIRST_BATCHES = (1, 4)  # candidates of the first batches, so that something is finished soon
MAX_EXPLAINED = 12  # unknown words for which known ones of similar spelling are looked up
BATCH_ON_CPU, BATCH_ON_GPU = 8, 64  # candidates of the others: a cancelled batch is lost


@dataclass(frozen=True)
class JobRunner:
    """Callable that samples and ranks a job's candidates, writes its events, and adds its images to the store."""

    dalle: DALLE
    store: Store
    recorded: Mapping[str, Any]  # settings of the studio for the record in each image: checkpoint, digests

    def __call__(self, job: Job) -> None:
        begin = time.monotonic()
        request, config, dalle = job.request, job.config, self.dalle
        unknown = dalle.unknown_words([request.caption])
        nearest = [nearest_words(word, dalle.words) for word in unknown[:MAX_EXPLAINED]]
        word_hints = {"unknown_words": unknown, "nearest_words": nearest}
        job.events.append("started", {"candidates": config.candidates, **word_hints})
        ids = dalle.tokenize([request.caption])
        drawn: dict[str, DrawnImage] = {}  # by id, in the order of candidates
        all_sampled = False
        with suppress(SamplingStopped):
            for tokens in self._batches(job, ids, config):
                for image in self._decode_batch(job, config, tokens, len(drawn)):
                    image_id = self.store.drawn.add(image)
                    job.events.append("image", {"id": image_id, "candidate": len(drawn)})
                    drawn[image_id] = image
            all_sampled = True
        kept_entries, is_fully_ranked = self._rank(job, ids, config, drawn) if drawn else ([], True)
        job.images = [record["id"] for record in kept_entries]
        job.events.append("ranked", {"images": kept_entries})
        for image_id in drawn.keys() - set(job.images):
            self.store.drawn.discard(image_id)
        if not (all_sampled and is_fully_ranked):
            job.events.append("cancelled", {"kept": len(kept_entries)}, last=True)
        else:
            seconds = time.monotonic() - begin
            data = {"seconds": round(seconds, 3), "images_per_second": round(len(drawn) / seconds, 3)}
            job.events.append("done", data, last=True)

    def warm_up(self) -> None:
        """Sample the first tokens of an image and decode another, so that the first drawing is not slowed by set-up."""

        def stop(_: float) -> None:
            raise SamplingStopped

        dalle, grid = self.dalle, self.dalle.transformer.sequence.grid
        config = dalle.resolve(SamplingConfig(candidates=1, keep=1, batch_size=1, decoding="auto"))
        with suppress(SamplingStopped):
            next(dalle.sample_batches(dalle.tokenize(["a"]), config, on_progress=stop))
        dalle.decode_images(torch.zeros(1, grid, grid, dtype=torch.int64))

    def _batches(self, job: Job, ids: Tensor, config: SamplingConfig) -> Iterator[Tensor]:
        """Yield the tokens of each batch of candidates in turn: (m, h, w).

        Raises:
            SamplingStopped: the job was cancelled.
        """
        dalle = self.dalle
        fitting_batch = choose_batch_size(dalle.transformer, 1, config, dalle.precision)
        # parallel decoding shows the first candidate sooner; its caches take more memory
        config = replace(config, decoding="sequential" if fitting_batch.memory.recompute_kv else "auto")
        on_cpu = dalle.transformer.image_head.weight.device.type == "cpu"
        start, sizes = 0, iter(FIRST_BATCHES)
        while start < config.candidates:
            job.raise_if_cancelled()
            size = next(sizes, BATCH_ON_CPU if on_cpu else BATCH_ON_GPU)
            count = min(size, fitting_batch.images, config.candidates - start)

            def show_previews(rows: int | None, images: list[str], start: int = start) -> None:
                job.events.show_progress("partial", {"first": start, "rows": rows, "images": images})

            (batch,) = dalle.sample_batches(
                ids,
                replace(config, candidates=count, keep=count, batch_size=count),
                canvas_of_candidates(job.canvas, start, count),
                candidate_offset=start,
                recompute_kv=fitting_batch.memory.recompute_kv,
                on_progress=job.raise_if_cancelled,
                on_tokens=Previews(dalle.dvae, show_previews, is_edit=job.canvas is not None),
            )
            yield batch.tokens[0]
            start += count

    def _decode_batch(self, job: Job, config: SamplingConfig, tokens: Tensor, first: int) -> list[DrawnImage]:
        """Decode a batch of tokens (m, h, w) to images with unranked records. first: number of its first candidate."""
        images = self.dalle.decode_images(tokens)
        numbers = list(range(first, first + len(images)))
        images = images if job.canvas is None else job.canvas.paste(images, numbers)
        result = Result(job.request.caption, images, None, tokens, numbers, config.candidates)
        drawn_images = self._drawn_images(job.request, config, result)
        for number, drawn_image in zip(numbers, drawn_images, strict=True):
            drawn_image.record["rank"] = number + 1  # until all are ranked
        return drawn_images

    def _rank(
        self, job: Job, ids: Tensor, config: SamplingConfig, drawn: Mapping[str, DrawnImage]
    ) -> tuple[list[dict[str, Any]], bool]:
        """Rank all candidates and return the entries of the best ones for the event `ranked`, best first, and True.

        If the job is cancelled meanwhile, return the first candidates in the order of sampling, decoded by the dVAE,
        and False.
        """
        dalle, request = self.dalle, job.request
        reranker = None if request.rerank == UNRANKED else dalle.reranker(ids, config)
        decoder = dalle.image_decoder(config) if request.decoder else None
        select_best = SelectBest(dalle.dvae, config, reranker, job.canvas, decoder)
        tokens = torch.stack([drawn_image.tokens for drawn_image in drawn.values()])
        candidates = request.caption, ids[0], tokens, 0, [drawn_image.image for drawn_image in drawn.values()]
        # after a request while it was drawn, finished candidates are ranked
        earlier_cancel_requests, is_fully_ranked = job.cancel_requests, True

        def check() -> None:
            if job.cancel_requests > earlier_cancel_requests:
                raise SamplingStopped

        try:
            result = select_best(*candidates, on_chunk=check)
        except SamplingStopped:
            is_fully_ranked, decoder = False, None
            request = request.model_copy(update={"rerank": UNRANKED, "decoder": False})
            result = replace(select_best, reranker=None, decoder=None)(*candidates)
        image_ids, kept_entries = list(drawn), []
        for candidate, image in zip(result.candidates, self._drawn_images(request, config, result), strict=True):
            image_id = image_ids[candidate]
            if decoder is None:
                drawn[image_id].record = image.record
            else:
                image_id = self.store.drawn.add(image)
            kept_entries.append({"id": image_id, "candidate": candidate, "score": image.record["score"]})
        return kept_entries, is_fully_ranked

    def _drawn_images(self, request: DrawRequest, config: SamplingConfig, result: Result) -> list[DrawnImage]:
        """Return the images of a result with their records."""
        edit = request.edit and request.edit.model_dump(exclude={"image", "mask"})  # without the session's ids
        settings = {name: value for name, value in asdict(config).items() if name not in SPEED_SETTINGS}
        ranked = request.rerank != UNRANKED and config.ranked
        settings |= {"rerank": config.rerank if ranked else UNRANKED, **self.recorded, "edit": edit}
        if not request.decoder:
            digests = {name: digest for name, digest in settings["digests"].items() if name != "decoder"}
            settings |= {"decoder": None, "digests": digests}
        entries = image_metadata(result, config.seed)
        return [
            DrawnImage(image, {"caption": result.caption, **entry, "settings": settings}, tokens)
            for image, tokens, entry in zip(result.images, result.tokens, entries, strict=True)
        ]
