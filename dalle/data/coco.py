"""Data source in COCO's format: a folder of images and a JSON file with their captions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle.data.caption_rows import CaptionRow, group_by_image
from dalle.data.captions import as_strings, parse_json_object
from dalle.data.files import FilesConfig, RawRecord
from dalle.data.folder import ImageFolder

# pycocotools needs compiled mask code that is not used here, and fails at a broken entry; it reads JSON as well
UNREADABLE = "entries that cannot be read"


@dataclass
class CocoConfig(FilesConfig):
    """Images with captions in COCO's format.

    python train.py data=coco data.path=train2017 data.captions=captions_train2017.json ...

    data.path is the folder of the images, data.captions the JSON file that lists them (images, annotations). Images
    that it does not list are ignored.

    Splits: train and val by a hash of each image's path within the folder; data.validation_share of them are held
    out. To use COCO's own val2017, open it as a separate data set.
    Attribution: COCO's captions are CC BY 4.0 by the COCO Consortium; its images have the licences of their owners on
    Flickr, which the JSON file lists.
    """

    name: str = "coco"
    captions: str = ""  # JSON file, such as annotations/captions_train2017.json


class CocoSource(ImageFolder):
    """Images listed in `config.captions`, sorted by path. Other files in the folder are ignored.

    Raises ValueError if the folder or the file does not exist, or if the file is not in COCO's format.
    """

    config: CocoConfig

    def list_records(self) -> Iterator[RawRecord]:
        image_numbers = self.image_numbers()
        for named, record in group_by_image(self._rows(), image_numbers, self.warnings):
            if named:
                yield record

    def _rows(self) -> Iterator[CaptionRow]:
        content = self._read_json()
        files: dict[Any, str] = {}  # by id
        for image in content["images"]:
            match image:
                case {"id": int() | str() as number, "file_name": str() as file}:
                    files[number] = file
                    yield CaptionRow(file, (), as_strings([image.get("coco_url"), image.get("flickr_url")]))
                case _:
                    self.warnings.add(UNREADABLE, f"images: {image!r:.80}")
        for annotation in content["annotations"]:
            match annotation:
                case {"image_id": int() | str() as number, "caption": str() as caption} if number in files:
                    yield CaptionRow(files[number], (caption,))
                case _:
                    self.warnings.add(UNREADABLE, f"annotations: {annotation!r:.80}")

    def _read_json(self) -> dict[str, Any]:
        path = self.config.captions
        if not path:
            raise ValueError("data.captions is empty: set it to the JSON file of the captions")
        try:
            content = parse_json_object(Path(path).expanduser().read_bytes())
        except (OSError, ValueError) as problem:
            raise ValueError(f"data.captions={path} cannot be read: {problem}") from problem
        if not all(isinstance(content.get(name), list) for name in ("images", "annotations")):
            raise ValueError(f"data.captions={path} is not in COCO's format: it lacks the lists images and annotations")
        return content
