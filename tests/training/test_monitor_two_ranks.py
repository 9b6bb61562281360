"""Monitoring of two ranks: which one lags, the keys of both in a loss spike, and gradient norms."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from line_stage import LineConfig, LineStage, fit

from dalle import distributed

CONFIG = LineConfig(
    steps=120,
    dropout=0.0,
    noise=0.0,
    validate_every=0,
    preview_every=0,
    save_every=0,
    stall_minutes=1 / 60,
    log_gradient_norms=True,
)
SPIKE, STALL = 110, 115  # updates before them


class Keyed(tuple):
    keys: list[str]


class TwoRankStage(LineStage):
    """A stage with one high loss, and one batch that the second rank loads slowly."""

    def batches(self, start):
        for batch in super().batches(start):
            keyed = Keyed(batch)
            keyed.keys = [f"batch-{batch[0]}-of-rank-{distributed.get_rank()}"]
            if batch[0] == STALL and distributed.get_rank() == 1:
                time.sleep(6)
            yield keyed

    def loss(self, model, batch, step, generator):
        loss, metrics = super().loss(model, batch, step, generator)
        return loss + 1000 * (step == SPIKE and distributed.get_rank() == 1), metrics


def main(folder: Path) -> None:
    distributed.init_process_group("cpu")
    fit(folder, CONFIG, TwoRankStage(CONFIG))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Folder of a run of two ranks, and what it printed."""
    folder = tmp_path_factory.mktemp("ranks")
    here = Path(__file__)
    paths = os.pathsep.join([str(here.parents[2]), str(here.parent)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(here)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [*command, str(folder)], env=environment, check=True, capture_output=True, text=True, timeout=300
    )
    return folder, done.stderr


def test_the_rank_that_lags_in_a_stall_is_named(two_ranks):
    folder, printed = two_ranks
    lines = [line for line in printed.splitlines() if "no update has finished" in line]
    assert len(lines) == 1
    assert f"behind: rank 1, loading data after update {STALL}; ahead: forward/backward after update" in lines[0]
    assert list((folder / "stall").iterdir()) == []


def test_a_spike_has_the_keys_of_both_ranks(two_ranks):
    folder, _ = two_ranks
    (line,) = (json.loads(line) for line in (folder / "spikes.jsonl").read_text().splitlines())
    assert line["step"] == SPIKE + 1
    assert line["keys"] == [f"batch-{SPIKE}-of-rank-{rank}" for rank in (0, 1)]


def test_gradient_norms_are_those_of_one_rank(two_ranks, tmp_path):
    fit(tmp_path, replace(CONFIG, steps=3))
    folder, _ = two_ranks
    ours, theirs = (
        json.loads((run_folder / "metrics.jsonl").read_text().splitlines()[0]) for run_folder in (tmp_path, folder)
    )
    names = [name for name in ours if name.startswith("gradient_norm/")]
    assert names == ["gradient_norm/gains", "gradient_norm/layers"]
    assert [ours[name] for name in names] == pytest.approx([theirs[name] for name in names], rel=1e-4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
