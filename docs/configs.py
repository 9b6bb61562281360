"""Write docs/configs.md, the reference of all settings: `make configs`, or `python docs/configs.py [file]`.

Descriptions are the comments of the settings in their dataclasses; edit them there.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dalle.cli.config import COMMANDS, group_options
from dalle.cli.help import Setting, docstring_lines, field_comments, settings
from dalle.data import DATA_SETS
from dalle.pretrained import IMPORTS
from dalle.sampling.edits import EDITS
from dalle.stages import STAGES

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".md")
BEGINNING = """# Every setting

The settings of each command, with default and meaning. Type a setting as `name=value`, a list as `[a,b]`, and no value
as `null` (None in the text below). The defaults are the paper's, wherever it gives any. A preset, a size or an
experiment changes them.

`--help` and `--help-all` show the same in a terminal, with the values that this very command would use:
`python train.py stage=clip preset=tiny --help`. `--cfg job` prints them as YAML.

`make configs` writes this page from the comments in the code.
"""


def page() -> str:
    """Return the text of docs/configs.md."""
    lines = [BEGINNING]
    for name, schema in COMMANDS.items():
        lines.append(f"## {name}.py\n" if (ROOT / f"{name}.py").exists() else f"## dalle {name}\n")
        offered = group_options(name)
        for group, names in offered.items():
            meaning = field_comments(schema).get(group)
            lines.append(
                f"- `{group}=` {', '.join(f'`{option}`' for option in names)}{f': {meaning}' if meaning else ''}"
            )
        lines += [""] if offered else []
        lines += table(row for row in settings(schema()) if row.key not in offered)
        if name == "train":
            for stage, config in STAGES.configs.items():
                lines += section(f"stage={stage}", config(), "stage.")
            for data, config in DATA_SETS.configs.items():
                lines += section(f"data={data}", config(), "data.")
        if name == "sample":
            for edit, config in EDITS.configs.items():
                lines += section(f"edit={edit}", config(), "edit.")
        if name == "prepare":
            usual = {setting.key for setting in settings(schema())}
            for imported, config in IMPORTS.configs.items():
                lines += section(f"import={imported}", config(), "", usual)
    return "\n".join(lines).rstrip() + "\n"


def section(title: str, config: Any, prefix: str, known: set[str] = frozenset()) -> list[str]:
    """Return the section of one option: its docstring and its settings, without those in `known`."""
    told = [f"`{line}`" if line.startswith("python ") else escaped(line) for line in docstring_lines(config)]
    return [f"### {title}\n", *told, "", *table(row for row in settings(config, prefix) if row.key not in known)]


def table(rows: Iterator[Setting]) -> list[str]:
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for row in rows:
        lines.append(f"| `{row.key}` | `{row.value}` | {escaped(row.description)} |")
    return [*lines, ""]


def escaped(text: str) -> str:
    """Escape characters with a meaning in Markdown tables and pages."""
    return re.sub(r"[|<]", r"\\\g<0>", text)


if __name__ == "__main__":
    to = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    to.write_text(page(), encoding="utf-8")
    print(to)
