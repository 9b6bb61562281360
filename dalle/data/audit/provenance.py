"""What models were trained on: written into every checkpoint, and told from it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.data import DATA_SETS, open_source, read_config
from dalle.data.index import Strings
from dalle.data.source import Source


def described(data: Any, sources: Mapping[str, Source]) -> dict[str, Any]:
    """What a checkpoint's meta says of its data: the config and, of each split, the records and their digest."""
    records = {
        split: {"records": len(source), "digest": source.digest(), "left_out": dict(source.dropped)}
        for split, source in sources.items()
    }
    return {"data": asdict(data), "records": records}


@dataclass(frozen=True)
class Provenance:
    """One model and its data."""

    folder: Path
    kind: str  # dvae, transformer, clip
    meta: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Provenance":
        """What the checkpoint in `folder` says. Raises CheckpointError where there is none."""
        written = checkpoint.read_json(folder / checkpoint.CONFIG)
        return cls(folder, str(written.get("kind")), written.get("meta") or {})

    def data(self) -> Any:
        """The data set's config. Raises CheckpointError where the checkpoint names none."""
        if "data" not in self.meta:
            raise CheckpointError(f"{self.folder} does not say which data it was trained on")
        return read_config(self.meta["data"])

    def lines(self) -> list[str]:
        """What it was trained on, and whether that is what lies there now, in plain words."""
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
        """Whether the data that the settings lead to today are the same."""
        told = self.meta.get("records")
        if told is None:
            return "cannot be compared: this checkpoint is older than digests of data"
        try:
            now = self.source().digest()
        except (ValueError, ImportError, OSError) as problem:
            return f"the data are not there ({problem})"
        return "the data are unchanged" if now == told["train"]["digest"] else "the data have CHANGED since"

    def source(self) -> Source:
        """The training split. Raises ValueError, or CheckpointError where the checkpoint names no data."""
        return open_source(self.data(), "train")

    def names(self) -> Strings:
        """The training records' keys. Raises CheckpointError where the data are no longer those of the training."""
        source = self.source()
        if (told := self.meta.get("records")) is not None and source.digest() != told["train"]["digest"]:
            raise CheckpointError(
                f"{self.folder} was trained on {told['train']['records']:,} records, and the data have changed since: "
                f"of the {len(source):,} that are there now it is not known which these were"
            )
        return source.keys()


def provenances(folder: str | Path) -> list[Provenance]:
    """The models in a checkpoint folder, or in the folders in it. Raises CheckpointError where there is none."""
    folder = Path(folder)
    found = sorted({path.parent for path in _configs(folder)})
    if not found:
        raise CheckpointError(f"no checkpoint at {folder}, nor in a folder in it")
    return [Provenance.read(path) for path in found]


def _configs(folder: Path) -> Iterator[Path]:
    yield from folder.glob(checkpoint.CONFIG)
    yield from folder.glob(f"*/{checkpoint.CONFIG}")
