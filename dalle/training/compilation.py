"""Compilation of a model's residual blocks by `torch.compile`, each block a graph of its own.

Blocks with equal sizes share one graph, so that compilation does not take longer for a deeper model. Everything else is
not compiled: embeddings, heads, and the hooks of DDP and FSDP, which gather and reduce around each block.
"""

import logging

import torch
from torch import nn

from dalle import distributed
from dalle.models.dvae.model import DiscreteVAE
from dalle.training.sharding import sharding_units

log = logging.getLogger(__name__)
MAX_GRAPHS = 64  # one for each size of a block; torch's limit of 8 is less than the dVAE has


def compile_blocks(model: nn.Module, device: torch.device) -> str:
    """Compile the residual blocks of `model` in place; each is compiled when first called. Returns a line for the log.

    Call it before the model is wrapped or sharded. Names of weights stay as they are, and copies of the model are not
    compiled. Shapes are taken as constant: another batch size is compiled anew. Logs a warning for a dVAE on a CPU.

    Raises ValueError if there are no residual blocks, or no compiler for the device.
    """
    blocks = sharding_units(model)
    if not blocks:
        raise ValueError("this model has no residual blocks, which compile=true compiles: set compile=false")
    check_compiler(device)
    if isinstance(model, DiscreteVAE) and device.type == "cpu" and distributed.is_main_process():
        log.warning(
            "compile=true makes a dVAE slower on a CPU, .80 to .85 times as fast (benchmarks/README.md, section "
            "Compiled blocks): set compile=false"
        )
    torch._dynamo.config.cache_size_limit = max(MAX_GRAPHS, torch._dynamo.config.cache_size_limit)
    # blocks are smaller than DDP's buckets, so that splitting their graphs would not send gradients earlier
    torch._dynamo.config.optimize_ddp = False
    for block in blocks:
        block.compile(dynamic=False)
    return f"{len(blocks)} residual blocks are compiled; the first update takes longer"


def check_compiler(device: torch.device) -> None:
    """Compile a function of one operation. Raises ValueError if that fails, for lack of a compiler for example."""
    try:
        torch.compile(torch.neg)(torch.ones(1, device=device))
    except Exception as error:  # of dynamo, inductor, triton or the compiler that they call
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        needed = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++"
        raise ValueError(
            f"compile=true needs {needed}, which did not work here ({reason.strip()}): install it, or set compile=false"
        ) from error
