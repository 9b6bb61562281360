"""Messages of sample.py: hints before sampling, one line per caption, and the paths of the results."""

from dalle.sampling.attention_sheet import sheet_path
from dalle.sampling.chunks import in_words
from dalle.sampling.gallery import FACTS, SHEET, Gallery
from dalle.sampling.memory import decoding_memory
from dalle.sampling.novelty import Novelty
from dalle.sampling.pipeline import DALLE
from dalle.sampling.progress import say
from dalle.sampling.results import Result
from dalle.sampling.settings import SampleConfig

LINES = 12  # captions that are printed individually


def say_unknown_words(dalle: DALLE, captions: list[str]) -> None:
    """Print the words that occur in no training caption."""
    if unknown := dalle.unknown_words(captions):
        more = f" and {len(unknown) - LINES} more" if len(unknown) > LINES else ""
        say(f"hint      in none of the training captions that its tokenizer read: {', '.join(unknown[:LINES])}{more}")


def say_memory(dalle: DALLE, captions: int, config: SampleConfig) -> None:
    """Print the cache size per candidate, and the batch size if memory does not fit all candidates."""
    if config.batch_size is None:
        chunk = dalle.chunk(captions, config)
        needs = chunk.needs
        if chunk.images < chunk.wanted:
            fit = f"{chunk.images} pictures fit, so they are drawn {chunk.images} at a time"
            say(f"memory    {in_words(chunk.memory)}: {fit}")
    else:
        needs = decoding_memory(dalle.transformer)
    rows = 2 if config.guided else 1  # sequences decoded per candidate (2 with classifier-free guidance)
    say(f"cache     {in_words(rows * needs.cache)} a candidate; dense {in_words(rows * needs.dense)}")


def say_result(result: Result, number: int, config: SampleConfig) -> None:
    """Print how many images of a caption were kept, and the best score. `number` counts captions from 1."""
    if number <= LINES:
        how = "" if config.rerank == "clip" else f" by {config.rerank}"
        best = "" if result.scores is None else f", best score {result.scores[0]:.3f}{how}"
        say(f"{result.caption}: {len(result.images)} of {result.drawn} kept{best}")


def print_report(gallery: Gallery, attention: bool, novelty: Novelty | None) -> None:
    """Print the paths of all results. Prints nothing if no image was sampled."""
    files, captions = gallery.files, len(gallery.facts)
    if not files:
        return
    if captions > LINES:
        print(f"... and {captions - LINES:,} more captions")
    some = f" (the first {len(gallery.rows)} of {captions:,} captions)" if captions > len(gallery.rows) else ""
    print(f"sheet     {gallery.folder / SHEET}{some}")
    print(f"pictures  {files[0]} and {len(files) - 1:,} more" if len(files) > 1 else f"picture   {files[0]}")
    print(f"facts     {gallery.folder / FACTS}")
    if attention:
        print(f"attention {sheet_path(files[0])}, and so on")
    if novelty:
        print(f"novelty   {novelty.save(gallery.folder)}: {novelty.sentence()}")


def how_to_go_on(gallery: Gallery, config: SampleConfig) -> str:
    """Return a sentence with the progress of a stopped run and the options that sample the rest."""
    if not gallery.facts:
        return "stopped before the first pictures were finished; nothing was written"
    drawn = gallery.facts[-1]["drawn"]
    if len(gallery.captions) == 1:
        missing = config.candidates - drawn
        rest = f"first={config.first + drawn} candidates={missing} keep={min(config.keep, missing)}"
        return f"stopped after {drawn} of {config.candidates} candidates; draw the others with {rest}"
    return f"stopped with {gallery.finished:,} of {len(gallery.captions):,} captions finished; {FACTS} says which"
