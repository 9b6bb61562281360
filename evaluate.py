"""Evaluate a trained model on held-out data: python evaluate.py checkpoint=outputs/demo"""

from dalle.cli.config import command
from dalle.evaluation.metrics import METRICS, asked_for
from dalle.evaluation.page import write_page
from dalle.evaluation.record import Record, begin, set_aside
from dalle.evaluation.settings import EvaluateConfig
from dalle.evaluation.subject import Subject


@command("evaluate")
def main(config: EvaluateConfig) -> None:
    names = asked_for(config)
    subject = Subject.load(config)
    aside = None
    for name in names:
        measured = METRICS[name].build(subject, config)
        # after each metric: results survive a later failure, and results that others wrote meanwhile are kept
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
