"""Write the table of sets in docs/drawings.md from the metadata of a built folder: make drawings-page."""

import json
import sys
from pathlib import Path

from dalle.data.drawings.sets import BY_NAME, STYLES

PAGE = Path(__file__).with_suffix(".md")
BEGIN, END = "<!-- sets: written by docs/drawings.py -->", "<!-- end of sets -->"


def table(sources: dict) -> str:
    """Return the sets as a Markdown table: style, drawings, author, licence, package."""
    lines = ["| set | style | drawings | author | licence | package |", "|---|---|---:|---|---|---|"]
    for name, entry in sources["sets"].items():
        author = f"[{entry['author']}]({entry['url']})" if entry["url"] else entry["author"]
        style = STYLES[BY_NAME[name].style][0]
        lines.append(
            f"| {name} | {style} | {entry['pictures']:,} | {author} | {entry['licence']} | `{entry['package']}` |"
        )
    return "\n".join(lines)


def main(folder: Path) -> None:
    sources = json.loads((folder / "sources.json").read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(sources)}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/drawings"))
