"""Measure a trained model on data it has not seen: python evaluate.py checkpoint=outputs/demo"""

from collections.abc import Callable

from dalle.cli.config import verb
from dalle.evaluation.measured import Measured
from dalle.evaluation.metrics import abilities, blur_curve, fit, likelihood, quality, reconstruction, rerank_curve
from dalle.evaluation.page import write_page
from dalle.evaluation.record import Record, begin, set_aside
from dalle.evaluation.settings import EvaluateConfig
from dalle.evaluation.subject import Subject

METRICS: dict[str, Callable[[Subject, EvaluateConfig], Measured]] = {
    "reconstruction": reconstruction.measure,
    "likelihood": likelihood.measure,
    "fit": fit.measure,
    "quality": quality.measure,
    "abilities": abilities.measure,
}
CURVES: dict[str, Callable[[Subject, EvaluateConfig], Measured]] = {
    "blur_curve": blur_curve.measure,
    "rerank_curve": rerank_curve.measure,
}


@verb("evaluate")
def main(config: EvaluateConfig) -> None:
    if strangers := [name for name in config.metrics if name not in METRICS]:
        raise ValueError(f"there is no part {strangers[0]!r} of metrics=[...]; choose among {', '.join(METRICS)}")
    parts = {name: METRICS[name] for name in config.metrics}
    parts |= {name: measure for name, measure in CURVES.items() if getattr(config, name)}
    if not parts:
        raise ValueError("metrics=[] leaves nothing to measure; name some, or set blur_curve=true or rerank_curve=true")
    subject = Subject.load(config)
    aside = None
    for name, measure in parts.items():
        measured = measure(subject, config)
        # as each part ends: what was measured outlives what fails later, and what others wrote meanwhile stays
        record = begin(config.file, subject.described())
        if record is None:
            aside = set_aside(config.file)
            print(f"{config.file} is of other models or data, or another version; it is kept as {aside}")
            record = Record(subject.described())
        elif aside is None and record.measured_otherwise(name, measured):
            aside = set_aside(config.file)
            print(f"{name} was measured with other settings before; that record is kept as {aside}")
        record = record.having(name, measured, subject.environment(), config.folder)
        record.write(config.file)
        write_page(record, config.page)
        for number, value in measured.numbers.items():
            print(f"{number:40} {value:.4f}")
        for note in measured.notes:
            print(note)
    print(f"written to {config.file} and {config.page}")


if __name__ == "__main__":
    main()
