"""Sample images for captions, best first: python sample.py caption="a red apple"."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from dalle import checkpoint, distributed
from dalle.cli.config import command, run_name
from dalle.cli.sample_messages import (
    print_decoding,
    print_memory,
    print_report,
    print_result,
    print_unknown_words,
    stop_message,
)
from dalle.sampling.attention_grid import AttentionGridWriter
from dalle.sampling.caption_policy import CaptionPolicy
from dalle.sampling.command_config import SampleCommandConfig, check_unused_settings, requested_captions
from dalle.sampling.content_credentials import ContentSigner
from dalle.sampling.edits import build_canvas
from dalle.sampling.inference_dtype import dtype_name
from dalle.sampling.novelty import Novelty
from dalle.sampling.output_writer import OutputWriter, new_folder, slug, writable_folder
from dalle.sampling.parallel_decode import DecodingCount, recorded_settings
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import SPEED_SETTINGS, UNRANKED
from dalle.signals import Interrupted, StopRequest

# settings that images do not depend on, and paths that are valid on this machine only
NOT_RECORDED = {
    *("caption", "captions", "captions_file", "caption_policy", "sign", "out"),
    *SPEED_SETTINGS,  # some are added by `metadata` if images depend on them
}


@command("sample")
def main(config: SampleCommandConfig) -> None:
    distributed.check_single_process("sample.py", "other captions, or another candidate_offset or seed")
    captions = requested_captions(config)
    check_unused_settings(config)
    if config.caption_policy is not None:
        policy = CaptionPolicy(config.caption_policy)
        for caption in captions:
            policy.check(caption)
    signer = None if config.sign is None else ContentSigner(config.sign)
    device = distributed.init_process_group(config.device, config.deterministic)
    dalle = DALLE.load(config.checkpoint, device, config.dvae, config.clip, config.precision, config.decoder)
    canvas = build_canvas(config, dalle.encode_image)
    config = dalle.resolve(config, canvas)

    print_unknown_words(dalle, captions)
    decoding = dalle.choose_decoding(len(captions), config)  # once, since less memory is free later
    choice = decoding.choice
    if config.decoding == "auto":
        print(f"decoding  {choice.decoding}: {choice.reason}")
    config = decoding.config
    print_memory(dalle, choice.batch_size, config)
    attention = AttentionGridWriter(dalle, config.attention_layer) if config.attention else None
    novelty = Novelty.of_checkpoint(dalle.folders, dalle.dvae, dalle.clip) if config.novelty else None
    count, images, begin = DecodingCount(), 0, time.perf_counter()
    with (
        StopRequest() as stop_request,  # the outer context, so that the writer finishes its files
        output_folder(config, captions) as folder,
        OutputWriter(
            folder,
            captions,
            config.candidates,
            config.seed,
            metadata(config, dalle.folders, dalle.precision, recompute_kv=choice.recompute_kv),
            signer,
        ) as writer,
    ):
        for result in dalle.stream(
            captions,
            decoding,
            canvas=canvas,
            candidate_offset=config.candidate_offset,
            stop=lambda: stop_request.signum != 0,
            count=count,
        ):
            images += result.num_sampled
            writer.add(result, novelty.compare(result) if novelty else None)
            if attention:
                attention.save(result, writer.files[-len(result.images) :])
            print_result(result, len(writer.entries), config)
    print_decoding(count, images, time.perf_counter() - begin)
    print_report(writer, config.attention, novelty)
    if writer.finished < len(captions):
        raise Interrupted(stop_message(writer, config), stop_request.signum)


def output_folder(config: SampleCommandConfig, captions: list[str]) -> AbstractContextManager[Path]:
    """Return a context with the output folder: `config.out`, or a new one named after the date and the first caption.

    Each job of a sweep has a folder of its own in `config.out`.
    """
    if not config.out:
        return new_folder(Path("outputs/samples", f"{date.today()}-{slug(captions[0])}"))
    name = run_name("job")
    return writable_folder(Path(config.out) if name == "job" else Path(config.out, name))


def metadata(
    config: SampleCommandConfig,
    components: Mapping[str, Path],
    precision: torch.dtype,
    recompute_kv: bool = False,
) -> dict[str, Any]:
    """Return the settings and checkpoint digests needed to sample the same images again, without the captions.

    precision: number format of sampling.
    recompute_kv: keys and values were computed again at each step, to save memory.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in NOT_RECORDED}
    settings |= {"precision": dtype_name(precision), **recorded_settings(config, precision)}
    if not config.ranked:
        settings["rerank"] = UNRANKED
    if precision != torch.float32:  # in 16 bits rounding depends on the images of a batch, and on keys computed again
        settings |= {"batch_size": config.batch_size, "recompute_kv": recompute_kv}
    return settings | {"digests": {name: checkpoint.digest(path) for name, path in components.items()}}
