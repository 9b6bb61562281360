"""Hook of the documentation's web site: files outside of docs/ that its pages link to become pages of the site too."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {  # file -> its page of the site
    "benchmarks/README.md": "benchmarks.md",
    "dalle/weights/drawings/README.md": "model-card.md",
    "SECURITY.md": "security.md",
}
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
LINK = re.compile(r"\]\((?!\w+://|#)([^)\s]+)\)")


def on_files(files: Any, config: Any) -> None:
    """Add the pages, called by mkdocs."""
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        text = FRONT_MATTER.sub("", (ROOT / path).read_text(encoding="utf-8"))
        content = LINK.sub(lambda link, path=path: inside(link, path), text)
        files.append(File.generated(config, page, content=content))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point the links of a page that lead out of docs/ to the pages of the site, called by mkdocs."""
    return LINK.sub(lambda link: inside(link, "docs/page.md"), markdown)


def inside(link: re.Match[str], page: str) -> str:
    """Return a link of the file `page` as one of the site."""
    target, hash_sign, heading = link[1].partition("#")
    path = (ROOT / page).parent.joinpath(target).resolve()
    relative = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else target
    found = PAGES.get(relative, relative.removeprefix("docs/"))
    return f"]({found}{hash_sign}{heading})"
