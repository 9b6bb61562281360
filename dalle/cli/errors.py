"""Error messages for a wrong command line: one sentence with the option and the closest valid one; exit status 2."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

ERROR_STATUS = 2  # exit status after any error that a sentence explains: on the command line, in a file, in training
FILTERS = "data.filters"  # of data sets of files; filters= sets it


def explain_hydra_error(error: Exception, keys: Sequence[str], arguments: Sequence[str]) -> str:
    """Explain a Hydra error in one sentence. `arguments` are those of the command, `keys` all its valid settings."""
    text = f"{error}\n{error.__cause__ or ''}"
    if isinstance(error, OverrideParseException) or "Ambiguous value" in text:
        return _syntax_error(text, arguments)
    option = re.search(r"Could not find '([^']+)/([^']+)'", text)
    if isinstance(error, MissingConfigException) and option:
        names = sorted(set(re.findall(r"^\t([\w.-]+)$", text, re.MULTILINE)))
        options = [name for name in names if not name.endswith("_schema")]
        if option[1] == "hydra/launcher" and option[2].startswith("submitit"):
            return f"{option[1]}={option[2]} needs hydra-submitit-launcher: install it with pip install 'dalle[slurm]'"
        return f"there is no {option[1]}={option[2]}; choose one of {', '.join(options)}"
    key_match = re.search(r"full_key: (\S+)", text)
    if not key_match:
        return " ".join(str(error).split("\n")[:2])
    key, file = key_match[1], _file(text)
    if file:
        return f"{file}: {unknown_setting_message(key, keys) if key not in keys else f'{key}: {text.splitlines()[1]}'}"
    argument = next(
        (override for override in arguments if override.lstrip("+~").startswith((f"{key}=", f"{key}."))), key
    )
    if key not in keys:
        return unknown_setting_message(argument.lstrip("+~").split("=")[0], keys)
    members = [setting.removeprefix(key) for setting in keys if re.fullmatch(rf"{re.escape(key)}\.[^.]+", setting)]
    if members:
        return (
            f"{argument}: {key} is a group of settings ({', '.join(members)}); set one of them, as in "
            f"{key}{members[0]}=..."
        )
    return f"{argument}: {str(error.__cause__ or error).splitlines()[0]}"


def unknown_option(arguments: Sequence[str], own_options: Collection[str]) -> str | None:
    """Return the first option such as --caption that is neither Hydra's nor in `own_options`, or None if there is none.

    The option is returned without its value.
    """
    hydra_options = {name for action in get_args_parser()._actions for name in action.option_strings}
    options = (argument.partition("=")[0] for argument in arguments if argument.startswith("-"))
    return next((option for option in options if option not in hydra_options and option not in own_options), None)


def wrong_option_message(option: str, keys: Sequence[str]) -> str:
    """Return the error message for an option such as --caption. Settings, whose names are `keys`, have no dashes."""
    key = option.lstrip("-").replace("-", "_")
    advice = f"write {key}=..." if key in keys else unknown_setting_message(key, keys)
    return f"{option} is not an option: {advice}; --help lists the settings"


def unknown_setting_message(key: str, keys: Sequence[str]) -> str:
    """Return the error message for a setting that is not in `keys`."""
    if f"{key}.".startswith(f"{FILTERS}.") and FILTERS not in keys:
        return f"there is no setting {key} for this data set: filters= is for data=folder, coco and webdataset"
    # difflib.get_close_matches compares only whole keys, but users mostly remember the last word
    similarities = {valid_key: _similarity(key, valid_key) for valid_key in keys}
    best_similarity = max(similarities.values(), default=0.0)
    closest = [valid_key for valid_key, similarity in similarities.items() if similarity > best_similarity - 0.03][:3]
    return f"there is no setting {key}" + (f"; did you mean {' or '.join(closest)}?" if best_similarity > 0.6 else "")


def all_keys(node: Any, prefix: str = "") -> list[str]:
    """Return all dotted keys below a composed `node`, including those of sub-configs."""
    keys = []
    for name, child in _children(node).items():
        keys += [f"{prefix}{name}", *all_keys(child, f"{prefix}{name}.")]
    return keys


def unknown_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys below `node` that its dataclasses do not have. Hydra accepts any key after a +."""
    schema = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    field_names = {field.name for field in fields(schema)} if is_dataclass(schema) else None
    for name, child in _children(node).items():
        if field_names is not None and name not in field_names:
            yield f"{prefix}{name}"
        yield from unknown_keys(child, f"{prefix}{name}.")


def _syntax_error(text: str, arguments: Sequence[str]) -> str:
    """Return the error message for an argument that Hydra cannot parse. `text` is Hydra's message."""
    # quoted by hydra_argument
    quoted = [argument for argument in arguments if "=" in argument and f"{argument.split('=')[0]}=" in text]
    wrong_argument = max(
        [argument for argument in arguments if argument in text] or quoted or arguments[-1:], key=len, default=""
    )
    key = wrong_argument.split("=")[0]
    if wrong_argument == key:
        previous = arguments[arguments.index(wrong_argument) - 1] if wrong_argument in arguments[1:] else ""
        if "=" in previous and "." not in wrong_argument:  # caption=a money bag
            return f"cannot read {wrong_argument}: write {key}=value, or put quotes around all words of {previous}"
        return f"cannot read {wrong_argument}: write {key}=value"
    letters = "commas, brackets or letters such as é"
    return f"cannot read {wrong_argument}: a value with {letters} needs two pairs of quotes, as '{key}=\"a, b\"'"


def _file(text: str) -> str:
    """Return the config file and section that Hydra's error message `text` names; "" if it names none."""
    match = re.search(r"^In '([^']+)': \w+ raised while composing", text, re.MULTILINE)
    parts = match[1].split("/") if match else []
    if len(parts) == 3:  # preset/dvae/tiny
        return f"configs/{parts[0]}/{parts[2]}.yaml, section {parts[1]}"
    return f"configs/{'/'.join(parts)}.yaml" if parts else ""


def _similarity(key: str, other: str) -> float:
    """Return the similarity of two settings in [0, 1]: the mean over whole keys and last words."""
    pairs = ((key, other), (key.split(".")[-1], other.split(".")[-1]))
    return sum(SequenceMatcher(None, *pair).ratio() for pair in pairs) / 2


def _children(node: Any) -> dict[str, Any]:
    """Return the children of a node of a composed config by name; an empty dict unless it is a mapping."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing() or node._is_interpolation():
        return {}
    return {str(key): node._get_node(key) for key in node}
