"""Images sampled for captions of held-out drawings, and the drawings themselves."""

from dataclasses import dataclass

from PIL import Image

from dalle.data.drawings.source import DrawingsSource
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.held_out import model_image
from dalle.sampling.labelled_grid import ImageRow
from dalle.sampling.pipeline import DALLE
from dalle.sampling.results import Result


@dataclass(frozen=True)
class Candidates:
    """Images sampled for one record's caption (candidate 0 and the one that ranks first), and its real image."""

    caption: str
    real: Image.Image
    first: Image.Image
    top: Image.Image


def sample_captions(
    dalle: DALLE, source: DrawingsSource, records: list[int], config: EvaluateConfig
) -> list[Candidates]:
    """Sample `config.candidates` images for the first caption of each record, which states its style."""
    captions = [source.captions(record)[0] for record in records]
    results = dalle.stream(captions, config.sampling(config.candidates), truncate=True)
    return [candidates_of(source, record, result) for record, result in zip(records, results, strict=True)]


def candidates_of(source: DrawingsSource, record: int, result: Result) -> Candidates:
    """Return candidate 0 and the best candidate of a sampling result, with the real image of the record."""
    return Candidates(
        result.caption, model_image(source, record), result.images[result.candidates.index(0)], result.images[0]
    )


def grid_row(sample: Candidates) -> ImageRow:
    """Return a row of an image grid: the real image, candidate 0 and the best candidate."""
    return ImageRow(sample.caption, [sample.real, sample.first, sample.top], None)
