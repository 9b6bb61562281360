"""Evaluate a trained model on held-out data: python evaluate.py checkpoint=outputs/demo"""

from dalle import distributed
from dalle.atomic_files import check_writable
from dalle.cli.config import command
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.metrics import METRICS, selected_metrics
from dalle.evaluation.metrics_file import MetricsFile, back_up, read_or_create
from dalle.evaluation.metrics_page import write_page


@command("evaluate")
def main(config: EvaluateConfig) -> None:
    distributed.check_single_process("evaluate.py", "other metrics")
    names = selected_metrics(config)
    context = EvaluationContext.load(config)
    check_writable(config.file.parent)  # before metrics that take minutes
    copy = None
    for name in names:
        result = METRICS[name].build(context, config)
        # after each metric: results survive a later failure, and results that others wrote meanwhile are kept
        content = read_or_create(config.file, context.identity())
        if content is None:
            copy = back_up(config.file)
            print(f"{config.file} is of other models, other data or another version; it was copied to {copy}")
            content = MetricsFile(context.identity())
        elif copy is None and content.has_other_settings(name, result):
            copy = back_up(config.file)
            print(f"{name} was computed with other settings before; the earlier file was copied to {copy}")
        content = content.with_result(name, result, context.environment(), config.folder)
        content.write(config.file)
        write_page(content, config.page)
        for number, value in result.numbers.items():
            print(f"{number:40} {value:.4f}")
        for note in result.notes:
            print(note)
    print(f"written to {config.file} and {config.page}")
