"""Runs of sharded training on several ranks, with every option of the loop, and what they write."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
import torch.distributed as dist
from line_stage import CPU, BlockStage, LineConfig, fit
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from dalle import distributed
from dalle.training.compression import CompressionConfig
from dalle.training.ema import EMAConfig
from dalle.training.optimizer import OptimizerConfig
from dalle.training.powersgd import PowerSGD
from dalle.training.schedules import Schedule
from dalle.training.sharding import (
    copy_to,
    copy_whole,
    from_local,
    gather,
    init_mesh,
    mesh_of_backward,
    own_shard,
    shard,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import torchrun  # noqa: E402 (found on the path set above)


@dataclass(frozen=True)
class GatheringConfig(LineConfig):
    """Validates with whole weights, as stages do that call more than the model's forward pass."""

    validates_sharded: ClassVar[bool] = False


BASE = LineConfig(
    batch_size=16,  # for two micro-batches on eight ranks
    dropout=0.0,  # noise and dropout differ from rank to rank
    noise=0.0,
    optimizer=OptimizerConfig(Schedule(start=3e-3), eps=1e-3),
    ema=EMAConfig(decay=0.0),
    log_every=1,
    validate_every=0,
    preview_every=0,
    save_every=10,
)
OPTIONS = {
    "AdamW": BASE,
    "micro-batches": replace(BASE, accumulate=2),
    "clipped": replace(BASE, clip_norm=0.5),
    "averaged": replace(BASE, ema=EMAConfig(decay=0.9, every=2)),
    "a scale per branch": replace(BASE, precision="float16", gradient_scaling="resblock", accumulate=2),
    "a scale for all": replace(BASE, precision="float16"),
    "16-bit moments": replace(BASE, optimizer=replace(BASE.optimizer, moments="paper16", variance_clip=5.0)),
    "Muon": replace(BASE, optimizer=replace(BASE.optimizer, kind="muon")),
    "recomputing": replace(BASE, recompute=True, clip_norm=0.5),
}
VALIDATED = replace(OPTIONS["averaged"], validate_every=5)
COMPRESSED = replace(BASE, compression=CompressionConfig(rank=8, blocks=2))
COMPRESSIONS = {
    "compressed": COMPRESSED,
    "compressed in 16 bits": replace(COMPRESSED, compression=replace(COMPRESSED.compression, precision="paper16")),
}
OTHERS = {
    **COMPRESSIONS,
    "validated": VALIDATED,
    "validated with whole weights": GatheringConfig(**VALIDATED.__dict__),
}
# what a restart has to restore
RESUMED = ("averaged", "a scale per branch", "16-bit moments", "Muon")
RANK = """
import sys
from pathlib import Path
import sharded_runs
from dalle import distributed

distributed.init_process_group("cpu")
getattr(sharded_runs, sys.argv[1])(Path(sys.argv[2]))
distributed.destroy_process_group()
"""


def train_blocks(folder: Path, name: str, mode: str, steps: int = 20) -> None:
    config = replace({**OPTIONS, **OTHERS}[name], steps=steps)
    fit(folder / name, config, BlockStage(config), mesh=init_mesh(mode, 2 if mode == "hsdp" else None, CPU))


def on_four(folder: Path) -> None:
    for name in RESUMED:
        train_blocks(folder / "four", name, "fsdp", steps=10)
    for name in ("micro-batches", "clipped", *COMPRESSIONS):
        train_blocks(folder / "hsdp", name, "hsdp")
    for name in COMPRESSIONS:
        train_blocks(folder / "hsdp interrupted", name, "hsdp", steps=7)
        train_blocks(folder / "hsdp interrupted", name, "hsdp")
    reduce_compressed(folder)


def gradient(step: int, replica: int, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 * step + 10 * replica + len(shape)))


def reduce_compressed(folder: Path) -> None:
    """Write the gradients of three updates of a linear layer, reduced by PowerSGD on 2 x 2 ranks, and the error."""
    mesh = init_mesh("hsdp", 2, CPU)
    assert mesh is not None
    model = shard(nn.Linear(16, 24), mesh_of_backward(mesh, compressed=True))
    reducer = PowerSGD(model, CompressionConfig(rank=4, blocks=2), mesh)
    reduced = {}
    for step in range(3):
        for parameter in model.parameters():
            given = gradient(step, mesh.get_local_rank("replicate"), parameter.shape)
            parameter.grad = from_local(own_shard(given, parameter).clone(), parameter)
        reducer.reduce(step)
        reduced |= {f"{name}.{step}": gather(weight.grad) for name, weight in model.named_parameters()}
    replica, before = mesh.get_local_rank("replicate"), reducer._matrices[0].error.clone()
    error = gather(reducer.state_dict()[f"error_{replica}.weight"])
    reduced |= {f"error_{number}": buffer for number, buffer in enumerate(gathered(error, mesh))}
    assert reducer._matrices[0].error.equal(before)
    if distributed.is_main_process():
        save_file(reduced, folder / "reduced.safetensors")


def gathered(values: Tensor, mesh: DeviceMesh) -> list[Tensor]:
    """Return the `values` of each group of ranks."""
    parts = [torch.empty_like(values) for _ in range(mesh["replicate"].size())]
    dist.all_gather(parts, values, group=mesh.get_group("replicate"))
    return parts


def change_copy(folder: Path) -> None:
    """Write the weights of a sharded layer of which all ranks changed a row in a whole copy, and its output."""
    mesh = init_mesh("fsdp", None, CPU)
    assert mesh is not None
    torch.manual_seed(0)
    model, copy = shard(nn.Linear(4, 5), mesh), nn.Linear(4, 5)
    copy_whole(model, copy)  # before the first forward pass, as in a run that resumes
    with torch.no_grad():
        copy.weight[1] = copy.weight[4] + 1
    copy_to(model.weight, copy.weight)
    output = model(torch.ones(1, 4)).detach()
    weight = gather(model.weight).detach()
    if distributed.is_main_process():
        save_file({"weight": weight, "output": output}, folder / "whole.safetensors")


def on_two(folder: Path) -> None:
    change_copy(folder)
    for name in OPTIONS:
        for mode in ("fsdp", "ddp"):
            train_blocks(folder / mode, name, mode)
    for name in ("validated", "validated with whole weights"):
        train_blocks(folder / "fsdp", name, "fsdp")
    for name in RESUMED:
        train_blocks(folder / "four then two", name, "fsdp")
        train_blocks(folder / "one then two", name, "fsdp")
        train_blocks(folder / "four then two unsharded", name, "ddp")
    for name in COMPRESSIONS:
        train_blocks(folder / "hsdp then ddp", name, "ddp", steps=30)


def on_eight(folder: Path) -> None:
    for name in RESUMED:
        train_blocks(folder / "four then eight", name, "fsdp")


def launch(ranks: int, function: str, folder: Path) -> None:
    (folder / "rank.py").write_text(RANK)
    torchrun(ranks, folder / "rank.py", function, folder, search=(Path(__file__).parent,))


def weights(folder: Path) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in load_file(folder / "model.safetensors").values()])


def losses(folder: Path, split: str = "train") -> list[float]:
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in read if line["split"] == split and line["loss"] is not None]  # None: skipped
