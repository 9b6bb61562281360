"""Markdown page of a sweep: the question, the paper's answer, the runs' answer, and every number."""

from collections.abc import Sequence

from dalle.ablation_config import DEFAULT_SIZE
from dalle.ablations.run_results import RunResult
from dalle.ablations.significance import SweepMetric, overall_kind
from dalle.ablations.sweep import Sweep

INTRODUCTION = """The paper's questions at toy size, each as a sweep that one command runs: generated scenes of 32 and
64 pixels (`data=blocks`), 600 to 700 updates a run, minutes on a CPU (`size=laptop`). "Agrees" means that the
paper's choice did what its file in configs/ablation expects: it wins, or it is as good as the others or better.
Where the paper made no comparison, the expectation is ours. The paper's numbers are not reproduced. `size=small`,
`base` or `paper` repeats a sweep at a larger size. `report.py` writes this page."""

LEGEND = """A cell has the mean over seeds ± their standard deviation, and in brackets the difference from the paper's
choice, which is marked ◂; the best mean is bold. A star marks a significant difference: p < 0.05 in Student's t-test
on the runs of the two values. All other differences may be noise. "As good as" is said only where the test could have
found a difference of a tenth. The expected results are in each file of configs/ablation."""


def all_sweeps_page(sweeps: Sequence[Sweep], plots: dict[str, str]) -> str:
    """Return the page of all sweeps; `plots` are the plots' paths, relative to it, by the ablations' names."""
    lines = [
        "# Ablations",
        "",
        INTRODUCTION,
        "",
    ]
    lines += [LEGEND, "", "| | Question | Result | Runs |", "|---|---|---|---|"]
    for sweep in sweeps:
        ablation = sweep.ablation
        link = f"[{ablation.question}](#{ablation.letter}-{ablation.name.replace('_', '-')})"
        lines.append(f"| {ablation.letter} | {link} | {result_phrase(sweep)} | {run_count(sweep)} |")
    for sweep in sweeps:
        lines += ["", *section_lines(sweep, plots.get(sweep.ablation.name), sweep.ablation.finding)]
    return "\n".join(lines) + "\n"


def single_sweep_page(sweep: Sweep, plot: str | None) -> str:
    """Return the page of one sweep; `plot` is the path of its plot, relative to the page."""
    return "\n".join([*section_lines(sweep, plot), "", LEGEND]) + "\n"


def section_lines(sweep: Sweep, plot: str | None, finding: str = "") -> list[str]:
    """Return the lines of one sweep's section.

    plot: path of its plot. finding: conclusion from all runs, shown if all are finished, on the page of all sweeps.
    """
    ablation = sweep.ablation
    lines = [f"## {ablation.letter} {ablation.name.replace('_', ' ')}", "", f"**{ablation.question}**", ""]
    lines += [f"- Paper: {ablation.claim}", f"- Result: {result_phrase(sweep)}."]
    lines += [f"  - {result.sentence}" for result in sweep.claim_results]
    lines += [f"- Warning: {warning}" for warning in comparison_warnings(sweep)]
    if finding and len(sweep.finished) == len(sweep.results):
        lines.append(f"- Finding: {finding}")
    lines += [f"- Command: `{command_line(sweep)}`", f"- Cost: {cost_phrase(sweep)}", "", *table_lines(sweep)]
    if law := sweep.power_law():
        lines += ["", f"Fitted: `{ablation.power_law}` = {law.factor:.3g} · parameters^{law.exponent:.3f}"]
        lines[-1] += f" (R² of the logarithms: {law.r_squared:.2f})."
    if plot:
        lines += ["", f"![{ablation.name}]({plot})"]
    return [*lines, *_list_missing(sweep.results)]


def result_phrase(sweep: Sweep) -> str:
    """Return a phrase that says if the results agree with the paper's claim."""
    if not sweep.finished:
        return "no finished runs"
    if not sweep.claim_results:
        return "no claim to compare with"
    unfinished_note = "" if len(sweep.finished) == len(sweep.results) else " (some runs have not finished)"
    settings_note = " (runs differ in other settings)"
    return overall_kind(sweep.claim_results) + (settings_note if sweep.unintended_differences else unfinished_note)


def comparison_warnings(sweep: Sweep) -> list[str]:
    """Return warnings about the comparison: runs that differ in other settings, and missing metrics."""
    messages = [
        f"runs differ in a setting that the sweep does not vary: `{key}` is {' or '.join(values)}."
        for key, values in sweep.unintended_differences.items()
    ]
    for metric in sweep.metrics:
        num_runs, available = len(sweep.finished), sum(map(len, metric.runs.values()))
        if available < num_runs:
            messages.append(
                f"`{metric.title}` is missing, or was not finite, in {num_runs - available} of {num_runs} runs."
            )
    return messages


def run_count(sweep: Sweep) -> str:
    """Count finished and planned jobs, as "3 of 4"; a job with results for several values counts once."""
    finished, planned = ({result.folder for result in results} for results in (sweep.finished, sweep.results))
    return f"{len(finished)} of {len(planned)}"


def command_line(sweep: Sweep) -> str:
    """Return the command line that runs the sweep."""
    ablation = sweep.ablation
    size = [f"size={sweep.size}"] if sweep.size != DEFAULT_SIZE else []
    required = [ablation.required_options] if ablation.required_options else []
    return " ".join([f"python {ablation.command}.py -m +ablation={ablation.name}", *size, *required])


def cost_phrase(sweep: Sweep) -> str:
    """Return the number of runs, their seeds, updates and minutes, in words."""
    if not sweep.finished:
        return "no finished runs"
    steps = sorted({result.steps for result in sweep.finished})
    seeds = sorted({result.seed for result in sweep.finished})
    runs = len({result.folder for result in sweep.finished})
    phrase = f"{runs} run{'s' * (runs > 1)}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    if steps != [0]:
        phrase += f", {' or '.join(map(str, steps))} updates each, {sweep.minutes:.0f} minutes in total"
    return phrase


def table_lines(sweep: Sweep) -> list[str]:
    """Return the lines of a Markdown table with a row for each value and a column for each metric."""
    ablation = sweep.ablation
    headers = [ablation.axis or ", ".join(ablation.vary.values()), "runs"]
    arrows = {"lower": "↓", "higher": "↑"}
    headers += [f"{metric.title} {arrows[metric.better]}" for metric in sweep.metrics]
    lines = [f"| {' | '.join(headers)} |", f"|{'---|' * len(headers)}"]
    for value in sweep.values:
        runs = sum(result.label == value for result in sweep.finished)
        row_label = f"{value} ◂" if value == ablation.paper_value else value
        cells = [_cell(metric, value, ablation.paper_value) for metric in sweep.metrics]
        lines.append(f"| {' | '.join([row_label, str(runs), *cells])} |")
    return lines


def _cell(metric: SweepMetric, value: str, paper_value: str) -> str:
    if value not in metric.runs:
        return ""
    mean, std = metric.mean(value), metric.std(value)
    text = f"{mean:.4g}" if std is None else f"{mean:.4g} ± {float(f'{std:.1g}'):g}"
    text = f"**{text}**" if value == metric.best else text
    if value == paper_value or paper_value not in metric.runs:
        return text
    star = "*" if metric.compare(value, paper_value) else ""
    difference = mean - metric.mean(paper_value)
    difference = 0.0 if abs(difference) < 1e-9 * abs(mean) else float(f"{difference:.2g}")
    return f"{text} ({difference:+g}{star})"


def _list_missing(results: Sequence[RunResult]) -> list[str]:
    missing = {result.folder: result for result in results if result.missing_reason}
    if not missing:
        return []
    lines = [f"- {folder.name}: {result.missing_reason}" for folder, result in missing.items()]
    total = len({result.folder for result in results})
    return ["", f"Runs without results, {len(missing)} of {total}:", "", *lines]
