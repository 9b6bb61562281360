"""What evaluate.py can be told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalle.ablation import AblationConfig
from dalle.sampling.rerank import USUAL, RerankWeights

COUNTS = (
    *("captions", "candidates", "curve_captions", "curve_candidates", "pictures"),
    *("ability_captions", "samples", "sample_candidates", "batch_size"),
)


@dataclass
class EvaluateConfig:
    """Options of evaluate.py."""

    checkpoint: str = "outputs/demo"  # folder of dvae/, transformer/ and clip/, or a transformer's or dVAE's checkpoint
    data: Any = None  # pictures to measure on; None: those that the checkpoint was trained on, its held-out part
    # what to measure; also: quality, abilities
    metrics: list[str] = field(default_factory=lambda: ["reconstruction", "likelihood", "fit"])
    captions: int = 256  # held-out captions that pictures are drawn for
    candidates: int = 16  # pictures drawn for each caption, of which `rerank` picks the best
    rerank: str = "clip"  # clip, as in the paper | image_likelihood | caption_likelihood | mixture
    rerank_weights: RerankWeights = USUAL  # of a mixture
    rerank_references: list[str] = field(default_factory=list)  # see sample.py; none: the captions themselves
    # also measure favourites of 1, 2, 4, ... candidates, one by one and as sets, on val: tables and plots
    rerank_curve: bool = False
    # folder of a CLIP that had no part in training or choosing, to measure the curve of data whose facts no judge
    # knows; None: words read off efficientnet-lite0
    scorer: str | None = None
    curve_captions: int = 64  # captions of the curve
    curve_candidates: int = 512  # pictures drawn for each of them, once
    pictures: int = 256  # held-out pairs for reconstruction and likelihood
    ability_captions: int = 24  # captions for each of the abilities that a model of `blocks` is asked for
    samples: int = 2_000  # pictures drawn for quality and blur_curve, a caption each; the paper draws 30,000
    sample_candidates: int = 1  # drawn for each of them, of which CLIP keeps the best; the paper's 512
    blur_curve: bool = False  # also measure quality with all pictures blurred by 0, 1, 2, 4 and 8: a table and a plot
    features: str = "efficientnet-lite0"  # that quality is measured in: efficientnet-lite0 | inception, as FID is
    weights: str | None = None  # file of inception's weights, which is not shipped
    temperature: float = 1.0  # that pictures are drawn at, as in the paper
    guidance: float | None = None  # that they are drawn with; None: the checkpoint's own, 1 (none) in the paper
    seed: int = 0  # of all draws
    batch_size: int = 128  # pictures decoded at a time; changes speed and memory only
    dvae: str | None = None  # folder of the dVAE, where it is not in the checkpoint
    clip: str | None = None  # folder of the CLIP to rank with, where it is not in the checkpoint
    device: str = "auto"  # "auto": cuda where there is one, else cpu
    precision: str = "auto"  # number format of the drawing: float32 | bfloat16; auto: bfloat16 on a GPU
    deterministic: bool = False  # on a GPU the same bits each time, by slower kernels; a CPU's are the same anyway
    ablation: AblationConfig | None = None  # the question that this is to answer: configs/ablation
    out: str | None = None  # the file to write, .json; None: metrics.json in the checkpoint's folder

    def __post_init__(self) -> None:
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.out is not None and Path(self.out).suffix != ".json":
            raise ValueError(f"out={self.out} is to be a .json file; a page and a folder of pictures get its name too")

    @property
    def file(self) -> Path:
        """Where the metrics go."""
        return Path(self.out or Path(self.checkpoint) / "metrics.json")

    @property
    def page(self) -> Path:
        """The same for people: metrics.md."""
        return self.file.with_suffix(".md")

    @property
    def folder(self) -> Path:
        """Pictures for the page, and those that are drawn to be measured: metrics/."""
        return self.file.with_suffix("")
