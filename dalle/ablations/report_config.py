"""Options of report.py."""

from dataclasses import dataclass, field


@dataclass
class ReportConfig:
    """Options of report.py. By default it writes all sweeps under `folder` to one page."""

    sweep: str | None = None  # folder of one sweep, to which report.md and a plot are written
    runs: list[str] = field(default_factory=list)  # run folders to compare instead: runs=a,b
    folder: str = "outputs/ablation"  # folder of all sweeps
    # output file; None: <folder>/report.md, <sweep>/report.md, outputs/comparison/report.md
    out: str | None = None
    captions: int = 4  # held-out captions for the samples of compared transformers
    candidates: int = 4  # images per caption and transformer
    seed: int = 0  # seed of these samples
    device: str = "auto"  # device to sample on: auto | cpu | cuda
