"""CPU settings apply to the whole process, so the test runs in a process of its own."""

import subprocess
import sys


def test_denormals_flush_to_zero_in_forward_and_backward_within_context():
    code = """
import torch
from dalle.training.cpu import configure_cpu

def small():
    x = torch.full((1000,), 1e-39)
    y = torch.full((1000,), 1e-20, requires_grad=True)
    (y * 1e-19 * 1e-21).sum().backward()
    return (x * 1).any().item(), y.grad.any().item(), (torch.tensor(1e-37) * 1).item() > 0

with configure_cpu(torch.device("cpu")):
    print(small())
print(small())
with configure_cpu(torch.device("meta")):
    print(small())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == ["(False, False, True)", "(True, True, True)", "(True, True, True)"]
