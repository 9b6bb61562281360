"""Options of evaluate.py: those of sampling, and the metrics, the model and the data."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dalle.ablation_config import AblationConfig
from dalle.bundled import checkpoint_folder
from dalle.sampling.sampling_config import DecodingConfig, RerankConfig, SamplingConfig

COUNTS = (
    *("captions", "candidates", "curve_captions", "curve_candidates", "pairs"),
    *("capability_captions", "samples", "sample_candidates"),
)
SAMPLING = (DecodingConfig, RerankConfig)


@dataclass(frozen=True)
class EvaluateConfig(RerankConfig, DecodingConfig):
    """Options of evaluate.py."""

    checkpoint: str = "outputs/demo"  # folder with dvae/, transformer/ and clip/, or a transformer or dVAE checkpoint
    data: Any = None  # data set to measure on; None: the held-out part of the training data
    # metrics to compute; also: sample_quality, capabilities, decoder, drawings, drawing_edits, bias
    metrics: list[str] = field(default_factory=lambda: ["reconstruction", "likelihood", "alignment"])
    captions: int = 256  # held-out captions that images are sampled for
    candidates: int = field(default=16, kw_only=True)
    batch_size: int | None = field(default=128, kw_only=True)
    # also measure the best of 1, 2, 4, ... candidates, as single images and as sets, on val: tables and plots
    rerank_curve: bool = False
    # folder of a CLIP that is not used for training or ranking, for the rerank curve on data without a judge;
    # None: predict caption words from efficientnet-lite0's features
    scorer: str | None = None
    curve_captions: int = 64  # captions of the rerank curve
    curve_candidates: int = 512  # images sampled for each of them
    pairs: int = 256  # held-out image-caption pairs for reconstruction and likelihood
    capability_captions: int = 24  # captions for each capability of a model of `blocks`
    samples: int = 2_000  # images sampled for sample_quality and blur_curve, one per caption; the paper samples 30,000
    sample_candidates: int = 1  # candidates for each of them; the best by `rerank` is kept; 512 in the paper
    # metrics=[bias] for data other than drawings: open captions with their variants, which CLIP tells apart:
    # ['a nurse | a woman who is a nurse | a man who is a nurse']
    bias_prompts: list[str] = field(default_factory=list)
    # also measure sample_quality with all images blurred by 0, 1, 2, 4 and 8: a table and a plot
    blur_curve: bool = False
    # feature network for sample_quality: efficientnet-lite0 | inception, as in FID
    features: str = "efficientnet-lite0"
    weights: str | None = None  # file with the weights of inception, which are not included
    dvae: str | None = None  # folder of the dVAE, if it is not in the checkpoint
    clip: str | None = None  # folder of the CLIP to rank with, if it is not in the checkpoint
    decoder: str | None = None  # folder of a diffusion decoder; None: the dVAE's decoder
    device: str = "auto"  # "auto": cuda if available, else cpu
    precision: str = "auto"  # number format of sampling: float32 | bfloat16; auto: bfloat16 on a GPU
    deterministic: bool = False  # bitwise reproducible results on a GPU, with slower kernels; on a CPU they always are
    ablation: AblationConfig | None = None  # the ablation that this evaluation is part of: configs/ablation
    out: str | None = None  # output file, .json; None: metrics.json in the checkpoint's folder, or in outputs/evaluate

    def __post_init__(self) -> None:
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        RerankConfig.__post_init__(self)
        DecodingConfig.__post_init__(self)
        if self.out is not None and Path(self.out).suffix != ".json":
            raise ValueError(f"out={self.out} must end in .json; the page and the image folder are named after it")

    def sampling(self, candidates: int) -> SamplingConfig:
        """Return the sampling settings with `candidates` images for each caption, all of which are kept, best first."""
        shared = {setting.name: getattr(self, setting.name) for base in SAMPLING for setting in fields(base)}
        return SamplingConfig(**{**shared, "candidates": candidates, "keep": candidates})

    @property
    def file(self) -> Path:
        """Path of the metrics file."""
        if self.out is not None:
            return Path(self.out).expanduser()
        folder = Path(self.checkpoint).expanduser()
        is_bundled = checkpoint_folder(self.checkpoint) != folder
        return Path("outputs/evaluate" if is_bundled else "", folder, "metrics.json")

    @property
    def page(self) -> Path:
        """Path of the Markdown page, by default metrics.md."""
        return self.file.with_suffix(".md")

    @property
    def folder(self) -> Path:
        """Folder for the page's images and for sampled images, by default metrics/."""
        return self.file.with_suffix("")
