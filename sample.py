"""Draw pictures for captions, best first: python sample.py checkpoint=outputs/demo caption="a red circle"."""

from dataclasses import asdict
from datetime import date
from pathlib import Path

from dalle import checkpoint, distributed
from dalle.config import verb
from dalle.data.provenance import Provenance
from dalle.models.clip import CLIP
from dalle.sampling.attention_maps import check_layer
from dalle.sampling.attention_sheet import attention_sheets
from dalle.sampling.chunks import in_words
from dalle.sampling.edits import canvas_of
from dalle.sampling.gallery import FACTS, SHEET, Gallery, slug, unused
from dalle.sampling.memory import decoding_memory
from dalle.sampling.novelty import Novelty, TrainingPictures
from dalle.sampling.parts import find_parts
from dalle.sampling.pipeline import DALLE
from dalle.sampling.progress import say
from dalle.sampling.settings import SampleConfig, captions_to_draw
from dalle.training.interruption import Interrupted, StopRequest

LINES = 12  # captions named one by one in what is printed


@verb("sample")
def main(config: SampleConfig) -> None:
    captions = captions_to_draw(config)
    device = distributed.start(config.device, config.deterministic)
    dalle = DALLE.load(config.checkpoint, device, config.dvae, config.clip, config.precision)
    if unknown := dalle.unknown_words(captions):
        more = f" and {len(unknown) - LINES} more" if len(unknown) > LINES else ""
        say(f"hint      in none of the training captions that its tokenizer read: {', '.join(unknown[:LINES])}{more}")
    config = dalle.with_guidance(config)
    if config.attention:
        check_layer(dalle.transformer, config.attention_layer)
    canvas = canvas_of(config, dalle.original)
    say_memory(config, dalle, len(captions))
    novelty = Novelty(training_pictures(config, dalle)) if config.novelty else None
    with (
        StopRequest() as asked,  # the outer one, so that the gallery finishes its files
        Gallery(folder(config, captions), captions, config.candidates, config.seed, facts(config)) as gallery,
    ):
        for result in dalle.stream(
            captions, config, canvas=canvas, first=config.first, progress=True, stop=lambda: asked.number != 0
        ):
            gallery.add(result, novelty.look(result) if novelty else None)
            if config.attention:
                kept = gallery.files[-len(result.images) :]
                for path, sheet in zip(kept, attention_sheets(dalle, result, config.attention_layer), strict=True):
                    sheet.save(path.with_name(f"{path.stem}-attention.png"))
            if len(gallery.facts) <= LINES:
                how = "" if config.rerank == "clip" else f" by {config.rerank}"
                best = "" if result.scores is None else f", best score {result.scores[0]:.3f}{how}"
                say(f"{result.caption}: {len(result.images)} of {result.drawn} kept{best}")
    report(gallery)
    if config.attention and gallery.files:
        print(f"attention {gallery.files[0].with_name(f'{gallery.files[0].stem}-attention.png')}, and so on")
    if novelty and gallery.facts:
        print(f"novelty   {novelty.save(gallery.folder)}: {novelty.sentence()}")
    if gallery.finished < len(captions):
        raise Interrupted(how_to_go_on(gallery, config), asked.number)


def training_pictures(config: SampleConfig, dalle: DALLE) -> TrainingPictures:
    """Those of the transformer, to be looked at by CLIP too where there is one. ValueError where they are not there."""
    parts = find_parts(config.checkpoint, config.dvae, config.clip)
    clip = dalle.clip if isinstance(dalle.clip, CLIP) else None
    return TrainingPictures.open(Provenance.read(parts["transformer"]).data(), clip, parts.get("clip"))


def say_memory(config: SampleConfig, dalle: DALLE, captions: int) -> None:
    """What a candidate's cache takes, and how many candidates are drawn at a time where memory does not hold all."""
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


def folder(config: SampleConfig, captions: list[str]) -> Path:
    return Path(config.out) if config.out else unused(Path("outputs/samples", f"{date.today()}-{slug(captions[0])}"))


def facts(config: SampleConfig) -> dict:
    """What else a reader needs to draw the same again; the captions stand beside their pictures."""
    parts = find_parts(config.checkpoint, config.dvae, config.clip)
    settings = {name: value for name, value in asdict(config).items() if name not in ("caption", "captions")}
    return settings | {"digests": {name: checkpoint.digest(path) for name, path in parts.items()}}


def report(gallery: Gallery) -> None:
    """Say where everything is."""
    files, captions = gallery.files, len(gallery.facts)
    if not files:
        return
    if captions > LINES:
        print(f"... and {captions - LINES:,} more captions")
    some = f" (the first {len(gallery.rows)} of {captions:,} captions)" if captions > len(gallery.rows) else ""
    print(f"sheet     {gallery.folder / SHEET}{some}")
    print(f"pictures  {files[0]} and {len(files) - 1:,} more" if len(files) > 1 else f"picture   {files[0]}")
    print(f"facts     {gallery.folder / FACTS}")


def how_to_go_on(gallery: Gallery, config: SampleConfig) -> str:
    """What was finished when drawing was stopped, and which options draw the rest."""
    if not gallery.facts:
        return "stopped before the first pictures were finished; nothing was written"
    drawn = gallery.facts[-1]["drawn"]
    if len(gallery.captions) == 1:
        missing = config.candidates - drawn
        rest = f"first={config.first + drawn} candidates={missing} keep={min(config.keep, missing)}"
        return f"stopped after {drawn} of {config.candidates} candidates; draw the others with {rest}"
    return f"stopped with {gallery.finished:,} of {len(gallery.captions):,} captions finished; {FACTS} says which"


if __name__ == "__main__":
    main()
