"""Report finished runs as tables and plots: python report.py sweep=outputs/ablation/kl_weight, or compare runs=a,b"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dalle import distributed
from dalle.ablation_config import DEFAULT_SIZE, format_values, varied_values
from dalle.ablations import comparison, sweep_page
from dalle.ablations.report_config import ReportConfig
from dalle.ablations.run_results import PlannedRun
from dalle.ablations.sweep import Sweep
from dalle.ablations.sweep_plots import plot_runs, plot_sweep
from dalle.cli.config import command
from dalle.cli.config_groups import options
from dalle.cli.sweeps import ablation_jobs, ablations
from dalle.cli.train_config import EXPERIMENT_SIZES
from dalle.config_validation import flatten
from dalle.optional_dependencies import check_installed
from dalle.training.job import Job


@command("report")
def main(config: ReportConfig) -> None:
    check_installed("eval", "report.py", "matplotlib", "scipy")
    if config.sweep is not None and config.runs:
        raise ValueError("set either sweep=<folder> to report one sweep or runs=a,b to compare runs, not both")
    if config.runs:
        report_runs(config)
    elif config.sweep is not None:
        report_sweep(Path(config.sweep), config.out)
    else:
        report_all(Path(config.folder), Path(config.out or f"{config.folder}/report.md"))


def report_all(folder: Path, out: Path) -> None:
    """Write the page `out` of all sweeps in `folder` of the smallest size; those not run are listed without results.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"folder={folder} does not exist; sweeps are in outputs/ablation by default")
    sweeps = sorted((read_sweep(folder / name) for name in ablations()), key=lambda sweep: sweep.ablation.letter)
    plots = {}
    for sweep in sweeps:
        name = sweep.ablation.name
        if sweep.finished:
            plots[name] = f"{out.stem}/{name}.png"
            plot_sweep(sweep, out.parent / plots[name])
        print(f"{sweep.ablation.letter} {name:16} {sweep_page.run_count(sweep):>9} {sweep_page.result_phrase(sweep)}")
    write_page(out, sweep_page.all_sweeps_page(sweeps, plots))


def report_sweep(folder: Path, out: str | None) -> None:
    """Write the page and the plot of the sweep in `folder`, and print the page. out: file of the page.

    Raises:
        ValueError: there is no such folder, or it is not named after an ablation.
    """
    sweep, path = read_sweep(folder), Path(out or folder / "report.md")
    if not folder.is_dir():
        raise ValueError(f"sweep={folder} does not exist; sweeps are in outputs/ablation by default")
    plot = path.with_suffix(".png") if sweep.finished else None
    if plot is not None:
        plot_sweep(sweep, plot)
    text = sweep_page.single_sweep_page(sweep, None if plot is None else plot.name)
    print(text)
    write_page(path, text)


def report_runs(config: ReportConfig) -> None:
    """Compare `config.runs`: write a page, the validation curves and, for transformers, a grid of samples.

    Raises:
        ValueError: fewer than two runs, or one without validation metrics.
    """
    out = Path(config.out or "outputs/comparison/report.md")
    runs = comparison.read_runs(config.runs)
    plot_runs({run.name: run.curve for run in runs}, out.with_name("curves.png"))
    device = distributed.init_process_group(config.device)
    grid = comparison.sample_grid(runs, config.captions, config.candidates, config.seed, device)
    if grid is not None:
        grid.save(out.with_name("samples.png"))
    text = comparison.comparison_page(runs, "curves.png", None if grid is None else "samples.png")
    print(text)
    write_page(out, text)


def read_sweep(folder: Path) -> Sweep:
    """Read the sweep in `folder`, named after its file in configs/ablation, with the suffix -<size> for other sizes.

    Raises:
        ValueError: there is no such file or size.
    """
    name, _, size = folder.name.partition("-")
    if name not in ablations():
        raise ValueError(
            f"{folder} is not the folder of a sweep: unknown ablation {name!r}; choose one of {', '.join(ablations())}"
        )
    sizes = [option for option in options("size") if option not in EXPERIMENT_SIZES]
    if size and size not in sizes:
        raise ValueError(
            f"{folder} is not the folder of a sweep: unknown size {size!r}; choose one of {', '.join(sizes)}"
        )
    jobs = ablation_jobs(name, size or None)
    planned = [planned_job(job, folder) for job in jobs]
    return Sweep.read(jobs[0].ablation, size or DEFAULT_SIZE, folder, planned)


def planned_job(job: Any, folder: Path) -> PlannedRun:
    """Return a planned job, given the options of its command; `folder` is the folder of its sweep."""
    values = format_values(varied_values(job, job.ablation))
    if job.ablation.command != "train":
        return PlannedRun(values, job.seed, folder / job.file.parent.name)
    settings = {"stage": asdict(job.stage), "data": asdict(job.data)}
    return PlannedRun(values, job.seed, folder / Job.from_config(job).name, flatten(settings))


def write_page(path: Path, text: str) -> None:
    """Write a page to a file, create its folder, and print the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"written to {path}")
