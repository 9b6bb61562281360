"""The CPU's set-up holds for the whole process, so each test has one of its own."""

import subprocess
import sys


def printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def test_numbers_too_small_to_matter_count_as_zero_forward_and_backward():
    code = """
import torch
from dalle.training.cpu import set_up_cpu
set_up_cpu()
x = torch.full((1000,), 1e-39, requires_grad=True)
y = torch.full((1000,), 1e-20, requires_grad=True)
(y * 1e-19 * 1e-21).sum().backward()
print((x * 1).sum().item(), y.grad.sum().item(), (torch.tensor(1e-37) * 1).item() > 0)
"""
    assert printed(code) == "0.0 0.0 True\n"
    assert printed(code.replace("set_up_cpu()\n", "\n", 1)) != "0.0 0.0 True\n"
