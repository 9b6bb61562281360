"""Every stage trains on two ranks, as torchrun starts them, with compressed gradients and without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_stages import CPU, build

from dalle import distributed
from dalle.data.token_cache import TokenCache
from dalle.stages import STAGES
from dalle.training.logger import WandbConfig
from dalle.training.loop import train
from dalle.training.optimizer import OptimizerConfig
from dalle.training.powersgd import CompressionConfig
from dalle.training.run import Run
from dalle.training.schedules import Schedule

EXCHANGES = {"averaged": CompressionConfig(), "compressed": CompressionConfig(rank=4, blocks=2)}

RANK = """
import json, sys
from pathlib import Path
from dalle import distributed
from test_two_ranks import encoded, trained_weights

distributed.start("cpu")
folder, dvae = map(Path, sys.argv[1:])
(folder / f"rank{distributed.rank()}.json").write_text(json.dumps(trained_weights(folder, dvae)))
encoded(folder / "tokens", dvae)
distributed.stop()
"""


def trained_weights(folder: Path, dvae: Path) -> dict[str, list[float]]:
    """All stages after three updates, with each exchange."""
    # so large an eps makes steps follow the gradient, not its sign
    optimizer = OptimizerConfig(Schedule(start=0.1), eps=1.0)
    found = {}
    for name in STAGES:
        for exchange, compression in EXCHANGES.items():
            options = {"steps": 3, "optimizer": optimizer, "compression": compression, "log_every": 1}
            stage = build(name, dvae, validate_every=0, preview_every=0, validation_pictures=2, **options)
            identity = {"stage": {"steps": 3}}
            train(stage, stage.config, Run(folder / name / exchange, identity, 0, CPU, WandbConfig("disabled")))
            found[f"{name} {exchange}"] = torch.cat([each.detach().flatten() for each in stage.model.parameters()])
    return {key: weights.tolist() for key, weights in found.items()}


def encoded(tokens: Path, dvae: Path) -> TokenCache:
    """The tokens of all training pictures, which a run of more than an epoch wants."""
    return build("transformer", dvae, tokens=tokens, steps=9, batch_size=8).cache


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, dvae_folder):
    folder = tmp_path_factory.mktemp("stages_on_ranks")
    (folder / "rank.py").write_text(RANK)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(folder / "rank.py"), str(folder), str(dvae_folder)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    weights = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return weights, folder / "tokens"


@pytest.fixture(scope="module")
def alone(tmp_path_factory, dvae_folder):
    assert distributed.world() == 1
    return trained_weights(tmp_path_factory.mktemp("alone"), dvae_folder)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("name", STAGES)
def test_ranks_keep_the_same_weights(two_ranks, name, exchange):
    first, second = (torch.tensor(weights[f"{name} {exchange}"]) for weights in two_ranks[0])
    assert first.equal(second)
    assert first.isfinite().all()


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("name", ["clip", "transformer"])  # the dVAE's noise differs from rank to rank
def test_two_ranks_train_as_one_on_the_same_pictures(two_ranks, alone, dvae_folder, name, exchange):
    together, one = (torch.tensor(weights[f"{name} {exchange}"]) for weights in (two_ranks[0][0], alone))
    fresh = torch.cat([each.detach().flatten() for each in build(name, dvae_folder).model.parameters()])
    assert (together - one).norm() < 1e-3 * (one - fresh).norm()


@pytest.mark.parametrize("name", STAGES)
def test_compression_is_at_work(alone, name):
    assert alone[f"{name} averaged"] != alone[f"{name} compressed"]


def test_two_ranks_encode_what_one_encodes(two_ranks, dvae_folder, tmp_path):
    (shared,) = two_ranks[1].iterdir()
    one = encoded(tmp_path, dvae_folder)
    assert one.folder.name == shared.name
    assert (np.load(shared / "tokens.npy") == one.tokens).all()
    assert (np.load(shared / "states.npy") == one.states).all()
