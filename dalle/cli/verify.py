"""Print which checkpoint and settings made an image, and if its signature is valid: dalle verify image.png"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dalle import checkpoint
from dalle.bundled import checkpoint_folder
from dalle.checkpoint import CheckpointError
from dalle.data.skip_counter import printable
from dalle.sampling.components import find_components
from dalle.sampling.content_credentials import read_credentials
from dalle.sampling.image_record import FOLDERS, read_record

USAGE = """usage: dalle verify FILE...

Print which checkpoint and settings made each image, and if its signature is valid. Exit status: 0 for images with a
record and no invalid signature, 1 for others, 2 for files that cannot be read, 3 if signatures cannot be checked."""
UNCHECKED = 3
# settings that have their own line, or that do not matter to who looks at the image
NOT_LISTED = {*FOLDERS, "digests", "seed", "device"}


def main() -> None:
    """Print the record and the signature of each image that the command line names; exit statuses are in `USAGE`."""
    files = sys.argv[1:]
    if not files or {"-h", "--help"} & set(files):
        print(USAGE)
        raise SystemExit(0 if files else 2)
    status = 0
    for number, file in enumerate(files):
        if len(files) > 1:
            print(("\n" if number else "") + printable(file))
        try:
            lines, file_status = describe(Path(file))
        except ValueError as error:
            print(error, file=sys.stderr)
            lines, file_status = [], 2
        print("\n".join(lines))
        status = max(status, file_status)
    raise SystemExit(status)


def describe(path: Path) -> tuple[list[str], int]:
    """Return lines about an image file, and the exit status. Text of the file is escaped: it is not trusted.

    Raises ValueError if the file is not a readable image.
    """
    record = read_record(path)
    lines = record_lines(record) if record else [f"image      {printable(path.name)} has no record of how it was made"]
    signature, status = signature_line(path)
    return [*lines, f"signature  {signature}"], status if record else max(status, 1)


def record_lines(record: Mapping[str, Any]) -> list[str]:
    """Return the lines about how an image was made."""
    settings = record["settings"]
    digests = ", ".join(f"{name} {digest}" for name, digest in settings["digests"].items())
    listed = {name: value for name, value in settings.items() if name not in NOT_LISTED}
    setting_text = ", ".join(
        f"{name}={json.dumps(value)}" for name, value in listed.items() if value not in (None, "", [])
    )
    return [
        f"caption    {printable(record['caption'])}",
        f"checkpoint {printable(settings.get('checkpoint') or 'unknown')}: {printable(digests)}",
        f"           {compare_checkpoint(settings)}",
        f"sample     seed {record['seed']}, candidate {record['candidate']}, rank {record['rank']}",
        f"settings   {printable(setting_text)}",
    ]


def compare_checkpoint(settings: Mapping[str, Any]) -> str:
    """Return a clause that says if the checkpoint on this machine has the digests that the settings record."""
    name, recorded = settings.get("checkpoint"), settings["digests"]
    if not recorded:
        return "whose digests are not recorded"
    try:
        if not name or not checkpoint_folder(name).is_dir():
            return "which is not on this machine"
        components = find_components(name, *(settings.get(kind) for kind in ("dvae", "clip", "decoder")))
        digests = {kind: checkpoint.digest(folder) for kind, folder in components.items()}
    except (CheckpointError, OSError):
        return "which is not complete on this machine, or has changed since"
    is_unchanged = all(digests.get(kind) == digest for kind, digest in recorded.items())
    return "which is on this machine, unchanged" if is_unchanged else "which has changed on this machine since"


def signature_line(path: Path) -> tuple[str, int]:
    """Return a sentence about the signature of a file, and the exit status for it."""
    try:
        credentials = read_credentials(path)
    except ValueError as error:
        return f"not checked: {error}", UNCHECKED
    if credentials is None:
        return "none", 0
    if not credentials.valid:
        return f"invalid: {printable('; '.join(credentials.errors))}", 1
    trust_note = "" if credentials.trusted else " (no authority that is known here)"
    return f"valid, by {printable(credentials.issuer)}{trust_note}: the file has not changed since", 0
