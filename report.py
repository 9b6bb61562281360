"""Report finished runs as tables and plots: python report.py sweep=outputs/ablation/kl_weight, or compare runs=a,b"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dalle import distributed
from dalle.ablation import SMALLEST, label, values_of
from dalle.ablations import comparison, page
from dalle.ablations.figures import runs_figure, sweep_figure
from dalle.ablations.outcomes import Planned
from dalle.ablations.settings import ReportConfig
from dalle.ablations.sweep import Sweep
from dalle.cli.config import command
from dalle.cli.sweeps import ablation_jobs, ablations
from dalle.optional_dependencies import check_installed
from dalle.training.job import Job
from dalle.training.run import flat


@command("report")
def main(config: ReportConfig) -> None:
    check_installed("eval", "report.py", "matplotlib", "scipy")
    if config.sweep is not None and config.runs:
        raise ValueError("report one sweep, sweep=..., or set runs side by side, runs=a,b: not both at once")
    if config.runs:
        report_runs(config)
    elif config.sweep is not None:
        report_sweep(Path(config.sweep), config.out)
    else:
        report_all(Path(config.folder), Path(config.out or "docs/ablations.md"))


def report_all(folder: Path, out: Path) -> None:
    """Write one page of all sweeps of the smallest size; sweeps that have not been run are listed without results.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"folder={folder}: there is no such folder; sweeps lie in outputs/ablation")
    sweeps = sorted((read_sweep(folder / name) for name in ablations()), key=lambda sweep: sweep.ablation.letter)
    pictures = {}
    for sweep in sweeps:
        name = sweep.ablation.name
        if sweep.finished:
            pictures[name] = f"{out.stem}/{name}.png"
            sweep_figure(sweep, out.parent / pictures[name])
        print(f"{sweep.ablation.letter} {name:16} {page.counted(sweep):>9} {page.answer(sweep)}")
    write(out, page.all_sweeps(sweeps, pictures))


def report_sweep(folder: Path, out: str | None) -> None:
    sweep, path = read_sweep(folder), Path(out or folder / "report.md")
    if not folder.is_dir():
        raise ValueError(f"sweep={folder}: there is no such folder; sweeps lie in outputs/ablation")
    picture = path.with_suffix(".png") if sweep.finished else None
    if picture is not None:
        sweep_figure(sweep, picture)
    text = page.one_sweep(sweep, None if picture is None else picture.name)
    print(text)
    write(path, text)


def report_runs(config: ReportConfig) -> None:
    out = Path(config.out or "outputs/comparison/report.md")
    runs = comparison.read_runs(config.runs)
    runs_figure({run.name: run.curve for run in runs}, out.with_name("curves.png"))
    device = distributed.start(config.device)
    sheet = comparison.sample_grid(runs, config.captions, config.candidates, config.seed, device)
    if sheet is not None:
        sheet.save(out.with_name("pictures.png"))
    text = comparison.page(runs, "curves.png", None if sheet is None else "pictures.png")
    print(text)
    write(out, text)


def read_sweep(folder: Path) -> Sweep:
    """Read the sweep in `folder`, named after its file in configs/ablation, with the suffix -<size> for other sizes.

    Raises:
        ValueError: there is no such file.
    """
    name, _, size = folder.name.partition("-")
    if name not in ablations():
        raise ValueError(
            f"{folder} is no sweep's folder: there is no ablation {name}; there are {', '.join(ablations())}"
        )
    jobs = ablation_jobs(name, size or None)
    planned = [planned_job(job, folder) for job in jobs]
    return Sweep.read(jobs[0].ablation, size or SMALLEST, folder, planned)


def planned_job(job: Any, folder: Path) -> Planned:
    """Return the label, seed, folder and settings of a job with these options of its command."""
    values = label(values_of(job, job.ablation))
    if job.ablation.command != "train":
        return Planned(values, job.seed, folder / job.file.parent.name)
    settings = {"stage": asdict(job.stage), "data": asdict(job.data)}
    return Planned(values, job.seed, folder / Job.of(job).name, flat(settings))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
