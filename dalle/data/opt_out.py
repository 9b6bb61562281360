"""Opt-out list: keys, URLs, domains and hashes of images that data sources of files leave out.

A text file with one entry per line; lines that begin with # are comments:

    photos/portrait.jpg                  a record's key, or the last path components of one
    https://example.com/me.jpg           the URL of an image
    example.org                          all URLs of a domain and its sub-domains
    9f86d081884c7d659a2feaa0c55ad015...  the SHA-256 of an image file, 64 hexadecimal digits
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class OptOut:
    """Parsed opt-out list, which states the records to leave out; empty by default.

    Keys, URLs and hashes in metadata are checked when a source is opened. Hashes of image files are checked when the
    files are read. Hashes are stored in an array, which DataLoader workers share.
    """

    def __init__(self, lines: Iterable[str] = ()):
        entries = {entry for line in lines if (entry := line.strip()) and not entry.startswith("#")}
        self.hashes = _sorted(entry for entry in entries if _SHA256.fullmatch(entry))
        self.addresses = frozenset(address for entry in entries if "://" in entry and (address := _address(entry)))
        self.names = frozenset(entry for entry in entries if "://" not in entry and not _SHA256.fullmatch(entry))
        self.domains = frozenset(_site(name) for name in self.names if "/" not in name)

    @classmethod
    def read(cls, path: str) -> "OptOut":
        """Read the list from a file; an empty path gives an empty list. Raises ValueError if the file is missing."""
        if not path:
            return cls()
        try:
            return cls(Path(path).expanduser().read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines())
        except OSError as problem:
            raise ValueError(f"data.opt_out={path} cannot be read: {problem}") from problem

    def __bool__(self) -> bool:
        return bool(self.names or self.addresses or len(self.hashes))

    def reason(self, key: str, urls: Iterable[str] = (), sha256: Iterable[str] = ()) -> str | None:
        """Return the reason to leave out a record, by its key and metadata, or None to keep it."""
        if self.names and any(name in self.names for name in _ends(key)):
            return "opted out by key"
        for url in urls:
            if self.addresses and _address(url) in self.addresses:
                return "opted out by address"
            if self.domains and any(domain in self.domains for domain in _domains(url)):
                return "opted out by domain"
        hashes = (*sha256, key.rpartition("/")[2])  # some data sets use hashes as keys
        if len(self.hashes) and any(_SHA256.fullmatch(each) and self._has(bytes.fromhex(each)) for each in hashes):
            return "opted out by hash"
        return None

    def holds(self, data: bytes) -> bool:
        """Return True if the SHA-256 of an image file's bytes is on the list."""
        return len(self.hashes) > 0 and self._has(hashlib.sha256(data).digest())

    def _has(self, digest: bytes) -> bool:
        wanted = np.array(digest, "S32")
        place = int(np.searchsorted(self.hashes, wanted))
        return place < len(self.hashes) and bool(self.hashes[place] == wanted)


def _sorted(hashes: Iterable[str]) -> np.ndarray:
    """Return the hashes as a sorted array (n) of 32 bytes each."""
    return np.sort(np.array([bytes.fromhex(each) for each in hashes], "S32"))


def _ends(key: str) -> list[str]:
    """Return all suffixes of a path: a/b/c -> a/b/c, b/c, c."""
    parts = key.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _address(url: str) -> str | None:
    """Normalize a URL to host, path and query; scheme and fragment are ignored. Returns None if it has no host."""
    try:
        split = urlsplit(url.strip())
    except ValueError:
        return None
    return f"{_site(split.hostname)}{split.path.rstrip('/')}?{split.query}" if split.hostname else None


def _domains(url: str) -> list[str]:
    """Return all domains of a URL: https://cdn.example.co.uk/a -> cdn.example.co.uk, example.co.uk, co.uk, uk."""
    try:
        labels = _site(urlsplit(url.strip()).hostname or "").split(".")
    except ValueError:
        return []
    return [".".join(labels[start:]) for start in range(len(labels))]


def _site(host: str) -> str:
    return host.lower().strip(".").removeprefix("www.")
