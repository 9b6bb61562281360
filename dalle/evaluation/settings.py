"""What evaluate.py can be told."""

from dataclasses import dataclass


@dataclass
class EvaluateConfig:
    """Options of evaluate.py."""

    checkpoint: str = "outputs/demo"  # folder of dvae/, transformer/ and clip/, or a transformer's checkpoint
    captions: int = 256  # held-out captions that pictures are drawn for
    candidates: int = 16  # pictures drawn for each caption, of which CLIP picks the best
    pictures: int = 256  # held-out pictures that the dVAE reconstructs
    seed: int = 0
    batch_size: int = 128  # pictures decoded at a time; changes speed and memory only
    dvae: str | None = None  # folder of the dVAE, where it is not in the checkpoint
    clip: str | None = None  # folder of the CLIP to rank with, where it is not in the checkpoint
    device: str = "auto"  # "auto": cuda where there is one, else cpu
    out: str | None = None  # the file to write; None: metrics.json in the checkpoint's folder
