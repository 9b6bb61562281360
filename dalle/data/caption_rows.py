"""Caption rows: group the rows of a caption table into one record for each image of a folder."""

import posixpath
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from dalle.data.captions import MAX_CAPTION_CHARACTERS, clean_caption
from dalle.data.files import RawRecord
from dalle.data.index import RaggedStrings, StringArrayBuilder
from dalle.data.skip_counter import SkipCounter


class CaptionRow(NamedTuple):
    """One row of a caption table: an image file, and captions and URLs of it. An image may have several rows."""

    file: str  # path of the image within the folder
    captions: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()  # source addresses of the image


def group_by_image(
    rows: Iterable[CaptionRow], image_numbers: Mapping[str, int], warnings: SkipCounter
) -> Iterator[tuple[bool, RawRecord]]:
    """Yield (is named in `rows`, record) for each of `image_numbers`, a dict from path to number in order.

    A record has the captions and addresses of all its rows. Rows of missing images are counted in `warnings`.
    """
    captions, caption_owners, urls, url_owners = StringArrayBuilder(), array("q"), StringArrayBuilder(), array("q")
    is_named = np.zeros(len(image_numbers), bool)
    for row in rows:
        number = image_numbers.get(normalize_path(row.file))
        if number is None:
            warnings.add("rows whose image does not exist", row.file)
            continue
        is_named[number] = True
        for caption in row.captions:
            captions.add(
                clean_caption(caption)[: MAX_CAPTION_CHARACTERS + 1]
            )  # one more than allowed, so that long ones are counted later
            caption_owners.append(number)
        for url in row.urls:
            urls.add(clean_caption(url))
            url_owners.append(number)
    captions_of = RaggedStrings.from_owners(np.array(caption_owners, np.int64), captions.build(), len(image_numbers))
    urls_of = RaggedStrings.from_owners(np.array(url_owners, np.int64), urls.build(), len(image_numbers))
    for path, number in image_numbers.items():
        yield bool(is_named[number]), RawRecord(path, captions_of[number], urls_of[number])


def normalize_path(file: str) -> str:
    """Normalize a path: ./a\\b.png -> a/b.png. A path out of the folder keeps its "..", so it matches no image."""
    return posixpath.normpath(file.strip().replace("\\", "/"))
