"""Provenance: a record of the training data, written into every checkpoint, and a report about it."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dalle import checkpoint
from dalle.bundled import checkpoint_folder
from dalle.checkpoint import CheckpointError
from dalle.data import attribution, config_from_dict, open_source
from dalle.data.index import StringArray
from dalle.data.source import Source


@runtime_checkable
class Attributed(Protocol):
    """Source whose images are by several authors, who must be named."""

    def attributions(self) -> list[dict[str, str]]:
        """Return author, licence and address of each part of the data set, as dicts."""
        ...


@runtime_checkable
class Packaged(Protocol):
    """Source whose images come from published files."""

    def packages(self) -> list[dict[str, str]]:
        """Return name, address and SHA-256 of each file, as dicts with the keys name, url and sha256."""
        ...


@runtime_checkable
class Counted(Protocol):
    """Source that can count its records by their properties."""

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of records by each property: {"style": {"3D render": 3121, ...}, ...}."""
        ...


def data_meta(data: Any, sources: Mapping[str, Source]) -> dict[str, Any]:
    """Return the data entries of a checkpoint's meta.

    They are the config, record count and digest of each split, what was left out of the data set by reason, the authors
    and licences and the published files if the source names them, and the number of training records by style and so on
    if it counts them.
    """
    records = {
        split: {"records": len(source), "digest": source.digest(), "left_out": dict(source.dropped)}
        for split, source in sources.items()
    }
    authors = [source.attributions() for source in sources.values() if isinstance(source, Attributed)][:1]
    packages = [source.packages() for source in sources.values() if isinstance(source, Packaged)][:1]
    train = sources.get("train")
    return {
        "data": asdict(data),
        "records": records,
        "left_out_complete": True,
        **({"attributions": authors[0]} if authors else {}),
        **({"packages": packages[0]} if packages else {}),
        **({"counts": train.counts()} if isinstance(train, Counted) else {}),
    }


def changed_splits(previous: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Describe each split whose records have changed, in a phrase. The arguments are `records` of a checkpoint's meta.

    A split that `previous` lacks counts as unchanged.
    """
    phrases = []
    for split, record in current.items():
        previous_record = previous.get(split, record)
        if previous_record["records"] != record["records"]:
            phrases.append(f"{split} had {previous_record['records']:,} records, now {record['records']:,}")
        elif previous_record["digest"] != record["digest"]:
            phrases.append(
                f"captions or files of {split}: digest was {previous_record['digest']}, now {record['digest']}"
            )
    return phrases


@dataclass(frozen=True)
class Provenance:
    """A checkpoint, and the information in it about its training data."""

    folder: Path
    kind: str  # dvae, transformer, clip
    meta: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Provenance":
        """Read the provenance from the checkpoint in `folder`. Raises CheckpointError if there is no checkpoint."""
        config = checkpoint.read_json(folder / checkpoint.CONFIG)
        return cls(folder, str(config.get("kind")), config.get("meta") or {})

    def data(self) -> Any:
        """Return the data set's config. Raises CheckpointError if the checkpoint has none."""
        if "data" not in self.meta:
            raise CheckpointError(f"the checkpoint {self.folder} does not record its training data")
        return config_from_dict(self.meta["data"])

    def report_lines(self) -> list[str]:
        """Return the lines of a report on the training data and if the current data are the same."""
        if "data" not in self.meta:
            imported = self.meta.get("imported")
            reason = f"weights imported from {imported}" if imported else "the checkpoint has no record of it"
            return [f"{self.folder}: {self.kind}, training data unknown; {reason}"]
        data = self.meta["data"]
        lines = [f"{self.folder}: {self.kind}, trained on data={data['name']}"]
        lines += [f"  {name}: {value}" for name, value in data.items() if name != "name" and value not in ("", None)]
        for split, record in self.meta.get("records", {}).items():
            lines.append(f"  {split}: {record['records']:,} records, digest {record['digest']}")
        lines += [f"  left out: {phrase}" for phrase in self.left_out()]
        lines.append(f"  now: {self.compare()}")
        if (init := self.meta.get("init")) is not None:
            path = Path(os.path.normpath(self.folder / init["path"]))
            if not path.exists():  # on the computer of whoever trained the model
                path = init["path"]
            lines.append(f"  started from {path}, digest {init['digest']}, whose training data count as well")
        for part in self.meta.get("attributions", []):
            lines.append(f"  {', '.join(str(value) for value in part.values())}")
        if note := attribution(data["name"]):
            lines.append(f"  {note}")
        return lines

    def left_out(self) -> list[str]:
        """Return phrases with the numbers of records left out of the whole data set, by reason; ["nothing"] if none.

        If the checkpoint does not state that its list of reasons is complete, the last phrase says so.
        """
        reasons = next(iter(self.meta.get("records", {}).values()), {}).get("left_out", {})  # the same for all splits
        phrases = [f"{count:,} {reason}" for reason, count in reasons.items()]
        if not self.meta.get("left_out_complete", False):
            phrases.append("other reasons are not recorded" if phrases else "not recorded")
        return phrases or ["nothing"]

    def compare(self) -> str:
        """Compare the digest of the training data with that of the current data. Returns a phrase with the outcome."""
        record = self.meta.get("records")
        if record is None:
            return "cannot be compared: this checkpoint has no digest of its data"
        try:
            current_digest = self.source().digest()
        except (ValueError, ImportError, OSError) as problem:
            return f"the data cannot be opened ({problem})"
        return (
            "the data are unchanged" if current_digest == record["train"]["digest"] else "the data have CHANGED since"
        )

    def source(self) -> Source:
        """Open the training split. Raises ValueError, or CheckpointError if the checkpoint has no data config."""
        return open_source(self.data(), "train")

    def record_keys(self) -> StringArray:
        """Return the keys of the training records. Raises CheckpointError if the data have changed since training."""
        source = self.source()
        if (record := self.meta.get("records")) is not None and source.digest() != record["train"]["digest"]:
            raise CheckpointError(
                f"{self.folder} was trained on {record['train']['records']:,} records, and the data have changed "
                f"since: there are {len(source):,} now, and the training records cannot be identified"
            )
        return source.keys()


def find_provenance(folder: str | Path) -> list[Provenance]:
    """Return the provenance of all checkpoints in a folder or its direct sub-folders. CheckpointError if none."""
    folder = checkpoint_folder(folder)
    folders = sorted({path.parent for path in _configs(folder)})
    if not folders:
        raise CheckpointError(f"no checkpoint in {folder} or in its subfolders")
    return [Provenance.read(path) for path in folders]


def _configs(folder: Path) -> Iterator[Path]:
    yield from folder.glob(checkpoint.CONFIG)
    yield from folder.glob(f"*/{checkpoint.CONFIG}")
