"""Measure a trained model on data it has not seen: python evaluate.py checkpoint=outputs/demo"""

import json
from pathlib import Path

from dalle import checkpoint, distributed
from dalle.config import verb
from dalle.data import open_source, read_config
from dalle.data.blocks import BlocksSource
from dalle.evaluation.captions import caption_metrics, share_held
from dalle.evaluation.reconstruction import reconstructed_images, reconstruction_metrics
from dalle.evaluation.settings import EvaluateConfig
from dalle.sampling.pipeline import DALLE, find_parts


@verb("evaluate")
def main(config: EvaluateConfig) -> None:
    parts = find_parts(config.checkpoint, config.dvae, config.clip)
    _, meta = checkpoint.read_config(parts["transformer"], "transformer")
    data = read_config(meta["data"])
    dalle = DALLE.load(config.checkpoint, distributed.start(config.device), config.dvae, config.clip)

    val = open_source(data, "val")
    metrics = reconstruction_metrics(dalle.dvae, val, config.pictures)
    splits = {"val": val}
    if isinstance(val, BlocksSource):
        images = reconstructed_images(dalle.dvae, val, config.pictures)
        statements = [val.scene(index).statement for index in range(len(images))]
        metrics["dvae_hard_judge"] = share_held(images, statements)
        splits["novel"] = open_source(data, "novel")
    for split, source in splits.items():
        metrics |= caption_metrics(
            dalle, source, split, config.captions, config.candidates, config.seed, config.batch_size
        )

    out = Path(config.out or Path(config.checkpoint) / "metrics.json")
    out.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    for name, value in metrics.items():
        print(f"{name:20} {value:.4f}")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
