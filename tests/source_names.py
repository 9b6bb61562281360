"""Names that Python files define, for tests of pages that name them."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def defined(file: Path) -> set[str]:
    """Return the functions, classes and variables that a file defines, and those in classes as Class.name."""
    found = set()

    def collect(body: list[ast.stmt], within: str = "") -> None:
        for node in body:
            names = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [child.id for target in targets for child in ast.walk(target) if isinstance(child, ast.Name)]
            found.update(f"{within}{name}" for name in names)
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{node.name}.")

    collect(ast.parse(file.read_text(encoding="utf-8")).body)
    return found


SOURCES = [
    path
    for folder in ("", "dalle/**/", "tests/**/", "docs/", "tools/", "benchmarks/**/", "notebooks/")
    for path in ROOT.glob(f"{folder}*.py")
]
NAMES = {path.relative_to(ROOT).as_posix(): defined(path) for path in SOURCES}
