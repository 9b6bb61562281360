"""What sample.py can be told."""

from dataclasses import dataclass, field


@dataclass
class SampleConfig:
    """Options of sample.py; what they draw by default is one caption's best 8 of 64."""

    checkpoint: str = "outputs/demo"  # folder of dvae/, transformer/ and clip/, or a transformer's checkpoint
    caption: str = ""  # what to draw
    captions: list[str] = field(default_factory=list)  # several to draw, instead of `caption`
    candidates: int = 64  # pictures drawn for each caption; the paper draws 512
    keep: int = 8  # pictures kept, the best by CLIP score
    temperature: float = 1.0  # divides the logits; 1 is the paper's, 0 takes the most probable tokens
    top_k: int | None = None  # draw among this many most probable tokens only; the paper does not filter
    top_p: float | None = None  # draw among the most probable tokens that add up to this; the paper does not
    seed: int = 0  # candidate i depends on (seed, i) alone
    first: int = 0  # number of the first candidate; 64 goes on where the first 64 ended
    batch_size: int = 64  # pictures decoded at a time; changes speed and memory only
    dvae: str | None = None  # folder of the dVAE, where it is not in the checkpoint or where that says
    clip: str | None = None  # folder of the CLIP to rank with, where it is not in the checkpoint
    device: str = "auto"  # "auto": cuda where there is one, else cpu
    out: str | None = None  # folder to write; None: one of its own under outputs/samples/
