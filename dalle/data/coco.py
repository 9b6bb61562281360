"""Pictures captioned as in COCO: a folder of pictures, and a JSON file with their captions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle.data.captions import object_of, texts_of
from dalle.data.files import FilesConfig, Found
from dalle.data.folder import PictureFolder
from dalle.data.rows import Row, gathered

# pycocotools, compiled for masks that nobody needs here, reads captions with json too, and stops at a broken entry
UNREADABLE = "entries that cannot be read"


@dataclass
class CocoConfig(FilesConfig):
    """Pictures captioned as in COCO.

    python train.py data=coco data.path=train2017 data.captions=captions_train2017.json ...

    data.path is the folder of the pictures, data.captions the JSON file that names them (images, annotations). Pictures
    that it does not name are no part of the set.

    Splits: train and val by a hash of each picture's path within the folder; data.validation_share of them are held
    out. COCO's own val2017 is a data set by itself.
    Attribution: COCO's captions are CC BY 4.0 by the COCO Consortium; its pictures have the licences of their owners on
    Flickr, which the JSON file lists.
    """

    name: str = "coco"
    captions: str = ""  # JSON file, such as annotations/captions_train2017.json


class CocoSource(PictureFolder):
    """The pictures that `config.captions` names, sorted by path; what else the folder holds is no part of the set.

    Raises ValueError when there is no such folder or file, or the file is not as COCO's.
    """

    config: CocoConfig

    def found(self) -> Iterator[Found]:
        pictures = self.pictures()
        for named, record in gathered(self._rows(), pictures, self.remarks):
            if named:
                yield record

    def _rows(self) -> Iterator[Row]:
        told = self._told()
        files: dict[Any, str] = {}  # by id
        for image in told["images"]:
            match image:
                case {"id": int() | str() as number, "file_name": str() as file}:
                    files[number] = file
                    yield Row(file, (), texts_of([image.get("coco_url"), image.get("flickr_url")]))
                case _:
                    self.remarks.add(UNREADABLE, f"images: {image!r:.80}")
        for annotation in told["annotations"]:
            match annotation:
                case {"image_id": int() | str() as number, "caption": str() as caption} if number in files:
                    yield Row(files[number], (caption,))
                case _:
                    self.remarks.add(UNREADABLE, f"annotations: {annotation!r:.80}")

    def _told(self) -> dict[str, Any]:
        path = self.config.captions
        if not path:
            raise ValueError("data.captions is empty: set it to the JSON file of the captions")
        try:
            told = object_of(Path(path).expanduser().read_bytes())
        except (OSError, ValueError) as problem:
            raise ValueError(f"data.captions={path} cannot be read: {problem}") from problem
        if not all(isinstance(told.get(kind), list) for kind in ("images", "annotations")):
            raise ValueError(
                f"data.captions={path} is not as COCO's captions: it lacks the lists images and annotations"
            )
        return told
