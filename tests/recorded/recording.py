"""Record losses, samples and metrics of all stages, to detect changes: python tests/recorded/recording.py

Run it after a change that is to move numbers, and say in the commit why they moved.
"""

import json
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dalle import DALLE
from dalle.cli.config import compose
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.metrics import alignment, log_likelihood, reconstruction
from dalle.seeds import seed_global_generators
from dalle.stages import STAGES
from dalle.stages.data_module import StageContext
from dalle.training.loop import train
from dalle.training.run import Run

FILE = Path(__file__).with_name("recorded.json")
STEPS = 50
CPU = torch.device("cpu")
CAPTIONS = ["a small red circle above a large blue square", "three green triangles"]
DATA = ["data=blocks", "data.image_size=32", "data.train=256", "data.val=16", "data.novel=16", "wandb.mode=disabled"]
COMMON = ["precision=float32", "workers=0", "log_every=1", f"steps={STEPS}", "validation_images=16"]
COMMON += ["validate_every=0", "preview_every=0", "save_every=0"]
SIZES = {
    "dvae": ["model.width=16", "model.vocabulary=32", "batch_size=8", "kl_weight.start=6.6"],
    "clip": ["model.image_width=32", "model.text_width=32", "model.image_depth=1", "model.text_depth=1"],
    "transformer": ["model.width=32", "model.depth=3", "model.patterns=[paper]", "model.kernel=3", "batch_size=16"],
    "decoder": ["model.width=16", "batch_size=8"],
}
SCHEDULES = {"dvae": 1200, "clip": 1100, "transformer": 2500, "decoder": 1500}  # of the learning rate: it hardly falls


def record() -> dict[str, Any]:
    """Train, sample and evaluate, on one thread so that sums have a fixed order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return {"processor": processor_digest(), **_recorded(Path(folder))}
    finally:
        torch.set_num_threads(threads)


def processor_digest() -> str:
    """Return a hash of operator outputs, equal where this torch on this processor gives the same bits."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(48, 96, generator=generator) for _ in range(2))
    image, kernel = torch.randn(2, 16, 16, 16, generator=generator), torch.randn(16, 16, 3, 3, generator=generator)
    heads = torch.randn(3, 2, 4, 20, 8, generator=generator)
    products = F.linear(x, weight), x.mT @ weight, F.conv2d(image, kernel), F.scaled_dot_product_attention(*heads)
    others = x.softmax(1), x.exp(), x.abs().log(), F.silu(x), F.gelu(x), F.layer_norm(x, (96,)), x.sum(0), x.sigmoid()
    return sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in (*products, *others))).hexdigest()[:16]


def _recorded(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"losses": {}, "validation": {}, "tensors": {}}
    for name in STAGES:
        schedule = f"optimizer.learning_rate.steps={SCHEDULES[name]}"
        settings = [f"stage.{setting}" for setting in (*COMMON, *SIZES[name], schedule)]
        config = compose("train", [f"stage={name}", "preset=tiny", *DATA, *settings])
        seed_global_generators("initial weights", 0)
        dvae = folder / "dvae" if name in ("transformer", "decoder") else None
        stage = STAGES[name].build(config.stage, config.data, StageContext(0, CPU, dvae))
        train(stage, config.stage, Run(folder / name, {"stage": {"steps": STEPS}}, wandb=config.wandb))
        lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        found["losses"][name] = [line["loss"] for line in lines if line["split"] == "train"]
        (validation,) = (line for line in lines if line["split"] == "val")
        found["validation"][name] = {key: value for key, value in validation.items() if isinstance(value, float)}
        found["tensors"][name] = {key: list(tensor.shape) for key, tensor in stage.model.state_dict().items()}
    dalle = DALLE.load(folder)
    for name, guidance in (("tokens", 1.0), ("guided_tokens", 2.0)):
        drawn = dalle.generate_many(CAPTIONS, candidates=4, keep=2, guidance=guidance, seed=3)
        found[name] = [result.tokens.flatten().tolist() for result in drawn]
    found["metrics"] = _metrics(folder)
    return found


def _metrics(folder: Path) -> dict[str, float]:
    config = EvaluateConfig(str(folder), captions=8, candidates=4, pairs=16, device="cpu")
    context = EvaluationContext.load(config)
    results = (metric.measure(context, config).numbers for metric in (reconstruction, log_likelihood, alignment))
    return {name: float(value) for numbers in results for name, value in numbers.items()}


if __name__ == "__main__":
    FILE.write_text(json.dumps(record(), indent=1) + "\n")
    print(f"written to {FILE}")
