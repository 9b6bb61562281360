"""CLI help: read the comment of each setting in its dataclass, for `--help` and docs/configs.md."""

import ast
import inspect
import io
import shutil
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

COLUMN = 34  # column at which descriptions start
# settings that --help shows for commands with more settings than fit on a screen
FIRST = {
    "train": (
        *("run", "out", "seed", "dvae", "device", "resume", "wandb.mode", "data.path", "data.image_size", "data.train"),
        *("stage.steps", "stage.batch_size", "stage.accumulate", "stage.precision", "stage.recompute", "stage.workers"),
        *(
            "stage.optimizer.learning_rate.start",
            "stage.optimizer.warmup_steps",
            "stage.log_every",
            "stage.validate_every",
        ),
        *("stage.preview_every", "stage.save_every"),
    ),
    "sample": (
        *("checkpoint", "caption", "captions_file", "candidates", "keep", "seed", "temperature", "top_k", "top_p"),
        *("min_p", "guidance", "rerank", "image", "novelty", "attention", "batch_size", "precision", "dvae", "clip"),
        *("device", "out"),
    ),
    "evaluate": (
        *("checkpoint", "metrics", "captions", "candidates", "rerank", "rerank_curve", "curve_captions", "pictures"),
        *("samples", "blur_curve", "features", "temperature", "guidance", "seed", "batch_size", "dvae", "clip"),
        *("device", "precision", "out"),
    ),
}
LARGE_GROUPS = {"stage", "data", "preset", "size", "experiment"}  # groups with more settings than --help shows


@dataclass(frozen=True)
class Setting:
    """One setting of the command line."""

    key: str  # dotted: stage.model.width
    value: str  # as typed on the command line
    meaning: str  # description; empty if its dataclass has no comment


def settings(config: Any, prefix: str = "") -> Iterator[Setting]:
    """Yield all settings in `config`, a dataclass or a dict of dataclasses, recursively, in the order of definition.

    Keyword-only settings, which several configs share, come last. A `name` is not a setting: it is the chosen option,
    as in stage=dvae.
    """
    if isinstance(config, dict):
        named = config
    else:
        ordered = sorted(fields(config), key=lambda each: each.kw_only is True)
        named = {each.name: getattr(config, each.name) for each in ordered}
    meanings = {} if isinstance(config, dict) else comments(type(config))
    for name, value in named.items():
        if is_dataclass(value) or isinstance(value, dict):
            yield from settings(value, f"{prefix}{name}.")
        elif name != "name":
            yield Setting(f"{prefix}{name}", as_typed(value), meanings.get(name, ""))


@cache
def comments(schema: type) -> dict[str, str]:
    """Return the comment of each field of a dataclass: at the end of its line, or on the lines directly above.

    A class that only overrides the default of an inherited field inherits the comment too.
    """
    found: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        if is_dataclass(owner) and owner.__dict__.get("__annotations__"):  # its fields are written in a file
            here = _comments(textwrap.dedent(inspect.getsource(owner)))
            found |= {name: comment or found.get(name, "") for name, comment in here.items()}
    return found


def about(config: Any) -> list[str]:
    """Return the lines of a dataclass's docstring: its purpose and example commands."""
    return (inspect.getdoc(type(config)) or "").splitlines()


def as_typed(value: Any) -> str:
    """Format a value for the command line: null, true, [a,b], plain numbers and words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{','.join(as_typed(each) for each in value)}]"
    return str(value) if value != "" else '""'


def shown_first(name: str, typed: Sequence[str], key: str) -> bool:
    """Return True if --help shows `key`: it is in FIRST, was typed, or belongs to a small group that was typed."""
    asked = {each.lstrip("+").partition("=")[0] for each in typed if "=" in each}
    return key in FIRST[name] or key in asked or key.split(".")[0] in asked - LARGE_GROUPS


def usage(
    verb: str, config: Any, choices: Mapping[str, Sequence[str]], first: Callable[[str], bool] | None = None
) -> str:
    """Return the text of `verb --help`, given the composed options and the options of each group.

    first: predicate of the keys to show; the others are only counted. None: show all.
    """
    # Hydra's own --help shows values, but no comments
    width = max(80, shutil.get_terminal_size().columns)
    lines = [f"python {verb} [setting=value ...]", "", *about(config), ""]
    if choices:
        lines.append("Choices, each of which brings settings of its own; add --help to see them:")
        meanings = comments(type(config))
        for name, offered in choices.items():
            lines.append(_entry(name, " | ".join(offered), width))
            lines += [_entry("", meanings[name], width)] if meanings.get(name) else []
        lines.append("")
        for name in choices:
            if is_dataclass(chosen := getattr(config, name, None)):
                lines += [f"{name}={getattr(chosen, 'name', '')}:", *about(chosen), ""]
    lines.append("Settings, with the values that this command would use:")
    found = [each for each in settings(config) if each.key not in choices]
    found.sort(key=lambda each: "." in each.key)  # settings of the command first, then those of chosen options
    shown = [each for each in found if first is None or first(each.key)]
    lines += [_entry(f"{each.key}={each.value}", each.meaning, width) for each in shown]
    if len(shown) < len(found):
        lines += [
            "",
            f"and {len(found) - len(shown)} more: --help-all tells them, and docs/configs.md those of all choices",
        ]
    return "\n".join(lines)


def _entry(head: str, text: str, width: int) -> str:
    first = f"  {head} ".ljust(COLUMN)
    if text and len(first) > COLUMN:  # the description goes on the next line
        return f"  {head}\n{_entry('', text, width)}"
    return textwrap.fill(first + text, width, subsequent_indent=" " * COLUMN, break_on_hyphens=False).rstrip()


def _comments(source: str) -> dict[str, str]:
    """Return {field: comment} from the source of one class, without inherited fields."""
    found = [
        token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT
    ]
    text = {token.start[0]: token.string.lstrip("# ") for token in found}
    alone = {token.start[0] for token in found if token.line.strip() == token.string}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    comments_of = {}
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while first - 1 in alone:
                first -= 1
            above = " ".join(text[line] for line in range(first, node.lineno))
            comments_of[node.target.id] = text.get(node.end_lineno or node.lineno, above)
    return comments_of
