"""An ablation: one question of the paper as a sweep, and what the paper leads one to expect of it."""

from dataclasses import dataclass, field
from typing import Any

SMALLEST = "laptop"  # the size that is meant where none is named


@dataclass
class Expectation:
    """What the paper says of one measure: which value does better in it than which others, or just as well."""

    measure: str = ""
    value: str = ""  # as tables call it
    should: str = "win"  # win: be better than each of the others | tie: be as good as each of them, or better
    over: list[str] = field(default_factory=list)  # the others, as tables call them; none named: all

    def __post_init__(self) -> None:
        if self.should not in ("win", "tie"):
            raise ValueError(f"should={self.should!r} is unknown; choose win or tie")


@dataclass
class AblationConfig:
    """A question, its answer in the paper, and how runs decide it."""

    name: str = ""  # of its file in configs/ablation; its runs lie in outputs/ablation/<name>
    letter: str = ""  # its place in docs/ablations.md
    verb: str = "train"  # what a job is: train, or evaluate
    needs: str = ""  # what its command has to be given beside its name
    question: str = ""
    claim: str = ""  # what the paper says, with its section
    vary: dict[str, str] = field(default_factory=dict)  # settings that set its jobs apart -> their names in tables
    # where one evaluation measures many values: what they are called, and the values; {} stands for them in measures
    along: str = ""
    points: list[str] = field(default_factory=list)
    paper: str = ""  # the paper's choice, as tables call it; none: it has none
    measures: dict[str, str] = field(default_factory=dict)  # of held-out data, at the end -> low or high, the better
    expect: list[Expectation] = field(default_factory=list)
    power_law: str = ""  # the measure that is fitted against the number of parameters, where there is one
    finding: str = ""  # what people read out of the runs made here, beside the numbers

    def __post_init__(self) -> None:
        wrong = [better for better in self.measures.values() if better not in ("low", "high")]
        if wrong:
            raise ValueError(f"a measure is better low or high, not {wrong[0]!r}")


def values_of(config: Any, ablation: AblationConfig) -> dict[str, Any]:
    """What sets this job apart from the others of its sweep: dotted settings of `config` and their values."""
    return {key: _setting(config, key) for key in ablation.vary}


def label(values: dict[str, Any]) -> str:
    """The values as tables call them: 0.0625, cosine."""
    return ", ".join(word(value) for value in values.values())


def word(value: Any) -> str:
    """A setting's value as tables call it."""
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
