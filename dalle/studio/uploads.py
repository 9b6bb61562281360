"""Uploaded images: checked by their header, decoded and scaled down at once. The file itself is not kept or served."""

from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

from PIL import Image

from dalle.config_validation import config_from_json
from dalle.data.image_file import decode_image, without_warnings
from dalle.data.source import UnreadableRecord
from dalle.sampling.image_record import read_record
from dalle.sampling.sampling_config import UNRANKED, RerankWeights, SamplingConfig

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # detected by content; the declared type is ignored
MAX_UPLOAD_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
LONGEST_SIDE = 1024  # pixels of a kept image; models see far less
# settings of a PNG file's record that the page can draw with again
RECORDED = ("temperature", "top_k", "top_p", "min_p", "guidance", "rerank", "candidates", "keep")


# settings that it cannot, with the values that they have in its drawings
NOT_OFFERED = {
    "edit": None,
    "rerank_weights": asdict(RerankWeights()),
    "rerank_references": [],
    "decoder_steps": SamplingConfig().decoder_steps,
}


@dataclass(frozen=True)
class RecordedSettings:
    """Settings of the drawing in a PNG file of this project."""

    settings: dict[str, Any]  # as requests for a drawing name them
    left_out: list[str]  # names of those that the studio cannot draw with


def read_upload(data: bytes) -> tuple[Image.Image, RecordedSettings | None]:
    """Decode an uploaded file. Returns the image, and the settings of the drawing if this project made the file.

    Raises:
        ValueError: not an image in one of `FORMATS`, too many pixels, or broken.
    """
    if not data:
        raise ValueError("the upload is empty; send the bytes of an image file as the body")
    try:
        with without_warnings(), Image.open(BytesIO(data), formats=FORMATS) as opened:
            width, height, kind = opened.width, opened.height, opened.format
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"the image has more than {MAX_PIXELS // 10**6} million pixels; scale it down first"
        ) from error
    except Exception as error:  # Pillow raises almost any exception for broken files
        raise ValueError(f"the upload is not an image in any of the formats {', '.join(FORMATS)}") from error
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"the image has {width:,} x {height:,} pixels, more than {MAX_PIXELS // 10**6} million; scale it down first"
        )
    try:
        image = decode_image(data, "upload", LONGEST_SIDE, keep_transparency=True)  # on black in masks
    except UnreadableRecord as error:
        raise ValueError("the image is broken or incomplete; save it anew as PNG or JPEG") from error
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return image, recorded_settings(data) if kind == "PNG" else None


def recorded_settings(data: bytes) -> RecordedSettings | None:
    """Return the settings of the drawing in a PNG file that this project wrote; None for another file."""
    try:
        record = read_record(BytesIO(data))
    except ValueError:
        return None
    if not record:
        return None
    recorded = record["settings"]
    settings = {name: recorded[name] for name in RECORDED if name in recorded}
    left_out = [name for name, value in NOT_OFFERED.items() if recorded.get(name, value) != value]
    try:
        config_from_json(
            SamplingConfig, {name: value for name, value in settings.items() if value != UNRANKED}, "upload"
        )
    except ValueError:  # forged, or of another version
        left_out = [*settings, *left_out]
        settings = {}
    settings["decoder"] = recorded.get("decoder") is not None
    identity = {"caption": record["caption"], "seed": record["seed"], "candidate": record["candidate"]}
    return RecordedSettings({**identity, **settings}, left_out)
