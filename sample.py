"""Draw pictures for captions, best first: python sample.py checkpoint=outputs/demo caption="a red circle"."""

from dataclasses import asdict
from datetime import date
from pathlib import Path

from dalle import checkpoint, distributed
from dalle.config import verb
from dalle.sampling.filters import Filters
from dalle.sampling.gallery import FACTS, SHEET, slug, unused, write_gallery
from dalle.sampling.pipeline import DALLE, find_parts
from dalle.sampling.settings import SampleConfig


@verb("sample")
def main(config: SampleConfig) -> None:
    if bool(config.caption) == bool(config.captions):
        raise ValueError('say what to draw: caption="a red circle", or captions=["a red circle","a blue square"]')
    captions = config.captions or [config.caption]
    filters = Filters(config.temperature, config.top_k, config.top_p)
    dalle = DALLE.load(config.checkpoint, distributed.start(config.device), config.dvae, config.clip)
    results = dalle.generate_many(
        captions, config.candidates, config.keep, filters, config.seed, config.first, config.batch_size
    )

    parts = find_parts(config.checkpoint, config.dvae, config.clip)
    settings = asdict(config) | {"digests": {name: checkpoint.digest(path) for name, path in parts.items()}}
    out = Path(config.out) if config.out else unused(Path("outputs/samples", f"{date.today()}-{slug(captions[0])}"))
    files = write_gallery(out, results, config.seed, settings)

    for result in results:
        best = "" if result.scores is None else f", best score {result.scores[0]:.3f}"
        print(f"{result.caption}: {len(result.images)} of {config.candidates} kept{best}")
    print(f"sheet     {out / SHEET}")
    print(f"pictures  {files[0]} and {len(files) - 1} more" if len(files) > 1 else f"picture   {files[0]}")
    print(f"facts     {out / FACTS}")


if __name__ == "__main__":
    main()
