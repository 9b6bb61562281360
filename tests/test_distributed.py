"""Distributed training: two ranks train, gather and agree like one process."""

import json
import os
import socket
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dalle import DALLE, distributed
from dalle.checkpoint import CheckpointError
from dalle.training.float_formats import FLOAT_1_6_9
from dalle.training.optimizer import OptimizerConfig
from dalle.training.powersgd import CompressionConfig
from dalle.training.schedules import Schedule
from dalle.training.state import TrainState
from dalle.training.state_files import save_state
from dalle.weights_files import WEIGHTS

TRAINING_TESTS = Path(__file__).parent / "training"
sys.path[:0] = [str(TRAINING_TESTS), str(TRAINING_TESTS.parent)]

from line_stage import BlockStage, LineConfig, LineStage, fit  # noqa: E402 (found on the path set above)
from ranks import torchrun  # noqa: E402
from saved_state import load_state  # noqa: E402

EXACT = LineConfig(dropout=0.0, noise=0.0, clip_norm=0.5)  # noise differs from rank to rank
BLOCKS = replace(
    EXACT,
    optimizer=OptimizerConfig(Schedule(start=3e-3), eps=1e-3),
    log_every=1,
    validate_every=0,
    preview_every=0,
    save_every=10,
)
COMPRESSED = replace(BLOCKS, compression=CompressionConfig(rank=2, blocks=1))
RUNS = {
    "averaged": BLOCKS,
    "compressed": COMPRESSED,
    "enough": replace(BLOCKS, compression=CompressionConfig(rank=8, blocks=1)),  # gradients of 8 points have no more
    "bfloat16 weights": replace(BLOCKS, precision="auto", parameters="bfloat16"),
    "compressed in 16 bits": replace(BLOCKS, compression=CompressionConfig(rank=2, blocks=1, precision="paper16")),
    "spoilt averaged": replace(BLOCKS, precision="float16", gradient_scaling="resblock", steps=6),
    "spoilt compressed": replace(COMPRESSED, precision="float16", gradient_scaling="resblock", steps=6),
    "spoilt compressed in 16 bits": replace(
        BLOCKS,
        compression=CompressionConfig(rank=2, blocks=1, precision="paper16"),
        precision="float16",
        gradient_scaling="resblock",
        steps=6,
    ),
    "spoilt under one scale": replace(COMPRESSED, precision="float16", steps=6),
}

# compressed, with each kind of state that a run resumes from
STATES = {
    "compressed": COMPRESSED,
    "warm": replace(BLOCKS, compression=CompressionConfig(rank=2, blocks=1, basis="warm")),
    "in 16 bits": RUNS["compressed in 16 bits"],
}

RANK = """
import json, sys
from pathlib import Path
import torch
from dalle import DALLE, distributed
from test_distributed import EXACT, contrast, fit, flat, runs_of_blocks

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
    "runs": {name: flat(stage).tolist() for name, stage in runs_of_blocks(folder).items()},
}
(folder / f"rank{rank}.json").write_text(json.dumps(facts))
distributed.destroy_process_group()
"""


def contrast(scale, rows):
    """Loss in which every row uses the rows of all ranks, like CLIP's."""
    points = torch.arange(12.0).reshape(6, 2).cos()
    features = distributed.all_gather((scale * points[rows]).sin())
    return (features @ features.T).logsumexp(1).mean()


class Spoilt(BlockStage):
    """Stage with an infinite loss in the fourth update, on the last rank only."""

    def loss(self, model, batch, step, generator):
        loss, metrics = super().loss(model, batch, step, generator)
        bad = step == 3 and distributed.get_rank() == distributed.get_world_size() - 1
        return (loss * torch.inf if bad else loss), metrics


def runs_of_blocks(folder):
    """Run everything in RUNS, and the compressed ones of STATES without saving, saved often, and interrupted."""
    kinds = {name: Spoilt if name.startswith("spoilt") else BlockStage for name in RUNS}
    stages = {name: fit(folder / name, config, kinds[name](config)) for name, config in RUNS.items()}
    for name, config in STATES.items():
        unsaved, often = replace(config, save_every=0), replace(config, save_every=3, async_save=True)
        first = replace(unsaved, steps=7)
        fit(folder / f"{name} interrupted", first, BlockStage(first))
        for kind, variant in (("unsaved", unsaved), ("saved", often), ("interrupted", unsaved)):
            stages[f"{name} {kind}"] = fit(folder / f"{name} {kind}", variant, BlockStage(variant))
    return stages


def flat(stage):
    return torch.cat([parameter.detach().flatten() for parameter in stage.model.parameters()])


def lines(folder):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if line["split"] == "train"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
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


@pytest.mark.parametrize("name", [*RUNS, *(f"{name} interrupted" for name in STATES)])
def test_ranks_keep_the_same_weights(two_ranks, name):
    first, second = (facts["runs"][name] for facts in two_ranks[1])
    assert first == second
    assert torch.tensor(first).isfinite().all()


@pytest.mark.parametrize("name", ["averaged", "compressed"])
def test_two_ranks_train_blocks_like_one_with_and_without_compression(two_ranks, tmp_path, name):
    alone = fit(tmp_path, RUNS[name], BlockStage(RUNS[name]))
    torch.testing.assert_close(torch.tensor(two_ranks[1][0]["runs"][name]), flat(alone), atol=1e-4, rtol=1e-3)


def test_compressed_training_converges_like_averaged_training(two_ranks):
    folder, (facts, _) = two_ranks
    averaged, compressed = lines(folder / "averaged"), lines(folder / "compressed")
    narrow, half = lines(folder / "compressed in 16 bits"), lines(folder / "bfloat16 weights")
    for losses in (averaged, compressed, narrow, half):
        assert losses[-1]["loss"] < losses[0]["loss"] / 5
    assert compressed[0]["gradient_norm"] < averaged[0]["gradient_norm"]  # some of it is kept for later
    assert facts["runs"]["averaged"] != facts["runs"]["compressed"]


def test_compression_of_sufficient_rank_matches_averaging(two_ranks):
    first = two_ranks[1][0]["runs"]
    torch.testing.assert_close(torch.tensor(first["enough"]), torch.tensor(first["averaged"]), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["saved", "interrupted"])
@pytest.mark.parametrize("name", STATES)
def test_compressed_run_of_two_ranks_resumes_bitwise(two_ranks, name, kind):
    folder, (facts, _) = two_ranks
    assert facts["runs"][f"{name} {kind}"] == facts["runs"][f"{name} unsaved"]
    (_, other, _), (_, once, _) = (load_state(folder / f"{name} {state}") for state in (kind, "unsaved"))
    assert other.keys() == once.keys() and all(tensor.equal(once[key]) for key, tensor in other.items())
    losses = [[line["loss"] for line in lines(folder / f"{name} {state}")] for state in (kind, "unsaved")]
    assert losses[0] == losses[1] and len(losses[0]) == 20


@pytest.mark.parametrize("name", STATES)
def test_compressed_run_of_two_ranks_resumes_on_one(two_ranks, name):
    folder = two_ranks[0] / f"{name} interrupted"
    _, tensors, _ = load_state(folder) or pytest.fail("no state")
    state = TrainState(BlockStage(STATES[name]).model, STATES[name], torch.device("cpu"))
    state.restore(folder)
    assert "; the sum of 2 saved error buffers is divided among 1" in state.reducer.message
    for matrix in state.reducer._matrices:
        first, second = (tensors[f"reducer.error_{rank}.{matrix.name}"] for rank in range(2))
        assert not first.equal(second)  # else this test could not see that ranks exchange them
        if name == "in 16 bits":
            first, second = FLOAT_1_6_9.decode(first), FLOAT_1_6_9.decode(second)
            assert matrix.error.equal(FLOAT_1_6_9.round(first + second))
        else:
            assert matrix.error.equal(first + second)


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("spoilt")])
def test_nonfinite_update_on_one_rank_is_skipped_by_all(two_ranks, name):
    skipped = [line["skipped"] for line in lines(two_ranks[0] / name)]
    assert skipped[3] == skipped[2] + 1
    assert skipped[5] == skipped[3]


def test_gradient_scale_is_the_same_on_all_ranks(two_ranks):
    written = lines(two_ranks[0] / "spoilt under one scale")
    assert written[4]["lowest_scale"] == pytest.approx(2.0 ** (16 - written[3]["skipped"]), rel=0.01)  # a mean of both


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


def test_a_rank_waits_for_the_others_no_longer_than_the_timeout(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(
        """
import sys, time
from pathlib import Path
import pytest
from dalle import distributed

distributed.init_process_group("cpu", timeout_minutes=1 / 60)
failed = Path(sys.argv[1])
if distributed.get_rank() == 0:
    with pytest.raises(RuntimeError, match="(?i)timed out") as first:
        distributed.barrier()
    with pytest.raises(RuntimeError) as second:
        distributed.barrier()
    assert distributed.is_lost_rank(first.value) and distributed.is_lost_rank(second.value)
    failed.touch()
else:  # does not come
    while not failed.exists():
        time.sleep(0.02)
"""
    )
    torchrun(2, script, tmp_path / "failed")


DISKS = """
import sys
from pathlib import Path
import pytest
from dalle import distributed
from dalle.checkpoint import CheckpointError
from test_distributed import EXACT, fit

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


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553]"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(f"{GLOO} Connection closed by peer [127.0.0.1]:4015."), True),
        (RuntimeError(f"{GLOO} Read error [127.0.0.1]:4015: Connection reset by peer"), True),
        (dist.DistBackendError("ncclRemoteError: A call failed possibly due to a network error"), True),
        (dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."), True),
        (dist.DistStoreError("wait timeout after 1800000ms, keys: /default_pg/0//cpu//0/0"), True),
        (dist.DistBackendError("ncclInvalidUsage: Duplicate GPU detected"), False),
        (RuntimeError(f"[enforce fail at {GLOO[1:-1]}] op.preamble.length <= op.nbytes. 8 vs 4"), False),
        (RuntimeError("Connection closed by peer"), False),  # of some other library
        (ValueError("timed out"), False),
    ],
)
def test_only_errors_of_collectives_are_those_of_a_lost_rank(error, lost):
    assert distributed.is_lost_rank(error) == lost
    try:
        raise CheckpointError("the state could not be read") from error
    except CheckpointError as caused:
        assert distributed.is_lost_rank(caused) == lost


LOSING = """
import contextlib, io, json, os, sys
from pathlib import Path
from dalle.cli import train
from dalle.training.loop import Trainer

folder, rank = Path(sys.argv.pop(1)), int(os.environ["RANK"])
update = Trainer.update


def fail(self):
    if rank == 1 and self.state.step == 1:
        raise ValueError("broken for a test")
    update(self)


Trainer.update = fail
printed, status = io.StringIO(), 0
with contextlib.redirect_stderr(printed):
    try:
        train.main()
    except SystemExit as end:
        status = end.code
    except Exception as error:
        status = repr(error)
(folder / f"{rank}.json").write_text(json.dumps([status, printed.getvalue()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_a_rank_that_loses_another_ends_with_one_sentence(tmp_path, mode):
    (tmp_path / "rank.py").write_text(LOSING)
    settings = ["stage=dvae", "preset=tiny", "data=blocks", "data.image_size=16", "data.train=64", "data.val=8"]
    settings += ["stage.steps=3", "stage.batch_size=4", "stage.workers=0", "stage.transform=none", "device=cpu"]
    settings += [f"distributed={mode}", f"out={tmp_path}", "wandb.mode=disabled", "stage.validation_images=8"]
    torchrun(2, tmp_path / "rank.py", tmp_path, *settings)
    for rank, sentence in enumerate(["another rank ended, or did not answer: see its message", "broken for a test"]):
        status, said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert status == 2, said
        assert said.endswith(f"rank {rank}: {sentence}\n") and "Traceback" not in said


@pytest.fixture
def port(monkeypatch):
    """A port in use, which the environment names as that of rank 0."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": 2, "RANK": 0}.items():
            monkeypatch.setenv(name, str(value))
        yield port


def test_a_port_in_use_is_named(port):
    with pytest.raises(ValueError, match=rf"port {port} \(MASTER_PORT\) is in use.* --standalone.* --master-port"):
        distributed.init_process_group("cpu")


def test_a_first_rank_that_does_not_answer_is_named(port, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(ValueError, match=r"no connection to rank 0 at localhost:1 \(MASTER_ADDR, MASTER_PORT\): "):
        distributed.init_process_group("cpu", timeout_minutes=0.01)


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
