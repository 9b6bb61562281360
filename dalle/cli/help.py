"""CLI help: read the comment of each setting in its dataclass, for `--help` and docs/configs.md."""

import ast
import inspect
import io
import os
import shutil
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

COLUMN = 34  # column at which descriptions start
# settings that --help shows for commands with more settings than fit on a screen
MAIN_SETTINGS = {
    "train": (
        *(
            "run",
            "out",
            "seed",
            "dvae",
            "init",
            "device",
            "distributed",
            "resume",
            "wandb.mode",
            "data.path",
            "data.image_size",
            "data.train",
        ),
        *("stage.steps", "stage.batch_size", "stage.accumulate", "stage.precision", "stage.recompute", "stage.workers"),
        *("stage.optimizer.learning_rate.start", "stage.optimizer.warmup_steps", "stage.log_every"),
        *("stage.validate_every", "stage.preview_every", "stage.save_every"),
    ),
    "sample": (
        *("checkpoint", "caption", "captions_file", "candidates", "keep", "seed", "temperature", "top_k", "top_p"),
        *("min_p", "guidance", "rerank", "image", "novelty", "attention", "batch_size", "precision", "dvae", "clip"),
        *("device", "out"),
    ),
    "evaluate": (
        *("checkpoint", "metrics", "captions", "candidates", "rerank", "rerank_curve", "curve_captions", "pairs"),
        *("samples", "blur_curve", "features", "temperature", "guidance", "seed", "batch_size", "dvae", "clip"),
        *("device", "precision", "out"),
    ),
}
LARGE_GROUPS = {"stage", "data", "preset", "size", "experiment"}  # groups with more settings than --help shows


@dataclass(frozen=True)
class Setting:
    """One setting of the command line, as --help shows it."""

    key: str  # dotted: stage.model.width
    value: str  # as typed on the command line
    description: str  # description; empty if its dataclass has no comment


def settings(config: Any, prefix: str = "") -> Iterator[Setting]:
    """Yield all settings in `config`, a dataclass or a dict of dataclasses, recursively, in the order of definition.

    Keyword-only settings, which several configs share, come last. A `name` is not a setting: it is the chosen option,
    as in stage=dvae.
    """
    if isinstance(config, dict):
        values = config
    else:
        ordered = sorted(fields(config), key=lambda field: field.kw_only is True)
        values = {field.name: getattr(config, field.name) for field in ordered}
    descriptions = {} if isinstance(config, dict) else field_comments(type(config))
    for name, value in values.items():
        if is_dataclass(value) or isinstance(value, dict):
            yield from settings(value, f"{prefix}{name}.")
        elif name != "name":
            yield Setting(f"{prefix}{name}", format_value(value), descriptions.get(name, ""))


@cache
def field_comments(schema: type) -> dict[str, str]:
    """Return the comment of each field of a dataclass: at the end of its line, or on the lines directly above.

    A class that only overrides the default of an inherited field inherits the comment too.
    """
    comments: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if is_dataclass(base) and base.__dict__.get("__annotations__"):  # its fields are written in a file
            own_comments = _source_comments(textwrap.dedent(inspect.getsource(base)))
            comments |= {name: comment or comments.get(name, "") for name, comment in own_comments.items()}
    return comments


def docstring_lines(config: Any) -> list[str]:
    """Return the lines of a dataclass's docstring: its purpose and example commands."""
    return (inspect.getdoc(type(config)) or "").splitlines()


def format_value(value: Any) -> str:
    """Format a value for the command line: null, true, [a,b], plain numbers and words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{','.join(format_value(item) for item in value)}]"
    return str(value) if value != "" else '""'


def is_main_setting(name: str, arguments: Sequence[str], key: str) -> bool:
    """Return True if --help shows `key`: a main setting, one in `arguments`, or one of a small group in `arguments`."""
    set_keys = {argument.lstrip("+").partition("=")[0] for argument in arguments if "=" in argument}
    return key in MAIN_SETTINGS[name] or key in set_keys or key.split(".")[0] in set_keys - LARGE_GROUPS


def help_text(
    program: str, config: Any, groups: Mapping[str, Sequence[str]], is_shown: Callable[[str], bool] | None = None
) -> str:
    """Return the text of `program --help`, given the composed config and the options of each config group.

    is_shown: predicate of the keys to show; the others are only counted. None: show all.
    """
    # Hydra's own --help shows values, but no comments
    width = max(80, shutil.get_terminal_size().columns)
    lines = [f"usage: {program} [setting=value ...]", "", *docstring_lines(config), ""]
    if groups:
        lines.append("Config groups, and their options (add --help to see the settings of an option):")
        descriptions = field_comments(type(config))
        for name, options in groups.items():
            lines.append(_entry(name, " | ".join(options), width))
            lines += [_entry("", descriptions[name], width)] if descriptions.get(name) else []
        lines.append("")
        for name in groups:
            if is_dataclass(option_config := getattr(config, name, None)):
                lines += [f"{name}={getattr(option_config, 'name', '')}:", *docstring_lines(option_config), ""]
    lines.append("Settings, with the values that this command would use:")
    all_settings = [setting for setting in settings(config) if setting.key not in groups]
    # settings of the command first, then those of chosen options
    all_settings.sort(key=lambda setting: "." in setting.key)
    shown = [setting for setting in all_settings if is_shown is None or is_shown(setting.key)]
    lines += [_entry(f"{setting.key}={setting.value}", setting.description, width) for setting in shown]
    if len(shown) < len(all_settings):
        num_hidden = len(all_settings) - len(shown)
        lines += ["", f"{num_hidden} more settings: use --help-all, or see docs/configs.md for those of all groups"]
    return "\n".join(lines)


def print_help(text: str) -> None:
    """Print `text`. A reader that closes the pipe early, such as head, is not an error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again at its end


def _entry(head: str, text: str, width: int) -> str:
    first_line = f"  {head} ".ljust(COLUMN)
    if text and len(first_line) > COLUMN:  # the description goes on the next line
        return f"  {head}\n{_entry('', text, width)}"
    return textwrap.fill(first_line + text, width, subsequent_indent=" " * COLUMN, break_on_hyphens=False).rstrip()


def _source_comments(source: str) -> dict[str, str]:
    """Return {field: comment} from the source code of one dataclass, without inherited fields."""
    comment_tokens = [
        token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT
    ]
    comment_by_line = {token.start[0]: token.string.lstrip("# ") for token in comment_tokens}
    comment_only_lines = {token.start[0] for token in comment_tokens if token.line.strip() == token.string}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    comments_of = {}
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first_line = node.lineno
            while first_line - 1 in comment_only_lines:
                first_line -= 1
            comment_above = " ".join(comment_by_line[line] for line in range(first_line, node.lineno))
            comments_of[node.target.id] = comment_by_line.get(node.end_lineno or node.lineno, comment_above)
    return comments_of
