"""Provenance: a record of the training data, written into every checkpoint, and a report about it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.data import DATA_SETS, open_source, read_config
from dalle.data.index import StringArray
from dalle.data.source import Source


def described(data: Any, sources: Mapping[str, Source]) -> dict[str, Any]:
    """Return the data entry of a checkpoint's meta: the config, and record count and digest of each split."""
    records = {
        split: {"records": len(source), "digest": source.digest(), "left_out": dict(source.dropped)}
        for split, source in sources.items()
    }
    return {"data": asdict(data), "records": records}


@dataclass(frozen=True)
class Provenance:
    """A checkpoint and the record of its training data."""

    folder: Path
    kind: str  # dvae, transformer, clip
    meta: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Provenance":
        """Read the record from the checkpoint in `folder`. Raises CheckpointError if there is no checkpoint."""
        written = checkpoint.read_json(folder / checkpoint.CONFIG)
        return cls(folder, str(written.get("kind")), written.get("meta") or {})

    def data(self) -> Any:
        """Return the data set's config. Raises CheckpointError if the checkpoint has none."""
        if "data" not in self.meta:
            raise CheckpointError(f"{self.folder} does not say which data it was trained on")
        return read_config(self.meta["data"])

    def lines(self) -> list[str]:
        """Return a report in lines: the training data, and whether the current data are the same."""
        if "data" not in self.meta:
            imported = self.meta.get("imported")
            whose = f"imported ({imported}): its makers know" if imported else "its checkpoint does not say"
            return [f"{self.folder}: {self.kind}, trained on data unknown here; {whose}"]
        data = self.meta["data"]
        said = [f"{self.folder}: {self.kind}, trained on data={data['name']}"]
        said += [f"  {name}: {value}" for name, value in data.items() if name != "name" and value not in ("", None)]
        for split, told in self.meta.get("records", {}).items():
            said.append(f"  {split}: {told['records']:,} records, digest {told['digest']}")
        left_out = next(iter(self.meta.get("records", {}).values()), {}).get("left_out", {})
        said += [f"  left out: {count:,} {reason}" for reason, count in left_out.items()]
        said.append(f"  now: {self.compared()}")
        if data["name"] in DATA_SETS and (note := DATA_SETS[data["name"]].note):
            said.append(f"  {note}")
        return said

    def compared(self) -> str:
        """Compare the digest of the training data with that of the current data. Returns a phrase."""
        told = self.meta.get("records")
        if told is None:
            return "cannot be compared: this checkpoint is older than digests of data"
        try:
            now = self.source().digest()
        except (ValueError, ImportError, OSError) as problem:
            return f"the data are not there ({problem})"
        return "the data are unchanged" if now == told["train"]["digest"] else "the data have CHANGED since"

    def source(self) -> Source:
        """Open the training split. Raises ValueError, or CheckpointError if the checkpoint has no data config."""
        return open_source(self.data(), "train")

    def names(self) -> StringArray:
        """Return the keys of the training records. Raises CheckpointError if the data have changed since training."""
        source = self.source()
        if (told := self.meta.get("records")) is not None and source.digest() != told["train"]["digest"]:
            raise CheckpointError(
                f"{self.folder} was trained on {told['train']['records']:,} records, and the data have changed since: "
                f"of the {len(source):,} that are there now it is not known which these were"
            )
        return source.keys()


def provenances(folder: str | Path) -> list[Provenance]:
    """Find the checkpoints in a folder or its direct sub-folders. Raises CheckpointError if there are none."""
    folder = Path(folder)
    found = sorted({path.parent for path in _configs(folder)})
    if not found:
        raise CheckpointError(f"no checkpoint at {folder}, nor in a folder in it")
    return [Provenance.read(path) for path in found]


def _configs(folder: Path) -> Iterator[Path]:
    yield from folder.glob(checkpoint.CONFIG)
    yield from folder.glob(f"*/{checkpoint.CONFIG}")
