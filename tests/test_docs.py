"""The documentation names files, functions, links and make targets: all of them exist."""

import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from source_names import NAMES, ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md")), ROOT / "benchmarks" / "README.md"]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
PLACES = ("", "dalle/", "tests/", "benchmarks/")  # docs/paper.md and benchmarks/README.md leave these out
FOLDERS = "dalle|tests|configs|docs|tools|benchmarks|notebooks"
TARGETS = set(re.findall(r"^([a-z-]+(?: [a-z-]+)*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_links_point_to_existing_files_and_headings(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        file, _, heading = link.partition("#")
        if "://" in link:
            continue
        target = (ROOT / page).parent / file if file else ROOT / page
        if not target.is_file() or (heading and heading not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", TEXTS)
def test_paths_exist(page):
    paths = re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*[\w/]", TEXTS[page])
    assert sorted(path for path in set(paths) if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("page", TEXTS)
def test_python_files_exist(page):
    files = set(re.findall(r"`([\w/]+\.py)`", TEXTS[page]))
    assert sorted(file for file in files if not any((ROOT / place / file).is_file() for place in PLACES)) == []


def named_beside_files() -> list[tuple[str, str, str]]:
    """Return (page, file, name) for each name after a file: "`a.py`: `f`, `Config.x`, `.y`", y being of Config too."""
    found = []
    for page, text in TEXTS.items():
        for file, names in re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", text):
            owner = ""
            for name in re.findall(r"`([\w.]+)`", names):
                first, _, rest = name.partition(".")
                owner = (first or owner) if rest else ""
                found.append((page, file, f"{owner}.{rest}" if rest else name))
    return found


@pytest.mark.parametrize(("page", "file", "name"), named_beside_files())
def test_names_beside_a_file_are_defined_in_it(page, file, name):
    assert any(name in NAMES.get(f"{place}{file}", ()) for place in PLACES), f"{page}: {file} does not define {name}"


@pytest.mark.parametrize("page", TEXTS)
def test_make_targets_exist(page):
    targets = {name for line in TARGETS for name in line.split()}
    named = re.findall(r"(?:`|^)make ([a-z][a-z-]*)", TEXTS[page], re.MULTILINE)
    assert sorted(set(named) - targets) == []


@pytest.fixture(scope="module")
def hook() -> dict:
    """Variables of the site's hook, which adds pages from outside of docs/."""
    return runpy.run_path(str(DOCS / "site_pages.py"))


def test_the_sites_menu_has_every_page(hook):
    menu = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(menu) == sorted([*(page.name for page in DOCS.glob("*.md")), *hook["PAGES"].values()])


@pytest.mark.parametrize(
    ("page", "link", "on_the_site"),
    [
        ("docs/faq.md", "[a](../benchmarks/README.md#one)", "[a](benchmarks.md#one)"),
        ("benchmarks/README.md", "[a](../docs/gpu.md)", "[a](gpu.md)"),
        ("docs/faq.md", "[a](data.md#one) ![b](samples.png)", "[a](data.md#one) ![b](samples.png)"),
        ("docs/faq.md", "[a](#one) [b](https://example.org)", "[a](#one) [b](https://example.org)"),
    ],
)
def test_links_that_lead_out_of_the_docs_lead_to_a_page_of_the_site(hook, page, link, on_the_site):
    assert hook["LINK"].sub(lambda found: hook["inside"](found, page), link) == on_the_site


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link_or_anchor(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # strict: a warning is an error
    reference = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    assert "Join components that were trained together." in reference  # from a docstring
    assert (tmp_path / "model-card" / "index.html").is_file()


@pytest.mark.parametrize("page", [page for page in TEXTS if page not in ("README.md", "CHANGELOG.md")])
def test_lists_and_tables_begin_after_an_empty_line(page):
    """GitHub does not need it, mkdocs does: it would join them with the paragraph above."""
    text = re.sub(r"^```.*?^```$", "\n", TEXTS[page], flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^(?![#|\s>*-]|\d+\. )(.+)\n(?=[|] |- |1\. )", text, re.MULTILINE)
    assert found == []


def test_the_python_page_lists_existing_names():
    text = TEXTS["docs/api.md"]
    directives = re.findall(r"^::: ([\w.]+)\.(\w+)$", text, re.MULTILINE)
    table = re.findall(r"^\| `(\w+)` \| `([\w/]+\.py)` \|$", text, re.MULTILINE)
    assert {(name, module.replace(".", "/") + ".py") for module, name in directives} == set(table)
    assert all(name in NAMES[file] for name, file in table)


@pytest.fixture(scope="module")
def drawing() -> dict:
    return runpy.run_path(str(DOCS / "architecture.py"))


def test_drawing_matches_its_script(drawing):
    assert (DOCS / "architecture.svg").read_bytes() == drawing["draw"]().encode(), "run: make architecture"


def test_files_and_names_in_the_drawing_exist(drawing):
    for file, name in drawing["REFERENCES"]:
        assert name in NAMES[f"dalle/{file}"], f"dalle/{file} does not define {name}"


def test_drawing_is_self_contained_and_shows_its_references(drawing):
    root = ElementTree.fromstring((DOCS / "architecture.svg").read_text(encoding="utf-8"))
    shown = " ".join("".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text"))
    files = re.findall(r"[\w/]+\.py", shown)
    assert sorted(files) == sorted(file for file, _ in drawing["REFERENCES"])
    assert all(name in shown for _, name in drawing["REFERENCES"])
    assert "http" not in (DOCS / "architecture.svg").read_text(encoding="utf-8").replace(
        "http://www.w3.org/2000/svg", ""
    )


@pytest.mark.parametrize("script", sorted(path.name for path in DOCS.glob("*.py")))
def test_the_imports_of_scripts_exist(script):
    assert runpy.run_path(str(DOCS / script))["__doc__"]  # runs the imports; the work is below __main__
