"""Two ranks are one: what two processes train, gather and agree on is what one process would have."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dalle import distributed

TRAINING_TESTS = Path(__file__).parent / "training"
sys.path.insert(0, str(TRAINING_TESTS))

from line_stage import LineConfig, LineStage, fit  # noqa: E402 (found on the path set above)

EXACT = LineConfig(dropout=0.0, noise=0.0, clip_norm=0.5)  # noise differs from rank to rank

RANK = """
import json, sys
from pathlib import Path
import torch
from dalle import distributed
from test_distributed import EXACT, contrast, fit

device, folder = distributed.start("cpu"), Path(sys.argv[1])
rank = distributed.rank()
stage = fit(folder, EXACT)
scale = torch.tensor(2.0, requires_grad=True)
contrast(scale, slice(3 * rank, 3 * rank + 3)).backward()
facts = {
    "weights": [each.tolist() for each in stage.model.parameters()],
    "world": distributed.world(),
    "first": distributed.is_first(),
    "said": distributed.broadcast(f"from {rank}"),
    "any": [distributed.any_rank(rank == 1), distributed.any_rank(False)],
    "mean": distributed.mean(torch.tensor(float(rank))).item(),
    "slope": distributed.mean(scale.grad).item(),
}
(folder / f"rank{rank}.json").write_text(json.dumps(facts))
distributed.stop()
"""


def contrast(scale, rows):
    """A loss in which every row looks at all rows, of which a rank holds some, as CLIP's does."""
    points = torch.arange(12.0).reshape(6, 2).cos()
    features = distributed.gather((scale * points[rows]).sin())
    return (features @ features.T).logsumexp(1).mean()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "rank.py").write_text(RANK)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TRAINING_TESTS), str(TRAINING_TESTS.parent)]),
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(folder / "rank.py"), str(folder)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_two_ranks_train_as_one(two_ranks, tmp_path):
    folder, (first, second) = two_ranks
    alone = fit(tmp_path, EXACT)
    assert first["weights"] == second["weights"]
    for ours, theirs in zip(alone.model.parameters(), first["weights"], strict=True):
        assert torch.allclose(ours, torch.tensor(theirs), atol=1e-6)
    ours, theirs = ((each / "metrics.jsonl").read_text().splitlines() for each in (tmp_path, folder))
    for one, other in zip(map(json.loads, ours), map(json.loads, theirs), strict=True):
        names = set(one) - {
            "split",
            "seconds",
            "images_per_second",
            "root",
        }  # the mean of roots is not the root of the mean
        assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names}, rel=1e-4)


def test_gradients_flow_through_what_was_gathered(two_ranks):
    scale = torch.tensor(2.0, requires_grad=True)
    contrast(scale, slice(0, 6)).backward()
    assert scale.grad is not None
    for facts in two_ranks[1]:
        assert facts["slope"] == pytest.approx(scale.grad.item(), rel=1e-5)


def test_ranks_agree(two_ranks):
    for rank, facts in enumerate(two_ranks[1]):
        assert facts["world"] == 2
        assert facts["first"] == (rank == 0)
        assert facts["said"] == "from 0"
        assert facts["any"] == [True, False]
        assert facts["mean"] == 0.5


def test_a_run_of_two_ranks_goes_on_alone(two_ranks, tmp_path):
    folder, _ = two_ranks
    fit(folder, replace(EXACT, steps=25))
    alone = fit(tmp_path, replace(EXACT, steps=25))
    stage = LineStage(EXACT)
    again = fit(folder, replace(EXACT, steps=30), stage)
    alone = fit(tmp_path, replace(EXACT, steps=30), alone)
    for one, other in zip(again.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_alone_everything_is_idle():
    assert (distributed.rank(), distributed.world(), distributed.is_first()) == (0, 1, True)
    assert distributed.broadcast("x") == "x"
    assert distributed.any_rank(True)
    assert distributed.mean(torch.tensor(2.0)) == 2.0
    values = torch.ones(2)
    assert distributed.gather(values) is values
    model = torch.nn.Linear(1, 1)
    assert distributed.wrap(model) is model
    distributed.barrier()


def test_devices_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="device=gpu is unknown"):
        distributed.start("gpu")
    with pytest.raises(ValueError, match=r"device=cuda:99 is not there: this machine has \d+ CUDA devices"):
        distributed.start("cuda:99")
    assert distributed.start("cpu") == torch.device("cpu")
