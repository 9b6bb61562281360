"""Rows of a list that names pictures of a folder, gathered into one record for each picture."""

import posixpath
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from dalle.data.captions import LONGEST, cleaned
from dalle.data.files import Found
from dalle.data.index import Lists, StringsBuilder
from dalle.data.tally import Tally


class Row(NamedTuple):
    """What a list says of one picture; several rows of one picture are several captions."""

    file: str  # its path within the folder
    captions: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()  # where it came from


def gathered(rows: Iterable[Row], pictures: Mapping[str, int], remarks: Tally) -> Iterator[tuple[bool, Found]]:
    """Each of `pictures` (path -> number, in order) with all that `rows` say of it, and whether they name it."""
    captions, captioned, urls, addressed = StringsBuilder(), array("q"), StringsBuilder(), array("q")
    named = np.zeros(len(pictures), bool)
    for row in rows:
        number = pictures.get(normal(row.file))
        if number is None:
            remarks.add("rows whose picture is not there", row.file)
            continue
        named[number] = True
        for caption in row.captions:
            captions.add(cleaned(caption)[: LONGEST + 1])  # too long ones are counted when the record is looked at
            captioned.append(number)
        for url in row.urls:
            urls.add(cleaned(url))
            addressed.append(number)
    captions_of = Lists.grouped(np.array(captioned, np.int64), captions.built(), len(pictures))
    urls_of = Lists.grouped(np.array(addressed, np.int64), urls.built(), len(pictures))
    for path, number in pictures.items():
        yield bool(named[number]), Found(path, captions_of[number], urls_of[number])


def normal(file: str) -> str:
    """A path as `pictures` have it: ./a\\b.png -> a/b.png. What leads out of the folder stays so, and is not in it."""
    return posixpath.normpath(file.strip().replace("\\", "/"))
