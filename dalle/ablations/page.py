"""Markdown page of a sweep: the question, the paper's answer, the runs' answer, and every number."""

from collections.abc import Sequence

from dalle.ablation import SMALLEST
from dalle.ablations.outcomes import Outcome
from dalle.ablations.sweep import Sweep
from dalle.ablations.verdict import Measure, together

HOW = """Cells are mean ± standard deviation between seeds, and the difference from the paper's choice, which is marked
◂; the best mean is bold. A difference counts, and has a star, if chance alone would make so large a one in less than a
twentieth of cases (Student's t on the spread between the seeds of the two values); everything else is noise. "As good
as" is said only where a difference of a tenth would have counted. Which value the paper would have win in which measure
stands in each file of configs/ablation."""


def all_sweeps(sweeps: Sequence[Sweep], pictures: dict[str, str]) -> str:
    """Page of all sweeps; `pictures` are the plots' paths, relative to it, by the ablations' names."""
    lines = [
        "# Ablations",
        "",
        "The paper's questions, each as a sweep that one command runs. `report.py` writes this page.",
        "",
    ]
    lines += [HOW, "", "| | Question | The runs' answer | Runs |", "|---|---|---|---|"]
    for sweep in sweeps:
        about = sweep.ablation
        link = f"[{about.question}](#{about.letter}-{about.name.replace('_', '-')})"
        lines.append(f"| {about.letter} | {link} | {answer(sweep)} | {counted(sweep)} |")
    for sweep in sweeps:
        lines += ["", *section(sweep, pictures.get(sweep.ablation.name), sweep.ablation.finding)]
    return "\n".join(lines) + "\n"


def one_sweep(sweep: Sweep, picture: str | None) -> str:
    """Page of one sweep."""
    return "\n".join([*section(sweep, picture), "", HOW]) + "\n"


def section(sweep: Sweep, picture: str | None, finding: str = "") -> list[str]:
    """Section of one sweep. finding: conclusion from these runs; shown on the page of all sweeps only."""
    about = sweep.ablation
    lines = [f"## {about.letter} {about.name.replace('_', ' ')}", "", f"**{about.question}**", ""]
    lines += [f"- Paper: {about.claim}", f"- Runs: {answer(sweep)}."]
    lines += [f"  - {each.sentence}" for each in sweep.verdicts]
    lines += [f"- Beware: {each}" for each in warnings(sweep)]
    if finding:
        lines.append(f"- Found: {finding}")
    lines += [f"- Command: `{command(sweep)}`", f"- Cost: {cost(sweep)}", "", *table(sweep)]
    if law := sweep.power_law():
        lines += ["", f"Fitted: `{about.power_law}` = {law.factor:.3g} · parameters^{law.exponent:.3f}, which explains"]
        lines[-1] += f" {law.explained:.0%} of the variance of its logarithm."
    if picture:
        lines += ["", f"![{about.name}]({picture})"]
    return [*lines, *_not_finished(sweep.outcomes)]


def answer(sweep: Sweep) -> str:
    """Summarise if the results agree with the paper's claim."""
    if not sweep.finished:
        return "no finished runs"
    if not sweep.verdicts:
        return "nothing in the paper to compare with"
    partial = "" if len(sweep.finished) == len(sweep.outcomes) else " (not all runs have finished)"
    return together(sweep.verdicts) + (" (runs are not alike)" if sweep.unlike else partial)


def warnings(sweep: Sweep) -> list[str]:
    """Warnings about the comparison: runs that differ in other settings, and missing measures."""
    found = [
        f"runs differ in more than what is compared: `{key}` is {' or '.join(values)}."
        for key, values in sweep.unlike.items()
    ]
    for measure in sweep.measures:
        runs, having = len(sweep.finished), sum(map(len, measure.runs.values()))
        if 0 < having < runs:
            found.append(f"`{measure.title}` is missing, or was not finite, in {runs - having} of {runs} runs.")
    return found


def counted(sweep: Sweep) -> str:
    """Count finished and planned jobs, as "3 of 4"; a job that measures several points counts once."""
    done, asked = ({each.folder for each in outcomes} for outcomes in (sweep.finished, sweep.outcomes))
    return f"{len(done)} of {len(asked)}"


def command(sweep: Sweep) -> str:
    about = sweep.ablation
    more = [f"size={sweep.size}"] * (sweep.size != SMALLEST) + [about.needs] * bool(about.needs)
    return " ".join([f"python {about.command}.py -m +ablation={about.name}", *more])


def cost(sweep: Sweep) -> str:
    if not sweep.finished:
        return "nothing was measured"
    steps = sorted({each.steps for each in sweep.finished})
    seeds = sorted({each.seed for each in sweep.finished})
    runs = len({each.folder for each in sweep.finished})
    words = f"{runs} run{'s' * (runs > 1)}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    if steps != [0]:
        words += f", {' or '.join(map(str, steps))} updates each, {sweep.minutes:.0f} minutes together"
    return words


def table(sweep: Sweep) -> list[str]:
    about = sweep.ablation
    heads = [*([", ".join(about.vary.values())] if not about.along else [about.along]), "runs"]
    arrows = {"low": "↓", "high": "↑"}
    heads += [f"{each.title} {arrows[each.better]}" for each in sweep.measures]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for value in sweep.values:
        runs = sum(each.label == value for each in sweep.finished)
        marked = f"{value} ◂" if value == about.paper else value
        cells = [_cell(each, value, about.paper) for each in sweep.measures]
        lines.append(f"| {' | '.join([marked, str(runs), *cells])} |")
    return lines


def _cell(measure: Measure, value: str, paper: str) -> str:
    if value not in measure.runs:
        return ""
    mean, spread = measure.mean(value), measure.spread(value)
    words = f"{mean:.4g}" if spread is None else f"{mean:.4g} ± {float(f'{spread:.1g}'):g}"
    words = f"**{words}**" if value == measure.best else words
    if value == paper or paper not in measure.runs:
        return words
    star = "*" if measure.against(value, paper) else ""
    ahead = mean - measure.mean(paper)
    ahead = 0.0 if abs(ahead) < 1e-9 * abs(mean) else float(f"{ahead:.2g}")
    return f"{words} ({ahead:+g}{star})"


def _not_finished(outcomes: Sequence[Outcome]) -> list[str]:
    missing = {each.folder: each for each in outcomes if each.missing}
    if not missing:
        return []
    told = [f"- {path.name}: {each.missing}" for path, each in missing.items()]
    return ["", f"Without results, {len(missing)} of {len({each.folder for each in outcomes})}:", "", *told]
