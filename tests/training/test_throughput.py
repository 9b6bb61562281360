"""FLOPs of models, MFU, and peak rates of devices."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from dalle.models.clip.model import CLIP, CLIPConfig
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.training.flops import ImageCost, forward_flops
from dalle.training.monitor import throughput
from dalle.training.monitor.throughput import Throughput, peak_of_gpu

CPU = torch.device("cpu")


def test_flops_of_a_linear_layer_are_two_for_each_weight():
    assert forward_flops(nn.Linear(8, 16), (5, 8)) == 2 * 5 * 8 * 16


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_flops_of_the_transformer_follow_the_formula(attention):
    """2 N per position for N weights in products, and 4 n width for the attention of each position and layer."""
    config = TransformerConfig(6, 11, 13, grid=4, width=16, depth=2, heads=2, patterns=["dense"], attention=attention)
    model, positions = Transformer(config), 6 + 16
    matrices = sum(parameter.numel() for parameter in model.layers.parameters() if parameter.ndim == 2)
    heads = 2 * 16 * (6 * (11 + 1) + 16 * 13)
    expected = 2 * matrices * positions + 2 * 4 * positions * positions * 16 + heads
    counted = forward_flops(model, (6,), (16,), integers=True)
    if attention == "dense":
        assert counted == expected
    else:  # text positions do not attend to the image
        assert counted == expected - 2 * 4 * 6 * 16 * 16


def test_flops_of_the_dvae_and_clip_grow_with_the_image():
    dvae = DiscreteVAE(DVAEConfig(vocabulary=13, width=8, groups=2, blocks_per_group=1, decoder_input=8))
    small, large = (forward_flops(dvae.encoder, (3, size, size)) for size in (8, 16))
    assert large == 4 * small > 0
    for encoder in ("vit", "resnet"):
        sizes = {"image_width": 64, "image_heads": 2, "image_size": 32, "patch": 8, "embedding": 8}
        clip = CLIP(CLIPConfig(image_encoder=encoder, image_depth=1, image_blocks=[1, 1, 1, 1], text_width=16, **sizes))
        assert forward_flops(clip.image, (3, 32, 32)) > 0


def test_counting_changes_neither_the_model_nor_the_random_numbers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    state, before = torch.get_rng_state(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forward_flops(model, (3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_mfu_is_the_needed_share_of_the_peak(monkeypatch):
    monkeypatch.setattr(throughput, "measure", lambda precision, threads: 6e9)
    metrics = Throughput(ImageCost(1e6, tokens=96), CPU, "float32").metrics(images_per_second=1000)
    assert metrics["mfu"] == pytest.approx(1000 * 3e6 / 6e9)
    assert metrics["tokens_per_second"] == 96_000


def test_mfu_is_left_out_with_a_reason_where_it_is_unknown():
    found = Throughput(ImageCost(1e6), torch.device("meta"), "float32")
    assert set(found.metrics(1.0)) == {"memory_gb"}
    assert "no peak rate of meta is known" in found.message
    assert set(Throughput(None, CPU, "float32").metrics(1.0)) == {"memory_gb"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_cpu_is_measured(precision):
    assert 1e8 < throughput.measure(precision, torch.get_num_threads()) < 1e14


PEAKS = """
import os, sys, torch
from dalle.training.monitor.throughput import peak_memory

if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
cpu = torch.device("cpu")
before = peak_memory(cpu)
block = b"1" * 2**28
grown = peak_memory(cpu)
del block
print(before, grown, peak_memory(cpu))
"""


def test_peak_memory_of_a_cpu_is_that_of_the_process():
    # forked, since a process begins with the peak of the one that started it, which may be higher than the block
    run = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    before, grown, after = map(int, run.stdout.split())
    assert 2**26 < before < 2**33  # of Python and torch, in bytes
    assert 0.9 * 2**28 < grown - before < 1.2 * 2**28
    assert after >= grown


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H200", "bfloat16", 989.4),
        ("NVIDIA H200 NVL", "bfloat16", 835),
        ("NVIDIA A100-SXM4-80GB", "float32", 19.5),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156),
        ("NVIDIA H100 80GB HBM3", "tf32", 494.7),
        ("NVIDIA L4", "tf32", 60.5),
        ("Tesla T4", "tf32", 8.1),
        ("NVIDIA A10G", "float16", 70),
        ("NVIDIA L40S", "bfloat16", 362),
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("Tesla V100S-PCIE-32GB", "float16", 130),
        ("Tesla T4", "float16", 65),
        ("NVIDIA GH200 480GB", "bfloat16", 989.4),
        ("NVIDIA GB200", "bfloat16", 2500),
        ("NVIDIA RTX A6000", "float32", 38.7),
        ("NVIDIA GeForce RTX 4090", "float32", 82.6),
        ("GeForce 256", "float32", None),
        # no card of the table, though their names have such a card's letters
        ("NVIDIA RTX A4000", "float32", None),
        ("NVIDIA RTX A1000", "float32", None),
        ("NVIDIA RTX A400", "float32", None),
        ("NVIDIA T400 4GB", "float32", None),
        ("NVIDIA GeForce RTX 3090 Ti", "float32", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "float32", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "float32", None),
    ],
)
def test_the_peak_of_a_gpu_is_that_of_its_name(name, precision, teraflops):
    peak = peak_of_gpu(name, precision)
    assert peak is teraflops if teraflops is None else peak == pytest.approx(teraflops * 1e12)
