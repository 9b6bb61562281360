"""Collectives, devices and process groups: two ranks train, gather and agree like one process."""

import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dalle import DALLE, distributed
from dalle.training.state_files import save_state
from dalle.weights_files import WEIGHTS

TRAINING_TESTS = Path(__file__).parent / "training"
sys.path[:0] = [str(TRAINING_TESTS), str(TRAINING_TESTS.parent)]

from line_stage import EXACT, LineStage, fit  # noqa: E402 (found on the path set above)
from ranks import torchrun  # noqa: E402

RANK = """
import json, sys
from pathlib import Path
import torch
from dalle import distributed
from line_stage import EXACT, fit
from test_distributed import contrast

device, folder = distributed.init_process_group("cpu"), Path(sys.argv[1])
rank = distributed.get_rank()
stage = fit(folder, EXACT)
scale = torch.tensor(2.0, requires_grad=True)
contrast(scale, slice(3 * rank, 3 * rank + 3)).backward()
facts = {
    "weights": [each.tolist() for each in stage.model.parameters()],
    "world_size": distributed.get_world_size(),
    "first": distributed.is_main_process(),
    "said": distributed.broadcast_object(f"from {rank}"),
    "any": [distributed.all_reduce_any(rank == 1), distributed.all_reduce_any(False)],
    "mean": distributed.all_reduce_mean(torch.tensor(float(rank))).item(),
    "slope": distributed.all_reduce_mean(scale.grad).item(),
    "total": [each.tolist() for each in distributed.all_reduce_sum([torch.tensor([[1.0, rank]]), torch.tensor(2.0)])],
}
(folder / f"rank{rank}.json").write_text(json.dumps(facts))
distributed.destroy_process_group()
"""


def contrast(scale, rows):
    """Loss in which every row uses the rows of all ranks, like CLIP's."""
    points = torch.arange(12.0).reshape(6, 2).cos()
    features = distributed.all_gather((scale * points[rows]).sin())
    return (features @ features.T).logsumexp(1).mean()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Return the folder of a run on two ranks, and what each of them found."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "rank.py").write_text(RANK)
    torchrun(2, folder / "rank.py", folder, search=(TRAINING_TESTS, TRAINING_TESTS.parent))
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_two_ranks_train_like_one(two_ranks, tmp_path):
    folder, (first, second) = two_ranks
    alone = fit(tmp_path, EXACT)
    assert first["weights"] == second["weights"]
    for ours, theirs in zip(alone.model.parameters(), first["weights"], strict=True):
        assert torch.allclose(ours, torch.tensor(theirs), atol=1e-6)
    ours, theirs = ((run / "metrics.jsonl").read_text().splitlines() for run in (tmp_path, folder))
    for one, other in zip(map(json.loads, ours), map(json.loads, theirs), strict=True):
        names = set(one) - {
            "split",
            "seconds",
            "images_per_second",
            "tokens_per_second",
            "mfu",
            "memory_gb",
            "root",
        }  # the mean of roots is not the root of the mean
        assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names}, rel=1e-4)


def test_gradients_flow_through_gathered_tensors(two_ranks):
    scale = torch.tensor(2.0, requires_grad=True)
    contrast(scale, slice(0, 6)).backward()
    assert scale.grad is not None
    for facts in two_ranks[1]:
        assert facts["slope"] == pytest.approx(scale.grad.item(), rel=1e-5)


def test_ranks_agree(two_ranks):
    for rank, facts in enumerate(two_ranks[1]):
        assert facts["world_size"] == 2
        assert facts["first"] == (rank == 0)
        assert facts["said"] == "from 0"
        assert facts["any"] == [True, False]
        assert facts["mean"] == 0.5
        assert facts["total"] == [[[2.0, 1.0]], 4.0]


def test_run_of_two_ranks_resumes_on_one(two_ranks, tmp_path):
    folder, _ = two_ranks
    fit(folder, replace(EXACT, steps=25))
    alone = fit(tmp_path, replace(EXACT, steps=25))
    stage = LineStage(EXACT)
    again = fit(folder, replace(EXACT, steps=30), stage)
    alone = fit(tmp_path, replace(EXACT, steps=30), alone)
    for one, other in zip(again.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


DISKS = """
import sys
from pathlib import Path
import pytest
from dalle import distributed
from dalle.checkpoint import CheckpointError
from line_stage import EXACT, fit

distributed.init_process_group("cpu")
for case in ("no state", "another step", "another run", "only weights"):
    disk = Path(sys.argv[1], case, f"node{distributed.get_rank()}")
    with pytest.raises(CheckpointError, match="ranks see different states of .*: put out= on a file system that all"):
        fit(disk, EXACT)
assert fit(Path(sys.argv[1], "shared"), EXACT).validations == []  # finished
distributed.destroy_process_group()
"""


def test_ranks_that_see_different_states_are_refused(tmp_path):
    (tmp_path / "rank.py").write_text(DISKS)

    def save(folder, step, run):
        scalars = {"identity": {"stage": {"steps": EXACT.steps, "noise": 0.0}, "seed": 0}, "wandb_id": run}
        save_state(tmp_path / folder, step, {}, scalars)

    save("shared", EXACT.steps, "a")
    for case in ("no state", "another step", "another run"):
        save(f"{case}/node0", 10, "a")
    save("another step/node1", 5, "a")
    save("another run/node1", 10, "b")
    (tmp_path / "only weights/node1").mkdir(parents=True)
    (tmp_path / "only weights/node1" / WEIGHTS).touch()
    torchrun(2, tmp_path / "rank.py", tmp_path, search=(TRAINING_TESTS, TRAINING_TESTS.parent))


def test_single_process_needs_no_collectives():
    assert (distributed.get_rank(), distributed.get_world_size(), distributed.is_main_process()) == (0, 1, True)
    assert distributed.broadcast_object("x") == "x"
    assert distributed.all_reduce_any(True)
    assert distributed.all_reduce_mean(torch.tensor(2.0)) == 2.0
    values = torch.ones(2)
    assert distributed.all_gather(values) is values
    assert distributed.all_reduce_sum([values])[0] is values
    model = torch.nn.Linear(1, 1)
    assert distributed.wrap_ddp(model) is model
    distributed.barrier()


def test_missing_devices_raise():
    with pytest.raises(ValueError, match="device=gpu is unknown"):
        distributed.init_process_group("gpu")
    with pytest.raises(ValueError, match=r"device=cuda:99 is not there: this machine has \d+ CUDA devices"):
        distributed.init_process_group("cuda:99")
    for other in ("mps", "meta"):
        with pytest.raises(ValueError, match=f"device={other} is not supported; choose auto, cpu, cuda or cuda:0"):
            distributed.init_process_group(other)
    assert distributed.init_process_group("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "mps", torch.device("meta"), "cuda"])
def test_a_pipeline_is_not_loaded_on_a_missing_device(checkpoints, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=f"device={device} is "):
        DALLE.load(checkpoints, device=device)


def test_ranks_of_one_machine_do_not_share_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="device=cuda:0 would be that of all ranks of this machine: set device=cuda"):
        distributed.init_process_group("cuda:0")


@pytest.mark.parametrize("deterministic", [False, True])
def test_tf32_is_disabled_and_deterministic_algorithms_are_optional(monkeypatch, deterministic):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = True
        try:
            distributed.init_process_group("cpu", deterministic)
            assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
            assert torch.are_deterministic_algorithms_enabled() == deterministic
            assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic
        finally:
            torch.use_deterministic_algorithms(False)
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
