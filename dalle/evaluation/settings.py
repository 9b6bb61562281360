"""Settings of evaluate.py: those of sampling, and what to measure of which model on which data."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dalle.ablation import AblationConfig
from dalle.sampling.sampling_config import DecodingConfig, RerankConfig, SamplingConfig

COUNTS = (
    *("captions", "candidates", "curve_captions", "curve_candidates", "pictures"),
    *("ability_captions", "samples", "sample_candidates"),
)
SAMPLING = (DecodingConfig, RerankConfig)


@dataclass(frozen=True)
class EvaluateConfig(RerankConfig, DecodingConfig):
    """Options of evaluate.py."""

    checkpoint: str = "outputs/demo"  # folder of dvae/, transformer/ and clip/, or a transformer's or dVAE's checkpoint
    data: Any = None  # pictures to measure on; None: those that the checkpoint was trained on, its held-out part
    # what to measure; also: quality, abilities
    metrics: list[str] = field(default_factory=lambda: ["reconstruction", "likelihood", "fit"])
    captions: int = 256  # held-out captions that pictures are drawn for
    candidates: int = field(default=16, kw_only=True)
    batch_size: int | None = field(default=128, kw_only=True)
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
        RerankConfig.__post_init__(self)
        DecodingConfig.__post_init__(self)
        if self.out is not None and Path(self.out).suffix != ".json":
            raise ValueError(f"out={self.out} is to be a .json file; a page and a folder of pictures get its name too")

    def sampling(self, candidates: int) -> SamplingConfig:
        """Settings to draw `candidates` pictures for each caption with, all of which are kept, best first."""
        shared = {each.name: getattr(self, each.name) for base in SAMPLING for each in fields(base)}
        return SamplingConfig(**{**shared, "candidates": candidates, "keep": candidates})

    @property
    def file(self) -> Path:
        """File that the metrics are written to."""
        return Path(self.out or Path(self.checkpoint) / "metrics.json")

    @property
    def page(self) -> Path:
        """The same for people: metrics.md."""
        return self.file.with_suffix(".md")

    @property
    def folder(self) -> Path:
        """Pictures for the page, and those that are drawn to be measured: metrics/."""
        return self.file.with_suffix("")
