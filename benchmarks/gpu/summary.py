"""Summary of all parts, at most 100 lines: outputs/gpu/summary.md."""

import json
from collections.abc import Sequence
from pathlib import Path

LINES = 100


def summary(out: Path, parts: Sequence[str]) -> tuple[list[str], bool]:
    """Write the summary to `out`. Returns its lines, and True if all measurements are done or impossible."""
    lines, complete = ["# make gpu", ""], True
    for part in parts:
        if not (out / f"{part}.json").exists():
            lines += [f"## gpu-{part}", "", f"Not run: `make gpu-{part}`.", ""]
            complete = False
            continue
        facts = json.loads((out / f"{part}.json").read_text(encoding="utf-8"))
        statuses = [measurement["status"] for measurement in facts["measurements"].values()]
        complete = complete and all(status in ("done", "skipped") for status in statuses)
        counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
        page = (out / f"{part}.md").read_text(encoding="utf-8") if (out / f"{part}.md").exists() else ""
        body = page.partition("\n\n")[2].splitlines()
        lines += [f"## gpu-{part}: {counts or 'nothing yet'}", "", *_shortened(body, f"{out / part}.md"), ""]
    if not any(line.startswith("## gpu-") and ":" in line for line in lines):
        lines += ["No part has run yet: `make gpu`."]
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lines, complete


def _shortened(body: list[str], page: str, most: int = LINES // 4 - 5) -> list[str]:
    """Return the first `most` lines of a part's page, and any later lines about missing measurements."""
    if len(body) <= most:
        return body
    start = body.index("Not measured:") if "Not measured:" in body else len(body)
    problems = body[start:][: most // 2]
    return [*body[: most - len(problems) - 1], f"... the rest: {page}", *problems]
