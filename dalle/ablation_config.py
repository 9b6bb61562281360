"""Config of an ablation: one question of the paper as a sweep, with the result that the paper predicts."""

from dataclasses import dataclass, field
from typing import Any

DEFAULT_SIZE = "laptop"  # the size used if none is given


@dataclass
class Expectation:
    """Expected result for one metric: a value that beats others, or is as good as they are."""

    metric: str = ""
    value: str = ""  # as written in tables
    should: str = "win"  # win: better than each baseline | tie: as good as each baseline, or better
    baselines: list[str] = field(default_factory=list)  # the values to compare with, as in tables; empty: all others

    def __post_init__(self) -> None:
        if self.should not in ("win", "tie"):
            raise ValueError(f"should={self.should!r} is unknown; choose win or tie")


@dataclass
class AblationConfig:
    """Ablation: a question, the paper's answer, and the runs and metrics that test it."""

    name: str = ""  # name of its file in configs/ablation; its runs are in outputs/ablation/<name>
    letter: str = ""  # its letter in docs/ablations.md
    command: str = "train"  # command of a job: train or evaluate
    required_options: str = ""  # options that its command needs beside its name
    question: str = ""
    claim: str = ""  # the paper's statement, with its section
    vary: dict[str, str] = field(default_factory=dict)  # settings that differ between jobs -> their names in tables
    # if one evaluation has results for several values: their name, and the values; {} in metrics is replaced by each
    axis: str = ""
    axis_values: list[str] = field(default_factory=list)
    paper_value: str = ""  # the paper's choice, as written in tables; empty: none
    metrics: dict[str, str] = field(default_factory=dict)  # of held-out data, at the end -> lower or higher is better
    expect: list[Expectation] = field(default_factory=list)
    power_law: str = ""  # the metric to fit against the number of parameters, if any
    finding: str = ""  # conclusion from the runs made here, beside the numbers

    def __post_init__(self) -> None:
        unknown = [better for better in self.metrics.values() if better not in ("lower", "higher")]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is unknown for a metric; choose lower or higher, the better direction")


def varied_values(config: Any, ablation: AblationConfig) -> dict[str, Any]:
    """Return the varied settings of this job: dotted names in `config` and their values."""
    return {key: _setting(config, key) for key in ablation.vary}


def format_values(values: dict[str, Any]) -> str:
    """Format the values of a job for tables, for example "0.0625, cosine"."""
    return ", ".join(format_value(value) for value in values.values())


def format_value(value: Any) -> str:
    """Format the value of one setting as text for tables: True gives "yes", 0.0625 "0.0625", a list "1 2"."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return " ".join(map(format_value, value))
    return str(value)


def _setting(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config
