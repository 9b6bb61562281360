"""Plans of train.py (plan=true)."""

from pathlib import Path

from dalle.cli.train_config import TrainConfig
from dalle.cli.train_inputs import find_dvae_config, with_model_sizes
from dalle.planning.cards import find_card
from dalle.planning.changes import alternative_plans, check_fits
from dalle.planning.plan import Planner
from dalle.planning.report import format_plan


def print_plans(runs: list[tuple[TrainConfig, Path]]) -> None:
    """Print the plan of each stage. Raises ValueError for one that does not fit, with a change that makes it fit."""
    card = find_card(runs[0][0].card)
    for run, folder in runs:
        dvae = find_dvae_config(run, folder, runs)
        stage = with_model_sizes(run, dvae)
        planner = Planner(run.data.image_size, run.world, card, run.shard_size, dvae)
        plan = planner.plan(stage, run.distributed)
        print(f"{stage.name}: {format_plan(plan)}")
        alternatives = alternative_plans(planner, stage, run.distributed)
        if len(runs) > 1:  # stage=all has the settings of each stage in a section of its own
            section = f"stage.{stage.name}."
            alternatives = (
                (overrides.replace("stage.", section), alternative) for overrides, alternative in alternatives
            )
        check_fits(plan, alternatives)
