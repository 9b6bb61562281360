"""Naming test of a model of drawings: a viewer who sees no caption names what the pictures show.

python tools/naming_test.py draw out=outputs/naming checkpoint=drawings data.path=outputs/drawings
python tools/naming_test.py draw out=outputs/naming-real real=true data.path=outputs/drawings     # for comparison
python tools/naming_test.py score out=outputs/naming answers=my-answers.txt

`draw` samples one picture of each of `pictures` concepts of the training set, the best of `candidates` by
`rerank`, by default the checkpoint's. It
writes sheet-1.png, ... with numbers only, and answers.json with the accepted names. Nothing is selected: concepts,
styles and pictures follow from the seed. The viewer writes one line for each picture into a text file: "7: a
bicycle". `score` counts the lines that are an accepted name: the concept's name, the last noun of it, or a keyword of
at most `COMMON` concepts.
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from dalle import DALLE
from dalle.data.drawings.config import DrawingsConfig
from dalle.data.drawings.source import DrawingsSource
from dalle.data.drawings.subjects import Subject
from dalle.data.drawings.wording import countable, subject_label
from dalle.image_grid import Cell, GridRow, image_grid
from dalle.sampling.sampling_config import SamplingConfig
from dalle.seeds import numpy_generator

COMMON = 3  # a keyword of more concepts than this is too general to be an answer: "animal"
ON_A_SHEET, COLUMNS, TILE = 10, 5, 192
ANSWERS = "answers.json"
SETTINGS = {
    "draw": (
        "out",
        "checkpoint",
        "data.path",
        "real",
        "precision",
        "temperature",
        "rerank",
        "candidates",
        "pictures",
        "seed",
    ),
    "score": ("out", "answers"),
}


def normalise(name: str) -> str:
    """Return a name in the form in which answers are compared: lower case, no article, no final s."""
    words = re.sub(r"[^a-z ]", " ", name.lower()).split()
    words = words[1:] if words[:1] in (["a"], ["an"], ["the"]) and len(words) > 1 else words
    return re.sub(r"(?<=..)(?<!s)s$", "", " ".join(words))


def accepted_names(subjects: Iterable[Subject]) -> dict[str, set[str]]:
    """Return the normalised names that are right for each concept of `subjects`."""
    names: dict[str, set[str]] = defaultdict(set)
    keywords: dict[str, set[str]] = defaultdict(set)
    for subject in subjects:
        label = normalise(subject_label(subject))
        names[subject.concept] |= {label, label.split()[-1]}
        for tag in subject.tags.get("en", ()):
            keywords[normalise(tag)].add(subject.concept)
    for word, concepts in keywords.items():
        if word and len(concepts) <= COMMON:
            for concept in concepts:
                names[concept].add(word)
    return dict(names)


def choose(source: DrawingsSource, pictures: int, seed: int) -> list[int]:
    """Choose records of `source`: one drawing of each of `pictures` concepts with a short countable name, at random."""
    chosen: dict[str, int] = {}
    for index in numpy_generator("naming test", seed).permutation(len(source)).tolist():
        record = source.records[index]
        picture = source.drawings.pictures[record.first]
        if record.kind == "drawing" and not picture.tone and countable(picture.subject):
            chosen.setdefault(picture.subject.concept, index)
        if len(chosen) == pictures:
            break
    return list(chosen.values())


def draw(out: Path, given: dict[str, str]) -> None:
    """Write the sheets of pictures and the accepted names."""
    data = DrawingsConfig(path=given.get("data.path", DrawingsConfig.path), image_size=128)
    source = DrawingsSource(data, "train")
    seed, count = int(given.get("seed", 0)), int(given.get("pictures", 50))
    records = choose(source, count, seed)
    captions = [source.captions(index)[0] for index in records]  # full name and style
    if given.get("real") == "true":
        images = [source.image(index) for index in records]
    else:
        model = DALLE.load(given.get("checkpoint", "drawings"), precision=given.get("precision", "auto"))
        temperature = float(given["temperature"]) if "temperature" in given else None  # None: the checkpoint's
        settings = SamplingConfig(
            candidates=int(given.get("candidates", 16)),
            keep=1,
            seed=seed,
            temperature=temperature,
            rerank=given.get("rerank"),  # None: the checkpoint's
        )
        images = [result.images[0] for result in model.stream(captions, settings, truncate=True)]
    names = accepted_names(source.drawings.subjects.values())
    out.mkdir(parents=True, exist_ok=True)
    for sheet in range(0, len(images), ON_A_SHEET):
        numbered = list(enumerate(images, start=1))[sheet : sheet + ON_A_SHEET]
        write_sheet(out / f"sheet-{sheet // ON_A_SHEET + 1}.png", numbered)
    answers = {
        str(number): {"caption": said, "accepted": sorted(names[concept_of(source, index)])}
        for number, (said, index) in enumerate(zip(captions, records, strict=True), start=1)
    }
    (out / ANSWERS).write_text(json.dumps(answers, indent=1) + "\n")
    print(f"{len(images)} pictures in {out}/sheet-*.png; the accepted names are in {out / ANSWERS}: do not show them")


def write_sheet(path: Path, numbered: list[tuple[int, Image.Image]]) -> None:
    cells = [Cell(image, label=str(number)) for number, image in numbered]
    image_grid([GridRow(cells)], COLUMNS, TILE).save(path)


def concept_of(source: DrawingsSource, index: int) -> str:
    return source.drawings.pictures[source.records[index].first].subject.concept


def read_answers(path: Path) -> dict[str, str]:
    """Read a viewer's answers by number. Raises ValueError for a line that is not "number: name"."""
    said: dict[str, str] = {}
    for place, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        if (found := re.fullmatch(r"\s*(\d+)\s*[:.]\s*(.*)", line)) is None:
            raise ValueError(
                f'{path}, line {place}: expected a number and a name, such as "7: a bicycle", got {line!r}'
            )
        said[str(int(found[1]))] = found[2]  # 07 is picture 7
    return said


def score(out: Path, given: dict[str, str]) -> None:
    """Print each answer, and the share of accepted ones. A picture without an answer counts as wrong."""
    answers = json.loads((out / ANSWERS).read_text())
    said = read_answers(Path(given["answers"]))
    right = 0
    for number, expected in answers.items():
        answer = said.get(number, "")
        ok = normalise(answer) in expected["accepted"]
        right += ok
        print(f"{number:>3} {'right' if ok else 'wrong'}  {answer!r}  ({expected['caption']})")
    print(f"{right} of {len(answers)} named: {right / len(answers):.2f}")


def main(arguments: list[str]) -> None:
    command, *overrides = arguments or [""]
    given = {override.partition("=")[0]: override.partition("=")[2] for override in overrides}
    if command not in SETTINGS or (command == "score" and "answers" not in given):
        sys.exit(__doc__)
    if unknown := [name for name in given if name not in SETTINGS[command]]:
        sys.exit(f"{command} has no setting {', '.join(unknown)}; it has {', '.join(SETTINGS[command])}")
    {"draw": draw, "score": score}[command](Path(given.get("out", "outputs/naming")), given)


if __name__ == "__main__":
    main(sys.argv[1:])
