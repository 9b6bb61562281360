"""Import rules between packages, checked in the source files."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# from the top; a package counts as one, and neighbours on a floor leave each other alone
FLOORS = (
    {"train", "sample", "evaluate", "report", "prepare", "__main__"},  # call a command
    {"cli", "dalle"},  # the commands; what `from dalle import DALLE` shows
    {"studio"},  # the web page and HTTP API, which only the command imports
    {"ablations"},  # what runs and evaluations have written, side by side
    {"stages", "evaluation", "planning"},
    {"training", "sampling"},
    {"data", "losses", "models"},
    {"pretrained", "hub"},  # read other people's models; ours are built from what they read
    {"bundled"},
    {"image_conversion", "image_grid", "tokenizer", "clip_tokenizer", "checkpoint", "distributed", "ablation_config"},
    {"weights_files"},
    {
        "atomic_files",
        "seeds",
        "signals",
        "precision",
        "progress",
        "registry",
        "device_transfer",
        "config_validation",
        "optional_dependencies",
    },
)
EXCEPTIONS = {
    ("losses", "dalle.models.dvae.model"),  # how pixels are mapped is told once, where the model is
    ("losses", "dalle.models.dvae.negative_entropy"),  # chunks as in the relaxation, beside which it is
    ("losses", "dalle.models.linear_cross_entropy"),  # the mark of targets without a loss, which two losses share
}
HYDRAS = {
    "dalle/cli/arguments.py": {"hydra"},
    "dalle/cli/config_groups.py": {"hydra", "omegaconf"},
    "dalle/cli/config.py": {"hydra", "omegaconf"},
    "dalle/cli/errors.py": {"hydra", "omegaconf"},
    "dalle/cli/sweeps.py": {"hydra", "omegaconf"},
    "dalle/cli/train.py": {"omegaconf"},
    "dalle/cli/train_config.py": {"omegaconf"},
}

SOURCES = sorted([*ROOT.glob("*.py"), *ROOT.glob("dalle/**/*.py")])
FILES = [path.relative_to(ROOT) for path in SOURCES if path.name != "noxfile.py"]


def part_of(module: str) -> str:
    """Return the top-level package of a module: dalle.models.dvae -> models, train -> train, dalle.CLIP -> dalle."""
    first, _, rest = module.partition(".")
    part = rest.split(".")[0]
    within = first == "dalle" and any((ROOT / "dalle" / name).exists() for name in (f"{part}.py", f"{part}/"))
    return part if part and within else first


def module_of(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def imports(source: str) -> Iterator[str]:
    """Return the modules that a source imports anywhere; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the module's name in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor_of(part: str) -> int:
    places = [number for number, floor in enumerate(FLOORS) if part in floor]
    assert places, f"{part} has no floor: put it on one of FLOORS in {Path(__file__).name}"
    return places[0]


def trespasses(importer: str, source: str) -> list[str]:
    """Return the imports of `importer` that the rules forbid, given its source."""
    found = []
    for module in imports(source):
        if module.split(".")[0] not in FLOORS[0] | {"dalle"}:
            continue
        here, there = part_of(importer), part_of(module)
        down = floor_of(there) > floor_of(here)
        excepted = any(here == part and f"{module}.".startswith(f"{below}.") for part, below in EXCEPTIONS)
        if here != there and not down and not excepted:
            found.append(module)
    return found


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_follow_the_layers(file):
    assert trespasses(module_of(file), (ROOT / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", FILES, ids=str)
def test_hydra_is_imported_only_by_the_command_line(file):
    known = {module.split(".")[0] for module in imports((ROOT / file).read_text(encoding="utf-8"))}
    assert known & {"hydra", "omegaconf"} <= HYDRAS.get(file.as_posix(), set())


@pytest.mark.parametrize("file", sorted((ROOT / "dalle/data").glob("*.py")), ids=lambda path: path.name)
def test_data_sources_do_not_import_the_audit(file):
    assert not [module for module in imports(file.read_text(encoding="utf-8")) if module.startswith("dalle.data.audit")]


def test_training_does_not_import_plans():
    found = [module for module in imports((ROOT / "dalle/cli/train.py").read_text()) if "plan" in module.lower()]
    assert found == ["dalle.cli.train_plan.print_plans"]  # within the branch for plan=true
    code = "import sys, dalle.cli.train; sys.exit(any(name.startswith('dalle.planning') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_checkpoints_are_never_unpickled():
    for file in FILES:
        known = set(imports((ROOT / file).read_text(encoding="utf-8")))
        # restricted to safe names: tests/pretrained/test_restricted_unpickler.py, tests/training/test_sharding.py
        if file in (Path("dalle/pretrained/restricted_unpickler.py"), Path("dalle/training/sharded_state.py")):
            known -= {"pickle"}
        assert not known & {"pickle", "dill", "joblib", "shelve"}, file
        assert "torch.load(" not in (ROOT / file).read_text(encoding="utf-8"), file


@pytest.mark.parametrize(
    ("importer", "source", "found"),
    [
        ("dalle.data.blocks", "from dalle.models.dvae.model import map_pixels", ["dalle.models.dvae.model.map_pixels"]),
        (
            "dalle.data.blocks",
            "from dalle.data.source import Record\nfrom dalle import checkpoint, seeds",
            [],
        ),
        ("dalle.data.blocks", "def f():\n    import dalle.losses", ["dalle.losses"]),
        ("dalle.models.clip.model", "import torch\nfrom dalle.stages import STAGES", ["dalle.stages.STAGES"]),
        ("dalle.losses", "from dalle.models.dvae.model import map_pixels", []),
        ("dalle.losses", "from dalle.models.clip.model import CLIP", ["dalle.models.clip.model.CLIP"]),
        ("dalle.training.loop", "from dalle.sampling import decode", ["dalle.sampling.decode"]),
        ("dalle.stages.clip", "from dalle.cli.config import compose", ["dalle.cli.config.compose"]),
        ("dalle.stages.clip", "from dalle import DALLE", ["dalle.DALLE"]),
        ("dalle.cli.config", "from dalle.stages import STAGES\nfrom train import main", ["train.main"]),
        ("train", "from dalle.cli.config import command\nfrom dalle import DALLE\nimport sample", ["sample"]),
    ],
)
def test_forbidden_imports_are_found(importer, source, found):
    assert trespasses(importer, source) == found


def test_every_layer_has_modules():
    parts = {part_of(module_of(file)) for file in FILES}
    assert all(floor & parts for floor in FLOORS)
    for part in parts:
        floor_of(part)
