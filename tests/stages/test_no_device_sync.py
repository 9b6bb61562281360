"""No device synchronisation in an update: tested on torch's meta device, where reading a number raises.

Needs no GPU; `test_stages_on_gpu.py` tests with CUDA."""

from contextlib import nullcontext

import pytest
import torch
from test_stages_on_gpu import MODELS, trainer_of
from torch.utils._python_dispatch import TorchDispatchMode

from dalle.training import loop, optimizer

META = torch.device("meta")
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class NoWaitingCopies(TorchDispatchMode):
    """Raise at blocking copies between devices."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function in COPIES:
            source = args[0] if function is torch.ops.aten._to_copy.default else args[1]
            waits = not (kwargs.get("non_blocking") or args[2:3] == (True,))
            assert source.device == result.device or not waits, f"a copy waits for {result.device}: {result.shape}"
        return result


@pytest.fixture
def on_meta(monkeypatch):
    """Replace what the meta device lacks: generators, autocast, and torch's fused AdamW."""
    monkeypatch.setattr(loop, "torch_generator", lambda *numbers, device: None)
    monkeypatch.setattr(loop, "autocast", lambda precision, device: nullcontext())
    monkeypatch.setattr(optimizer.AdamW, "step", lambda self: None)


@pytest.mark.parametrize("model", MODELS)
def test_update_has_no_device_sync(on_meta, model, dvae_folder, tmp_path):
    name, changes = MODELS[model]
    changes = {"precision": "float32", "accumulate": 2, "log_gradient_norms": True, **changes}
    trainer = trainer_of(name, META, dvae_folder, tmp_path, **changes)
    with NoWaitingCopies():
        trainer.update()
        trainer.update()
    assert {parameter.device for parameter in trainer.stage.model.parameters()} == {META}
