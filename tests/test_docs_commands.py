"""Every command in README.md and docs/, in blocks and in sentences, is composed, dry-run, or run by another test.

test_readme.py has the settings of train.py, sample.py and so on in blocks, and the targets of make; test_ablations.py
has docs/ablations.md. The commands in docs/lab.md are records of their day.
"""

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

from dalle.cli.arguments import LIST_SETTINGS, LITERAL_SETTINGS
from dalle.cli.config import COMMANDS, compose, valid_keys
from dalle.cli.main import DESCRIPTIONS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
PYPROJECT = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli").loads(
    (ROOT / "pyproject.toml").read_text(encoding="utf-8")
)
PROGRAMS = ("python", "dalle", "pip", "docker", "curl", "hf", "sbatch", "source", "pytest", "git", "torchrun", "cd")
SCRIPTS = tuple(f"{name}.py" for name in COMMANDS)
RUN_BY = {  # script -> the test that runs it
    "tools/naming_test.py": "tests/test_naming_test.py",
    "tools/compare_losses.py": "tests/test_compare_losses.py",
    "tools/check_links.py": "tests/test_check_links.py",
    "docs/loss_curves.py": "tests/test_figures.py",
    "docs/studio_screenshots.py": "",  # needs Chromium; test_docs.py runs its imports
    "benchmarks/cpu_settings.py": "tests/test_benchmarks.py",
    "benchmarks/compilation.py": "tests/test_benchmarks.py",
    "benchmarks/parallel_decoding.py": "tests/test_benchmarks.py",
    "benchmarks/precision.py": "tests/test_benchmarks.py",
    "benchmarks/sampling.py": "tests/test_benchmarks.py",
}

IN_TEST_README = re.compile(
    r"dalle (?!verify)|(?:python|torchrun)\b.*(?<![\w/])(?:train|sample|evaluate|report|prepare)\.py"
)


def command_lines(text: str) -> list[list[str]]:
    """Return the words of each command of a page, once: lines of its shell blocks, and code in its sentences."""
    lines = []
    for block in re.findall(r"```(?:bash|console)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if not IN_TEST_README.match(line):
                lines += re.split(r" && ", line.removeprefix("$ "))
    sentences = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    programs = "|".join(map(re.escape, (*PROGRAMS, *SCRIPTS)))
    lines += [
        " ".join(code.split())
        for code in re.findall(r"`([^`]+)`", sentences)
        if re.match(rf"(?:[A-Z_]+=\S+ )*(?:{programs})(?: |$)", code)
    ]
    found = [without_variables(shlex.split(line, comments=True)) for line in dict.fromkeys(lines)]
    return [words for words in found if len(words) > 1]  # one word is a program's name


def without_variables(words: list[str]) -> list[str]:
    """Leave out the environment variables before a command."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


FOUND = [
    (page.name, words)
    for page in PAGES
    if page.name not in ("lab.md", "ablations.md")
    for words in command_lines(page.read_text(encoding="utf-8"))
    if words[0] != "make"  # test_docs.py checks that the target exists
]


@pytest.mark.parametrize(("page", "words"), FOUND, ids=[f"{page}: {' '.join(words)}" for page, words in FOUND])
def test_every_command_is_checked(page, words):
    program, *rest = words
    if program in SCRIPTS:
        return check_settings(Path(program).stem, rest)
    if program == "dalle":
        return check_dalle(rest)
    assert program in CHECKS, f"{page}: nothing checks {' '.join(words)}"
    CHECKS[program](rest)


def check_settings(command: str, arguments: list[str]) -> None:
    """Compose the settings of train.py and so on. `caption=...` and `run=a,b` stand for any value."""
    overrides = []
    for argument in arguments:
        key, equals, value = argument.lstrip("+").partition("=")
        if argument in ("-m", "--help", "--help-all", "...") or key.startswith("hydra"):
            continue
        if not value or key == "import" and value == "...":  # a setting is named, without a value
            assert equals and key in valid_keys(command), argument
            continue
        value = "1" if value == "..." and key == "crops" else "given" if value == "..." else value
        value = value.split(",")[0] if "-m" in arguments else value
        if key in LIST_SETTINGS and not value.startswith("["):
            value = f"[{value}]"
        elif key in LITERAL_SETTINGS:
            value = f'"{value}"'
        overrides.append(f"{'+' if argument.startswith('+') else ''}{key}={value}")
    compose(command, overrides)


def check_dalle(arguments: list[str]) -> None:
    if not arguments or arguments == ["--help"]:
        return
    command, *rest = arguments
    assert command in DESCRIPTIONS
    if command != "verify":  # it takes files: test_verify.py
        check_settings(command, rest)


def check_python(arguments: list[str]) -> None:
    script, *rest = arguments
    if script == "-m":
        assert find_spec(rest[0]), rest[0]
    elif script in SCRIPTS:
        check_settings(Path(script).stem, rest)
    else:
        source = (ROOT / script).read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in rest if word.startswith("--"))
        test = RUN_BY[script]
        assert not test or Path(script).stem in (ROOT / test).read_text(encoding="utf-8")


def check_torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(arguments)
    check_settings(Path(parsed.training_script).stem, parsed.training_script_args)


def check_pip(arguments: list[str]) -> None:
    """Only this folder is installed: the name of the package belongs to another project in the registry."""
    assert arguments[0] == "install"
    for requirement in (word for word in arguments[1:] if not word.startswith("-")):
        found = re.fullmatch(r"\.(?:\[([\w,]+)\])?", requirement)
        assert found, requirement
        assert set(filter(None, (found[1] or "").split(","))) <= PYPROJECT["project"]["optional-dependencies"].keys()


def check_docker(arguments: list[str]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    if arguments[0] == "build":
        assert all(f"ARG {word.split('=')[0]}=" in dockerfile for word in arguments if re.match(r"[A-Z]+=", word))
    else:
        assert 'ENTRYPOINT ["dalle"]' in dockerfile
        check_dalle(arguments[arguments.index("dalle") + 1 :])


def check_curl(arguments: list[str]) -> None:
    """Files of OpenAI's are downloaded; the studio's route exists."""
    addresses = [word for word in arguments if "://" in word]
    routes = (ROOT / "dalle" / "studio" / "openai_api.py").read_text(encoding="utf-8")
    routes += (ROOT / "dalle" / "studio" / "routes.py").read_text(encoding="utf-8")
    for address in addresses:
        local = re.fullmatch(r"http://127\.0\.0\.1:\d+(/.*)", address)
        assert local[1].removeprefix("/v1") in routes if local else address.startswith("https://cdn.openai.com/")


def check_hf(arguments: list[str]) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    assert arguments[:2] == ["auth", "login"] or arguments[0] == "download"
    assert entry_points(group="console_scripts", name="hf")


def check_sbatch(arguments: list[str]) -> None:
    at = next(place for place, word in enumerate(arguments) if word.endswith(".sbatch"))
    script, *settings = arguments[at:]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    printed = subprocess.run(
        ["bash", str(ROOT / script), *settings],
        env={**environment, "DRY_RUN": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    words = shlex.split(printed)
    check_settings("train", words[words.index("train.py") + 1 :])


def check_source(arguments: list[str]) -> None:
    assert arguments == [".venv/bin/activate"]
    assert "-m venv .venv\n" in (ROOT / "Makefile").read_text(encoding="utf-8").replace(" \\", "")


def check_pytest(arguments: list[str]) -> None:
    markers = {marker.partition(":")[0] for marker in PYPROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if option == "-m":
            assert set(value.split()) - {"not", "and", "or"} <= markers
        elif option.startswith("tests"):
            assert (ROOT / option).exists()


def check_git(arguments: list[str]) -> None:
    assert arguments[0] == "show"
    if not (ROOT / ".git").exists():
        pytest.skip("this copy has no history")
    if (ROOT / ".git" / "shallow").exists():
        pytest.skip("this clone has no complete history")
    command = ["git", "show", "--stat", "--format=", *arguments[1:]]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


CHECKS = {
    "python": check_python,
    "torchrun": check_torchrun,
    "pip": check_pip,
    "docker": check_docker,
    "curl": check_curl,
    "hf": check_hf,
    "sbatch": check_sbatch,
    "source": check_source,
    "pytest": check_pytest,
    "git": check_git,
}
