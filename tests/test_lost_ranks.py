"""Ranks that end or do not answer: the others notice, and say so in one sentence."""

import json
import socket
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from dalle import distributed
from dalle.checkpoint import CheckpointError

sys.path.insert(0, str(Path(__file__).parent))

from ranks import torchrun  # noqa: E402 (found on the path set above)


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
