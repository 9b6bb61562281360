"""What is wrong with a command line, in a sentence that names the option and the nearest right one."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

RENAMED = {"scale": "size"}  # settings that are called otherwise now


def explain(error: Exception, keys: Sequence[str], typed: Sequence[str]) -> str:
    """Why Hydra raised `error` over the arguments `typed`, where `keys` are all settings there are."""
    text = f"{error}\n{error.__cause__ or ''}"
    if isinstance(error, OverrideParseException) or "Ambiguous value" in text:
        return _unreadable(text, typed)
    option = re.search(r"Could not find '([^']+)/([^']+)'", text)
    if isinstance(error, MissingConfigException) and option:
        names = sorted(set(re.findall(r"^\t([\w.-]+)$", text, re.MULTILINE)))
        known = [name for name in names if not name.endswith("_schema")]
        return f"there is no {option[1]}={option[2]}; choose one of {', '.join(known)}"
    found = re.search(r"full_key: (\S+)", text)
    if not found:
        return " ".join(str(error).split("\n")[:2])
    key, file = found[1], _file(text)
    if file:
        return f"{file}: {unknown(key, keys) if key not in keys else f'{key}: {text.splitlines()[1]}'}"
    given = next((each for each in typed if each.lstrip("+~").startswith((f"{key}=", f"{key}."))), key)
    if key not in keys:
        return unknown(given.lstrip("+~").split("=")[0], keys)
    parts = [each.removeprefix(key) for each in keys if re.fullmatch(rf"{re.escape(key)}\.[^.]+", each)]
    if parts:
        return f"{given}: {key} is made of parts, {', '.join(parts)}; set those, as in {key}{parts[0]}=..."
    return f"{given}: {str(error.__cause__ or error).splitlines()[0]}"


def unknown(key: str, keys: Sequence[str]) -> str:
    """The sentence for a setting that is not among `keys`."""
    if key in RENAMED:
        return f"there is no setting {key}; it is called {RENAMED[key]} now"
    # difflib.get_close_matches compares settings in whole alone, where the last word is what people remember
    likenesses = {known: _likeness(key, known) for known in keys}
    best = max(likenesses.values(), default=0.0)
    alike = [known for known, value in likenesses.items() if value > best - 0.03][:3]
    return f"there is no setting {key}" + (f"; did you mean {' or '.join(alike)}?" if best > 0.6 else "")


def all_keys(node: Any, prefix: str = "") -> list[str]:
    """Every setting below a composed `node`, dotted, and what they are gathered in."""
    keys = []
    for name, below in _children(node).items():
        keys += [f"{prefix}{name}", *all_keys(below, f"{prefix}{name}.")]
    return keys


def strangers(node: Any, prefix: str = "") -> Iterator[str]:
    """Settings below `node` that its dataclasses do not have: Hydra lets a + put in anything."""
    schema = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    known = {each.name for each in fields(schema)} if is_dataclass(schema) else None
    for name, below in _children(node).items():
        if known is not None and name not in known:
            yield f"{prefix}{name}"
        yield from strangers(below, f"{prefix}{name}.")


def _unreadable(text: str, typed: Sequence[str]) -> str:
    wrong = next((each for each in typed if each in text), typed[-1] if typed else "")
    key = wrong.split("=")[0]
    if wrong == key:
        before = typed[typed.index(wrong) - 1] if wrong in typed[1:] else ""
        if "=" in before and "." not in wrong:  # caption=a money bag
            return f"cannot read {wrong}: settings are given as {key}=value; or quote it with {before}"
        return f"cannot read {wrong}: settings are given as {key}=value"
    return f"cannot read {wrong}: a value with commas or brackets needs two pairs of quotes, as '{key}=\"a, b\"'"


def _file(text: str) -> str:
    """The file in configs, and its section, that Hydra says it was merging when an error occurred; "" for none."""
    found = re.search(r"^In '([^']+)': \w+ raised while composing", text, re.MULTILINE)
    parts = found[1].split("/") if found else []
    if len(parts) == 3:  # preset/dvae/tiny
        return f"configs/{parts[0]}/{parts[2]}.yaml, section {parts[1]}"
    return f"configs/{'/'.join(parts)}.yaml" if parts else ""


def _likeness(key: str, known: str) -> float:
    """How alike two settings are, in whole and in their last words, from 0 to 1."""
    pairs = ((key, known), (key.split(".")[-1], known.split(".")[-1]))
    return sum(SequenceMatcher(None, *pair).ratio() for pair in pairs) / 2


def _children(node: Any) -> dict[str, Any]:
    """What is below a mapping by name; nothing is below anything else."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing() or node._is_interpolation():
        return {}
    return {str(key): node._get_node(key) for key in node}
