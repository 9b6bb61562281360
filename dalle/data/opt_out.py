"""Opt-out list: keys, URLs, domains and hashes of images that data sources of files leave out.

A text file with one entry per line; lines that begin with # are comments:

    photos/portrait.jpg                  a record's key, or the last path components of one
    https://example.com/me.jpg           the URL of an image; https:// may be left out
    example.org                          all URLs of a domain and its sub-domains; also as https://example.org/
    9f86d081884c7d659a2feaa0c55ad015...  the SHA-256 of an image file, 64 hexadecimal digits
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class OptOut:
    """Parsed opt-out list, which states the records to leave out; empty by default.

    Keys, URLs and hashes in metadata are checked when a source is opened. Hashes of image files are checked when the
    files are read. Hashes are stored in an array, which DataLoader workers share. `unmatched` lists the other entries
    that no record has matched so far.
    """

    def __init__(self, lines: Iterable[str] = ()):
        entries = {entry for line in lines if (entry := line.strip()) and not entry.startswith("#")}
        self.hashes = _sorted(entry for entry in entries if _SHA256.fullmatch(entry))
        self._entries = frozenset(entry for entry in entries if not _SHA256.fullmatch(entry))
        self._matched: set[str] = set()  # names, addresses and domains that a record had
        self.names = frozenset(entry for entry in self._entries if "://" not in entry)
        self.addresses = frozenset(address for entry in self._entries if (address := _listed_address(entry)))
        self.domains = frozenset(domain for entry in self._entries if (domain := _listed_domain(entry)))

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
        return bool(self._entries or len(self.hashes))

    def reason(self, key: str, urls: Iterable[str] = (), sha256: Iterable[str] = ()) -> str | None:
        """Return the reason to leave out a record, by its key and metadata, or None to keep it."""
        reasons = list(self._reasons(key, urls, sha256))  # all of them, so that every entry that matches is known
        return reasons[0] if reasons else None

    def unmatched(self) -> list[str]:
        """Return the entries, without hashes, that matched no record so far, sorted."""
        return sorted(
            entry
            for entry in self._entries
            if self._matched.isdisjoint((entry, _listed_address(entry), _listed_domain(entry)))
        )

    def _reasons(self, key: str, urls: Iterable[str], sha256: Iterable[str]) -> Iterator[str]:
        if self.names and (matches := self.names.intersection(_path_suffixes(key))):
            self._matched |= matches
            yield "opted out by key"
        for url in urls:
            if self.addresses and (address := _address(url)) in self.addresses:
                self._matched.add(address)
                yield "opted out by address"
            if self.domains and (matches := self.domains.intersection(_domains(url))):
                self._matched |= matches
                yield "opted out by domain"
        hashes = (*sha256, key.rpartition("/")[2])  # some data sets use hashes as keys
        if len(self.hashes) and any(
            _SHA256.fullmatch(digest) and self._has_hash(bytes.fromhex(digest)) for digest in hashes
        ):
            yield "opted out by hash"

    def lists_file(self, data: bytes) -> bool:
        """Return True if the SHA-256 of an image file's bytes is on the list."""
        return len(self.hashes) > 0 and self._has_hash(hashlib.sha256(data).digest())

    def _has_hash(self, digest: bytes) -> bool:
        target = np.array(digest, "S32")
        position = int(np.searchsorted(self.hashes, target))
        return position < len(self.hashes) and bool(self.hashes[position] == target)


def _sorted(hashes: Iterable[str]) -> np.ndarray:
    """Return the hashes as a sorted array (n) of 32 bytes each."""
    return np.sort(np.array([bytes.fromhex(digest) for digest in hashes], "S32"))


def _path_suffixes(key: str) -> list[str]:
    """Return all suffixes of a path: a/b/c -> a/b/c, b/c, c."""
    parts = key.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _listed_address(entry: str) -> str | None:
    """Return the normalized URL that an entry names: with a scheme, or as a host with a dot and a path, or None."""
    host, _, path = entry.partition("/")
    if "://" not in entry and not ("." in host and path):
        return None
    return _address(entry)


def _listed_domain(entry: str) -> str | None:
    """Return the domain that an entry names: a host alone, with or without scheme and slash. None for others."""
    host = entry.partition("://")[2] if "://" in entry else entry
    host = host.removesuffix("/")
    return (_normalized_host(host) or None) if host and not set(host) & set("/?#") else None


def _address(url: str) -> str | None:
    """Normalize a URL to host, path and query; scheme and fragment are ignored. Returns None if it has no host."""
    try:
        split = urlsplit(_with_scheme(url))
    except ValueError:
        return None
    return (
        f"{_normalized_host(split.hostname)}{unquote(split.path).rstrip('/')}?{split.query}" if split.hostname else None
    )


def _domains(url: str) -> list[str]:
    """Return all domains of a URL: https://cdn.example.co.uk/a -> cdn.example.co.uk, example.co.uk, co.uk, uk."""
    try:
        labels = _normalized_host(urlsplit(_with_scheme(url)).hostname or "").split(".")
    except ValueError:
        return []
    return [".".join(labels[start:]) for start in range(len(labels))]


def _with_scheme(url: str) -> str:
    """Return a URL that urlsplit finds a host in, if it has one: metadata may lack the scheme."""
    url = url.strip()
    return url if "://" in url or url.startswith("//") else f"//{url}"


def _normalized_host(host: str) -> str:
    return host.lower().strip(".").removeprefix("www.")
