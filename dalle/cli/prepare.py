"""Prepare data and checkpoints for training and sampling: python prepare.py data=folder data.path=my/pictures

data= surveys a data set; with find=, it searches the data set for an image; with dvae=, it encodes the data set into
tokens. sources= reports the training data of a checkpoint. import= converts published weights to a checkpoint.
export= copies a checkpoint for publication.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dalle import distributed
from dalle.atomic_files import atomic_folder
from dalle.bundled import checkpoint_folder
from dalle.cli.config import command
from dalle.cli.prepare_config import PrepareConfig
from dalle.data import open_source
from dalle.data.audit.datasheet import write_datasheet
from dalle.data.audit.provenance import find_provenance
from dalle.data.audit.stage_data import name_stages, stages_with_data
from dalle.data.audit.survey import Survey
from dalle.data.audit.survey_report import PAGE, write_survey
from dalle.data.image_file import read_image_file
from dalle.data.skip_counter import printable
from dalle.data.source import UnreadableRecord
from dalle.evaluation.metrics_file import read_metrics
from dalle.hub import REPOSITORY, upload
from dalle.image_grid import GridRow, image_grid
from dalle.models.clip.model import CLIP
from dalle.models.dvae.model import DiscreteVAE
from dalle.optional_dependencies import check_installed
from dalle.precision import FORMATS
from dalle.pretrained import IMPORTS
from dalle.sampling.export import MEGABYTE, ExportOptions, export_checkpoint
from dalle.sampling.novelty import TILE, TrainingImages, describe_nearest, side_by_side
from dalle.sampling.output_writer import unused_path
from dalle.stages.encode_dataset import DatasetEncoder, summary

METRICS = "metrics.json"
MODELS = {"dvae": DiscreteVAE, "clip": CLIP}


@command("prepare")
def main(config: PrepareConfig) -> None:
    settings = vars(config) | {"import": import_name(config)}
    if config.datasheet is not None and config.sources is None:
        raise ValueError("datasheet= needs a checkpoint: sources=<folder>")
    requested = [task for task in TASKS if settings[task.setting] is not None]
    task = requested[0] if requested else None
    if task is None or (task.needs_data and config.data is None):
        imports = " or ".join(f"import={name}" for name in IMPORTS)
        raise ValueError(f"nothing to prepare: give {imports}, or a data set, as in data=folder data.path=my/pictures")
    if other_setting := next(
        (other_task.setting for other_task in requested[1:] if other_task.setting not in task.reads), None
    ):
        raise ValueError(f"{task.setting}= and {other_setting}= are separate tasks: run prepare.py once for each")
    options = [name for name in ("push", "revision", "private", "card") if settings[name] not in (None, False)]
    if config.export is None and options:
        raise ValueError(f"{options[0]}= needs a checkpoint to export: export=<folder>")
    if config.push is None and (unused_options := [name for name in options if name != "card"]):
        raise ValueError(f"{unused_options[0]}= needs a repository to upload to: push=<user/name>")
    task.run(config)


def import_model(config: PrepareConfig) -> None:
    """Convert published weights to a checkpoint folder of this project."""
    name = import_name(config)
    assert name is not None
    folder = empty_folder(config.out or Path("outputs", name))
    weights = IMPORTS[name].build(config)
    model = MODELS[weights.kind].from_pretrained_weights(weights)
    with atomic_folder(folder) as temporary:
        model.save(temporary, weights.meta)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{folder}: {weights.kind}, {count:,} parameters")


def import_name(config: PrepareConfig) -> str | None:
    """Return the name of the importer that import= was set to, or None if it was not set."""
    return next((name for name, options in IMPORTS.configs.items() if isinstance(config, options)), None)


def export_models(config: PrepareConfig) -> None:
    """Copy the models of a checkpoint folder for publication: small files, no training state."""
    source = checkpoint_folder(config.export or "")
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={config.dtype} is unknown; choose float32 or bfloat16")
    if config.max_shard_mb < 1:
        raise ValueError(f"max_shard_mb={config.max_shard_mb} must be at least 1")
    if config.push is not None:
        check_upload(config.push)
    options = ExportOptions(FORMATS[config.dtype], config.max_shard_mb * MEGABYTE)
    metrics = read_metrics(source / METRICS) if (source / METRICS).is_file() else {}
    notes = "" if config.card is None else Path(config.card).expanduser().read_text(encoding="utf-8")
    folder = empty_folder(config.out or Path("outputs", f"{source.name}-export"))
    with atomic_folder(folder) as temporary:
        export_checkpoint(source, temporary, options, dvae=config.dvae, clip=config.clip, metrics=metrics, notes=notes)
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                print(f"{path.stat().st_size / MEGABYTE:8.3f} MB  {folder / path.relative_to(temporary)}")
        if config.push is not None:  # a failed upload leaves no folder, so that the same command can be run again
            print(f"uploaded  {upload(temporary, config.push, config.private, config.revision)}")


def check_upload(repository: str) -> None:
    """Raise ValueError unless `repository` is user/name, huggingface_hub is installed and there is a login."""
    if not REPOSITORY.fullmatch(repository):
        raise ValueError(f"push={repository} is not the name of a repository on the hub: write user/name")
    check_installed("hub", f"push={repository}", "huggingface_hub")
    from huggingface_hub import get_token

    if get_token() is None:
        raise ValueError(f"push={repository} needs a login: run hf auth login with a token that may write")


def list_sources(config: PrepareConfig) -> None:
    """Print the training data of each model of a checkpoint. With out=, also write all record keys to files.

    The files are named after the kinds of models, and if several are of one kind, also after their folders. With
    datasheet=, write a datasheet of all of them.
    """
    assert config.sources is not None
    models = find_provenance(config.sources)
    for model in models:
        print("\n".join(model.report_lines()))
    if config.datasheet is not None:
        folder = empty_folder(config.datasheet, "datasheet")
        with atomic_folder(folder) as temporary:
            files = write_datasheet(temporary, name_stages(models))
        print(f"datasheet {folder}: {', '.join(path.name for path in files)}")
    if config.out is None:
        return
    recorded_models = stages_with_data(name_stages(models))
    if not recorded_models:
        raise ValueError(f"out={config.out}: no model of sources={config.sources} has a record of its training data")
    folder = empty_folder(config.out)
    with atomic_folder(folder) as temporary:
        for name, model in recorded_models.items():
            with open(temporary / f"{name}.txt", "w", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(f"{key}\n" for key in model.record_keys())
    for model in models:
        if "data" not in model.meta:
            print(f"no list   {model.folder}: its training data are unknown")
    print(f"records   {folder}")


def find_image(config: PrepareConfig) -> None:
    """Search the training split for an image. Prints the nearest images and writes a sheet of them."""
    assert config.find is not None
    if config.neighbours < 1:
        raise ValueError(f"neighbours={config.neighbours} must be at least 1")
    path = Path(config.find).expanduser()
    try:
        image = read_image_file(path, str(path))
    except UnreadableRecord as problem:
        raise ValueError(f"find={config.find} cannot be read: {problem.reason}") from problem
    folder = empty_folder(config.out or unused_path(Path("outputs", "find", path.stem)))
    clip_folder = None if config.clip is None else checkpoint_folder(config.clip)
    clip = None if clip_folder is None else CLIP.load(clip_folder)
    training = TrainingImages.open(config.data, clip, clip_folder, config.workers)
    neighbours = training.nearest(image, config.neighbours)
    title = describe_nearest(neighbours[0], len(training.keys))
    with atomic_folder(folder) as temporary:
        cells = side_by_side(training, image, printable(path.name), neighbours)
        image_grid([GridRow(cells)], tile=TILE, title=title).save(temporary / "neighbours.png")
    for neighbour in neighbours:
        print(f"{neighbour.distances()}: {printable(neighbour.key)}")
    print(title)
    print(f"grid      {folder / 'neighbours.png'}")


def encode_images(config: PrepareConfig) -> None:
    """Encode the training split into tokens, on all ranks. An interrupted run resumes when it is started again.

    Images that could not be read before are tried again. The transformer stage does not do so, since a run that resumes
    must see the same records as before.
    """
    device = distributed.init_process_group(config.device)
    try:
        dvae_folder = checkpoint_folder(config.dvae or "")
        dvae = DiscreteVAE.load(dvae_folder).to(device)
        source = open_source(config.data, "train")
        encoder = DatasetEncoder(config.data, source, config.transform, config.crops, dvae_folder, device)
        folder = Path(config.out).expanduser() if config.out else encoder.cache_folder(Path("outputs", "tokens"))
        cache = encoder.open_cache(folder, dvae, config.workers, retry_unreadable=True)
        if distributed.is_main_process():
            print(f"tokens    {folder}: {summary(cache)}")
            tokens = f" tokens={config.out}" if config.out else ""
            settings = f"stage.transform={config.transform} stage.crops={config.crops}{tokens}"
            print(f"next      train.py stage=transformer {settings}, with the same data= and dvae=")
    finally:
        distributed.destroy_process_group()


def survey_data(config: PrepareConfig) -> None:
    """Write a survey of a data set: a page with statistics and problems, image sheets and the tokenizer."""
    folder = empty_folder(config.out or unused_path(Path("outputs", "survey", config.data.name)))
    survey = Survey.of(config.data, config.vocabulary, config.text_positions, config.limit, config.workers)
    with atomic_folder(folder) as temporary:
        findings = write_survey(survey, temporary)
    print("\n".join(findings))
    print(f"page      {folder / PAGE}")


def empty_folder(folder: str | Path, option: str = "out") -> Path:
    """Return the folder as a path. Raises ValueError, which names the option, unless it is new or empty."""
    folder = Path(folder).expanduser()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder: choose another {option}=, or move it away")
    return folder


@dataclass(frozen=True)
class Task:
    """One task of prepare.py: the setting that asks for it, and the function that does it."""

    setting: str  # the setting that asks for this task
    run: Callable[[PrepareConfig], None]
    needs_data: bool = True
    reads: tuple[str, ...] = ("data",)  # settings that this task reads and that alone ask for another


TASKS = (  # the first task whose setting is given is run
    Task("import", import_model, needs_data=False, reads=()),
    Task("export", export_models, needs_data=False, reads=("dvae",)),
    Task("sources", list_sources, needs_data=False, reads=()),
    Task("find", find_image),
    Task("dvae", encode_images),
    Task("data", survey_data),
)
