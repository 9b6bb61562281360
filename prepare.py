"""Prepare data and checkpoints for training and sampling: python prepare.py data=folder data.path=my/pictures

data= surveys a data set; with find=, it searches the data set for an image; with dvae=, it encodes the data set into
tokens. sources= reports the training data of a checkpoint. import= converts published weights to a checkpoint.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dalle import distributed
from dalle.cli.config import command
from dalle.cli.prepare_config import PrepareConfig
from dalle.data import open_source
from dalle.data.audit.provenance import provenances
from dalle.data.audit.survey import Survey
from dalle.data.audit.survey_page import PAGE, write_survey
from dalle.data.picture_file import read_picture
from dalle.data.source import UnreadableRecord
from dalle.data.tally import shown
from dalle.image_grid import GridRow, image_grid
from dalle.models.clip.model import CLIP
from dalle.models.dvae.model import DiscreteVAE
from dalle.pretrained import IMPORTS
from dalle.sampling.gallery import unused
from dalle.sampling.novelty import TILE, TrainingPictures, side_by_side, verdict
from dalle.stages.encoding import Encoding, described

MODELS = {"dvae": DiscreteVAE, "clip": CLIP}


@command("prepare")
def main(config: PrepareConfig) -> None:
    name = next((name for name, options in IMPORTS.configs.items() if isinstance(config, options)), None)
    if name is not None:
        import_model(name, config)
    elif config.sources is not None:
        tell_sources(config.sources, config.out)
    elif config.data is None:
        imports = " or ".join(f"import={name}" for name in IMPORTS)
        raise ValueError(f"say what to prepare: {imports}, or a data set, as in data=folder data.path=my/pictures")
    elif config.find is not None:
        find_picture(config)
    elif config.dvae is not None:
        encode_pictures(config)
    else:
        look_over(config)


def look_over(config: PrepareConfig) -> None:
    """Write a survey of a data set: a page with statistics and problems, image sheets and the tokenizer."""
    folder = unwritten(config.out or unused(Path("outputs", "survey", config.data.name)))
    survey = Survey.of(config.data, config.vocabulary, config.text_positions, config.limit, config.workers)
    with new_folder(folder) as beside:
        found = write_survey(survey, beside)
    print("\n".join(found))
    print(f"page      {folder / PAGE}")


def find_picture(config: PrepareConfig) -> None:
    """Search the training split for an image. Prints the nearest images and writes a sheet of them."""
    assert config.find is not None
    path = Path(config.find).expanduser()
    try:
        image = read_picture(path, str(path))
    except UnreadableRecord as problem:
        raise ValueError(f"find={config.find} cannot be read: {problem.reason}") from problem
    clip_folder = None if config.clip is None else Path(config.clip).expanduser()
    clip = None if clip_folder is None else CLIP.load(clip_folder)
    training = TrainingPictures.open(config.data, clip, clip_folder, config.workers)
    neighbours = training.nearest(image, config.neighbours)
    folder = unwritten(config.out or Path("outputs", "find", path.stem))
    title = verdict(neighbours[0], len(training.keys))
    with new_folder(folder) as beside:
        cells = side_by_side(training, image, shown(path.name), neighbours)
        image_grid([GridRow(cells)], tile=TILE, title=title).save(beside / "neighbours.png")
    for each in neighbours:
        print(f"{each.distances()}: {each.key}")
    print(title)
    print(f"sheet     {folder / 'neighbours.png'}")


def encode_pictures(config: PrepareConfig) -> None:
    """Encode the training split into tokens, on all ranks. An interrupted run resumes when it is started again."""
    device = distributed.start(config.device)
    try:
        dvae_folder = Path(config.dvae or "").expanduser()
        dvae = DiscreteVAE.load(dvae_folder).to(device)
        source = open_source(config.data, "train")
        encoding = Encoding(config.data, source, config.transform, config.views, dvae_folder, device)
        folder = Path(config.out).expanduser() if config.out else encoding.place(Path("outputs", "tokens"))
        cache = encoding.cache(folder, dvae, config.workers)
        if distributed.is_first():
            print(f"tokens    {folder}: {described(cache)}")
            named = f" tokens={config.out}" if config.out else ""
            settings = f"stage.transform={config.transform} stage.views={config.views}{named}"
            print(f"next      train.py stage=transformer with the same data and dvae, and {settings}")
    finally:
        distributed.stop()


def tell_sources(checkpoint: str, out: str | None) -> None:
    """Print the training data of each model of a checkpoint. With `out`, also write all record keys to files."""
    models = provenances(checkpoint)
    for model in models:
        print("\n".join(model.lines()))
    if out is None:
        return
    folder = unwritten(out)
    with new_folder(folder) as beside:
        for model in models:
            with open(beside / f"{model.kind}.txt", "w", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(f"{key}\n" for key in model.names())
    print(f"names     {folder}")


def import_model(name: str, config: PrepareConfig) -> None:
    """Convert published weights to a checkpoint folder of this project."""
    folder = unwritten(config.out or Path("outputs", name))
    published = IMPORTS[name].build(config)
    model = MODELS[published.kind].from_published(published)
    with new_folder(folder) as beside:
        model.save(beside, published.meta)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{folder}: {published.kind}, {count:,} parameters")


def unwritten(folder: str | Path) -> Path:
    """Return the folder as a path. Raises ValueError unless it is new or empty."""
    folder = Path(folder).expanduser()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: choose another out=, or move away what is there")
    return folder


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder. It replaces `folder`, new or empty, if the block succeeds, and is deleted otherwise."""
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)  # left by a run that was killed
    beside.mkdir(parents=True)
    try:
        yield beside
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


if __name__ == "__main__":
    main()
