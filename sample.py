"""Sample images for captions, best first: python sample.py checkpoint=outputs/demo caption="a red circle"."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from dalle import checkpoint, distributed
from dalle.cli.config import command
from dalle.cli.sample_messages import how_to_go_on, print_report, say_memory, say_result, say_unknown_words
from dalle.sampling.attention_sheet import AttentionSheets
from dalle.sampling.edits import canvas_of
from dalle.sampling.gallery import Gallery, slug, unused
from dalle.sampling.novelty import Novelty
from dalle.sampling.parts import find_parts
from dalle.sampling.pipeline import DALLE
from dalle.sampling.settings import SampleConfig, captions_to_draw
from dalle.training.interruption import Interrupted, StopRequest


@command("sample")
def main(config: SampleConfig) -> None:
    captions = captions_to_draw(config)
    device = distributed.start(config.device, config.deterministic)
    dalle = DALLE.load(config.checkpoint, device, config.dvae, config.clip, config.precision)
    config = dalle.with_guidance(config)
    canvas = canvas_of(config, dalle.original)
    parts = find_parts(config.checkpoint, config.dvae, config.clip)

    say_unknown_words(dalle, captions)
    say_memory(dalle, len(captions), config)
    attention = AttentionSheets(dalle, config.attention_layer) if config.attention else None
    novelty = Novelty.of_checkpoint(parts, dalle.clip) if config.novelty else None
    with (
        StopRequest() as asked,  # the outer context, so that the gallery finishes its files
        Gallery(folder(config, captions), captions, config.candidates, config.seed, facts(config, parts)) as gallery,
    ):
        for result in dalle.stream(
            captions, config, canvas=canvas, first=config.first, progress=True, stop=lambda: asked.number != 0
        ):
            gallery.add(result, novelty.look(result) if novelty else None)
            if attention:
                attention.save(result, gallery.files[-len(result.images) :])
            say_result(result, len(gallery.facts), config)
    print_report(gallery, config.attention, novelty)
    if gallery.finished < len(captions):
        raise Interrupted(how_to_go_on(gallery, config), asked.number)


def folder(config: SampleConfig, captions: list[str]) -> Path:
    """Output folder: `config.out`, or a new folder named after the date and the first caption."""
    return Path(config.out) if config.out else unused(Path("outputs/samples", f"{date.today()}-{slug(captions[0])}"))


def facts(config: SampleConfig, parts: Mapping[str, Path]) -> dict[str, Any]:
    """Settings and checkpoint digests needed to sample the same images again, without the captions."""
    settings = {name: value for name, value in asdict(config).items() if name not in ("caption", "captions")}
    return settings | {"digests": {name: checkpoint.digest(path) for name, path in parts.items()}}


if __name__ == "__main__":
    main()
