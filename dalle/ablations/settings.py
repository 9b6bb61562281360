"""What report.py can be told."""

from dataclasses import dataclass, field


@dataclass
class ReportConfig:
    """Options of report.py; without any, it gathers the sweeps under `folder` into docs/ablations.md."""

    sweep: str | None = None  # folder of one sweep, which gets a report.md and its plot
    runs: list[str] = field(default_factory=list)  # run folders to set side by side instead: runs=a,b
    folder: str = "outputs/ablation"  # where all sweeps lie
    # the file to write; None: docs/ablations.md, <sweep>/report.md, outputs/comparison/report.md
    out: str | None = None
    captions: int = 4  # held-out captions that transformers set side by side draw
    candidates: int = 4  # pictures that each draws for each caption
    seed: int = 0  # of those pictures
    device: str = "auto"  # that they are drawn on: auto | cpu | cuda
