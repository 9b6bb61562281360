"""Arguments as users type them, written as Hydra's grammar needs them: paths, captions, lists, the home folder."""

import os
import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException

# settings that are read literally, including commas and quotes
LITERAL_SETTINGS = ("caption", "data.path", "data.captions", "data.opt_out", "find")
LIST_SETTINGS = ("runs", "metrics")  # list settings that may be typed without brackets
# a value in quotes of which no unescaped one is inside, unlike "a red dot" and "a blue dot"
IN_QUOTES = re.compile(r""""([^"\\]|\\.)*"|'([^'\\]|\\.)*'""", re.DOTALL)
SWEEPS = (ValueType.CHOICE_SWEEP, ValueType.SIMPLE_CHOICE_SWEEP, ValueType.RANGE_SWEEP)


def hydra_argument(argument: str, sweeping: bool = False) -> str:
    """Return a command's argument as Hydra has to get it.

    A ~ at the start of a value is replaced by the home folder, also where the shell leaves it. Values of
    `LITERAL_SETTINGS` are quoted, and others that Hydra cannot parse, such as file names with brackets. Values of
    `LIST_SETTINGS` get brackets. In a sweep, commas separate the values of jobs, so values with commas are left alone.
    """
    key, equals, text = argument.partition("=")
    if not equals or argument.startswith("-"):
        return argument
    if key != "caption":
        text = os.path.expanduser(text)
    argument = f"{key}={text}"
    in_quotes = IN_QUOTES.fullmatch(text) is not None
    if sweeping:
        is_readable = "," in text or _parses(argument)
    elif key in LIST_SETTINGS and not text.startswith("["):
        bracketed = f"{key}=[{text}]"
        return (
            bracketed if _parses(bracketed) else f"{key}=[{','.join(_quoted_path(path) for path in text.split(','))}]"
        )
    else:
        is_readable = key not in LITERAL_SETTINGS and (text.startswith(("[", "{")) or _parses(argument))
    return argument if in_quotes or is_readable else f"{key}={_quoted(text)}"


def without_sweep(argument: str) -> str:
    """Return an override with only the first value of its sweep: "seed=0,1" -> "seed=0". Others are unchanged."""
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return argument
    if override.value_type not in SWEEPS:
        return argument
    return f"{argument.partition('=')[0]}={next(iter(override.sweep_string_iterator()))}"


def _parses(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def _quoted_path(text: str) -> str:
    return _quoted(os.path.expanduser(text.strip()))


def _quoted(text: str) -> str:
    text = re.sub(r'(\\+)(?="|\Z)', r"\1\1", text)  # elsewhere Hydra reads backslashes literally
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # and OmegaConf where no ${ follows
    text = text.replace('"', '\\"')
    return f'"{text}"'
