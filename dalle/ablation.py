"""Ablation: one question of the paper as a sweep, with the result that the paper predicts."""

from dataclasses import dataclass, field
from typing import Any

SMALLEST = "laptop"  # the size used if none is given


@dataclass
class Expectation:
    """Expected result of one measure: a value that beats others, or is as good as they are."""

    measure: str = ""
    value: str = ""  # as written in tables
    should: str = "win"  # win: better than each of the others | tie: as good as each of them, or better
    over: list[str] = field(default_factory=list)  # the others, as written in tables; empty: all

    def __post_init__(self) -> None:
        if self.should not in ("win", "tie"):
            raise ValueError(f"should={self.should!r} is unknown; choose win or tie")


@dataclass
class AblationConfig:
    """Question, the paper's answer, and the runs and measures that test it."""

    name: str = ""  # name of its file in configs/ablation; its runs are in outputs/ablation/<name>
    letter: str = ""  # its letter in docs/ablations.md
    command: str = "train"  # command of a job: train or evaluate
    needs: str = ""  # options that its command needs beside its name
    question: str = ""
    claim: str = ""  # the paper's statement, with its section
    vary: dict[str, str] = field(default_factory=dict)  # settings that differ between jobs -> their names in tables
    # if one evaluation measures several values: their name, and the values; {} in measures is replaced by each
    along: str = ""
    points: list[str] = field(default_factory=list)
    paper: str = ""  # the paper's choice, as written in tables; empty: none
    measures: dict[str, str] = field(default_factory=dict)  # of held-out data, at the end -> low or high, the better
    expect: list[Expectation] = field(default_factory=list)
    power_law: str = ""  # the measure to fit against the number of parameters, if any
    finding: str = ""  # conclusion from the runs made here, beside the numbers

    def __post_init__(self) -> None:
        wrong = [better for better in self.measures.values() if better not in ("low", "high")]
        if wrong:
            raise ValueError(f"a measure is better low or high, not {wrong[0]!r}")


def values_of(config: Any, ablation: AblationConfig) -> dict[str, Any]:
    """Return the varied settings of this job: dotted names in `config` and their values."""
    return {key: _setting(config, key) for key in ablation.vary}


def label(values: dict[str, Any]) -> str:
    """Format the values of a job for tables: 0.0625, cosine."""
    return ", ".join(word(value) for value in values.values())


def word(value: Any) -> str:
    """Format one setting's value for tables."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return " ".join(map(word, value))
    return str(value)


def _setting(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config
