"""Restarts of unused codes on two ranks: replicas stay equal, and a sharded run can resume where a restart is due."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_stages import CPU, build

from dalle import distributed
from dalle.training.ema import EMAConfig
from dalle.training.logger import WandbConfig
from dalle.training.loop import train
from dalle.training.run import Run
from dalle.training.sharding import init_mesh, is_sharded

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import torchrun  # noqa: E402 (found on the path set above)

OPTIONS: dict[str, Any] = {"restart_codes_every": 2, "ema": EMAConfig(0.0), "validate_every": 0, "preview_every": 0}
RANK = """
import sys
from pathlib import Path
from dalle import distributed
from test_restarts_on_two_ranks import restart_in_a_resumed_run

distributed.init_process_group("cpu")
for mode in ("ddp", "fsdp"):
    restart_in_a_resumed_run(Path(sys.argv[1]), mode)
distributed.destroy_process_group()
"""


def restart_in_a_resumed_run(folder: Path, mode: str) -> None:
    """Train for two updates, and resume: the third update begins with a restart of 14 of 16 codes."""
    for steps in (2, 3):
        stage = build("dvae", steps=steps, **OPTIONS)
        with torch.no_grad():
            stage.model.encoder.output.bias[2:] -= 100
        sample, rank = stage.data.sample_of_training, distributed.get_rank()
        # as different as sums in different orders, and more
        stage.data.sample_of_training = lambda *given, sample=sample, rank=rank: sample(*given) * (1 - 1e-3 * rank)
        mesh = init_mesh(mode, None, CPU)
        run = Run(folder / mode, {"stage": {"steps": steps}}, 0, CPU, WandbConfig("disabled"), mesh=mesh)
        train(stage, stage.config, run)
    if not is_sharded(stage.model):
        weights = {name: tensor.detach().contiguous() for name, tensor in stage.model.state_dict().items()}
        save_file(weights, folder / f"rank-{rank}.safetensors")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("restarts")
    (folder / "rank.py").write_text(RANK)
    torchrun(2, folder / "rank.py", folder, search=(Path(__file__).parent,))
    return folder


def test_replicas_are_equal_after_a_restart(two_ranks):
    first, second = (load_file(two_ranks / f"rank-{rank}.safetensors") for rank in range(2))
    assert (first["encoder.output.bias"] > -50).sum() > 2
    assert all(tensor.equal(second[name]) for name, tensor in first.items())


def test_sharded_run_restarts_codes_like_an_unsharded_one(two_ranks):
    ours, theirs = (load_file(two_ranks / mode / "model.safetensors") for mode in ("fsdp", "ddp"))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)
