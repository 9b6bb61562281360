"""Lines that sample.py prints: hints before it draws, a line for each caption, and where everything is."""

from dalle.sampling.attention_sheet import sheet_path
from dalle.sampling.chunks import in_words
from dalle.sampling.gallery import FACTS, SHEET, Gallery
from dalle.sampling.memory import decoding_memory
from dalle.sampling.novelty import Novelty
from dalle.sampling.pipeline import DALLE
from dalle.sampling.progress import say
from dalle.sampling.results import Result
from dalle.sampling.settings import SampleConfig

LINES = 12  # captions named one by one in what is printed


def say_unknown_words(dalle: DALLE, captions: list[str]) -> None:
    """Name the words that no training caption had."""
    if unknown := dalle.unknown_words(captions):
        more = f" and {len(unknown) - LINES} more" if len(unknown) > LINES else ""
        say(f"hint      in none of the training captions that its tokenizer read: {', '.join(unknown[:LINES])}{more}")


def say_memory(dalle: DALLE, captions: int, config: SampleConfig) -> None:
    """Tell what a candidate's cache takes, and how many are drawn at a time where memory does not hold all."""
    if config.batch_size is None:
        chunk = dalle.chunk(captions, config)
        needs = chunk.needs
        if chunk.images < chunk.wanted:
            fit = f"{chunk.images} pictures fit, so they are drawn {chunk.images} at a time"
            say(f"memory    {in_words(chunk.memory)}: {fit}")
    else:
        needs = decoding_memory(dalle.transformer)
    rows = 2 if config.guided else 1  # that are decoded for each candidate
    say(f"cache     {in_words(rows * needs.cache)} a candidate; dense {in_words(rows * needs.dense)}")


def say_result(result: Result, number: int, config: SampleConfig) -> None:
    """Tell how many pictures of the number-th caption, from 1, were kept, and the best score."""
    if number <= LINES:
        how = "" if config.rerank == "clip" else f" by {config.rerank}"
        best = "" if result.scores is None else f", best score {result.scores[0]:.3f}{how}"
        say(f"{result.caption}: {len(result.images)} of {result.drawn} kept{best}")


def print_report(gallery: Gallery, attention: bool, novelty: Novelty | None) -> None:
    """Tell where everything is; nothing where nothing was drawn."""
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
    """Sentence on what was finished when drawing was stopped, and which options draw the rest."""
    if not gallery.facts:
        return "stopped before the first pictures were finished; nothing was written"
    drawn = gallery.facts[-1]["drawn"]
    if len(gallery.captions) == 1:
        missing = config.candidates - drawn
        rest = f"first={config.first + drawn} candidates={missing} keep={min(config.keep, missing)}"
        return f"stopped after {drawn} of {config.candidates} candidates; draw the others with {rest}"
    return f"stopped with {gallery.finished:,} of {len(gallery.captions):,} captions finished; {FACTS} says which"
