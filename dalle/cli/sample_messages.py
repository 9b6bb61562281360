"""Messages of sample.py: hints before sampling, one line per caption, and the paths of the results."""

from collections.abc import Collection

from dalle.sampling.attention_grid import attention_grid_path
from dalle.sampling.batch_size import BatchSize, format_bytes
from dalle.sampling.command_config import SampleCommandConfig
from dalle.sampling.memory import decoding_memory
from dalle.sampling.novelty import Novelty
from dalle.sampling.output_writer import GRID_FILE, METADATA_FILE, REMAINING_FILE, OutputWriter
from dalle.sampling.parallel_decode import DecodingCount
from dalle.sampling.pipeline import DALLE
from dalle.sampling.progress_bar import print_line
from dalle.sampling.results import Result
from dalle.tokenizer import nearest_words

LINES = 12  # captions that are printed individually


def print_unknown_words(dalle: DALLE, captions: list[str]) -> None:
    """Print the words that occur in no training caption, each with the known words of the nearest spelling."""
    if unknown := dalle.unknown_words(captions):
        remainder = f" and {len(unknown) - LINES} more" if len(unknown) > LINES else ""
        words = ", ".join(word + _nearest(word, dalle.words) for word in unknown[:LINES])
        print_line(f"hint      in none of the training captions that its tokenizer read: {words}{remainder}")


def _nearest(word: str, known_words: Collection[str]) -> str:
    """Return " (nearest known: ...)" for an unknown word, "" if no known word has a similar spelling."""
    nearest = nearest_words(word, known_words)
    return f" (nearest known: {', '.join(nearest)})" if nearest else ""


def print_memory(dalle: DALLE, batch_size: BatchSize | None, config: SampleCommandConfig) -> None:
    """Print the cache size per candidate, and the batch size if memory does not fit all candidates.

    batch_size: chosen by `DALLE.choose_decoding`; None: that of `config`.
    """
    if batch_size is not None:
        memory = batch_size.memory
        if batch_size.images < batch_size.unlimited:
            fit_message = f"{batch_size.images} images fit, so {batch_size.images} are sampled at a time"
            print_line(f"memory    {format_bytes(batch_size.budget)}: {fit_message}")
    else:
        window = config.window if config.decoding == "parallel" else None
        memory = decoding_memory(dalle.transformer, window=window)
    rows = 2 if config.guided else 1  # sequences decoded per candidate (2 with classifier-free guidance)
    print_line(f"cache     {format_bytes(rows * memory.cache)} a candidate; dense {format_bytes(rows * memory.dense)}")


def print_result(result: Result, number: int, config: SampleCommandConfig) -> None:
    """Print how many images of a caption were kept, and the best score. `number` counts captions from 1."""
    if number <= LINES:
        score_name = "" if config.rerank == "clip" else f" by {config.rerank}"
        best_score = "" if result.scores is None else f", best score {result.scores[0]:.3f}{score_name}"
        print_line(f"{result.caption}: {len(result.images)} of {result.num_sampled} kept{best_score}")


def print_decoding(count: DecodingCount, images: int, seconds: float) -> None:
    """Print passes per image, tokens per pass and images per second; nothing if no image was sampled.

    images: images that were sampled; an edit samples each several times, for proposals.
    seconds: time of everything, from the first pass to the last file.
    """
    if count.passes and images:
        print(
            f"decoding  {count.passes / images:,.0f} passes per image, {count.tokens_per_pass:.1f} tokens per "
            f"pass, {images / seconds:.2f} images/s"
        )


def print_report(writer: OutputWriter, attention: bool, novelty: Novelty | None) -> None:
    """Print the paths of all results. Prints nothing if no image was sampled."""
    files, captions = writer.files, len(writer.entries)
    if not files:
        return
    if captions > LINES:
        print(f"... and {captions - LINES:,} more captions")
    shown_captions = f" (the first {len(writer.rows)} of {captions:,} captions)" if captions > len(writer.rows) else ""
    print(f"grid      {writer.folder / GRID_FILE}{shown_captions}")
    print(f"images    {files[0]} and {len(files) - 1:,} more" if len(files) > 1 else f"image     {files[0]}")
    print(f"metadata  {writer.folder / METADATA_FILE}")
    if attention:
        print(f"attention {attention_grid_path(files[0])}, and so on")
    if novelty:
        print(f"novelty   {novelty.save(writer.folder)}: {novelty.sentence()}")


def stop_message(writer: OutputWriter, config: SampleCommandConfig) -> str:
    """Return a sentence with the progress of a stopped run and the options that sample the rest."""
    if not writer.entries:
        return "stopped before the first images were finished; nothing was written"
    sampled = writer.entries[-1]["drawn"]
    out = " out=<another folder>" if config.out else ""  # the same one would be overwritten
    if len(writer.captions) == 1:
        num_remaining = config.candidates - sampled
        offset = config.candidate_offset + sampled
        resume_options = (
            f"candidate_offset={offset} candidates={num_remaining} keep={min(config.num_kept, num_remaining)}{out}"
        )
        return f"stopped after {sampled} of {config.candidates} candidates; sample the others with {resume_options}"
    resume_options = f"captions_file={writer.folder / REMAINING_FILE}{out}"
    return (
        f"stopped with {writer.finished:,} of {len(writer.captions):,} captions finished; sample the others with "
        f"{resume_options}"
    )
