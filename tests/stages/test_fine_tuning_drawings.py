"""Fine-tuning of the bundled model of drawings on fifty images, beside training from random weights."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from dalle.bundled import checkpoint_folder

PIPS = [(), (4,), (0, 8), (0, 4, 8), (0, 2, 6, 8), (0, 2, 4, 6, 8), (0, 2, 3, 5, 6, 8)]  # of nine places
COLOURS = {"red": "#c9302c", "green": "#2e8b57", "blue": "#2b5fb8", "black": "#222222"}
UPDATES = 25


def write_dominoes(folder: Path) -> None:
    """Write 100 dominoes and their captions; each differs from all others in its numbers or its colour."""
    folder.mkdir()
    for number in range(100):
        upper, lower, colour = number % 7, number // 7 % 7, list(COLOURS)[number % 4]
        image = Image.new("RGB", (128, 128), "white")
        pen = ImageDraw.Draw(image)
        pen.rounded_rectangle((34, 6, 94, 122), 10, fill=COLOURS[colour])
        pen.line((40, 64, 88, 64), fill="white", width=3)
        for top, pips in ((20, PIPS[upper]), (76, PIPS[lower])):
            for place in pips:
                x, y = 48 + 16 * (place % 3), top + 16 * (place // 3)
                pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill="white")
        image.save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(f"a {colour} domino, {upper} above {lower}")


@pytest.mark.slow
def test_fine_tuning_the_bundled_model_beats_training_from_scratch_on_fifty_images(train, tmp_path):
    write_dominoes(tmp_path / "dominoes")
    common = ["stage=transformer", "preset=drawings", "data=folder", f"data.path={tmp_path / 'dominoes'}"]
    common += ["data.image_size=128", "data.validation_share=0.5", "wandb.mode=disabled", "device=cpu"]
    common += [f"stage.steps={UPDATES}", f"stage.optimizer.learning_rate.steps={UPDATES}", "stage.batch_size=8"]
    common += ["stage.optimizer.learning_rate.delay=0", "stage.optimizer.warmup_steps=10", "stage.ema.decay=0.9"]
    common += ["stage.image_targets=argmax", "stage.preview_every=0", "stage.precision=float32"]
    box = checkpoint_folder("drawings")

    def held_out(run: str, *more: str) -> dict[str, float]:
        status, printed = train(f"run={run}", *common, *more)
        assert status == 0, printed
        lines = Path(f"outputs/transformer/{run}/metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines if '"val"' in line][-1]

    for seed in (0, 1):
        tuned = held_out(f"tuned{seed}", f"seed={seed}", "init=drawings")
        scratch = held_out(  # with the bundled tokenizer, so that losses of the text are comparable
            f"scratch{seed}",
            f"seed={seed}",
            f"dvae={box / 'dvae'}",
            f"stage.tokenizer={box / 'transformer'}/tokenizer.json",
        )
        print(f"seed {seed}: image {tuned['image']:.3f} from drawings, {scratch['image']:.3f} from scratch")
        assert tuned["image"] < 0.9 * scratch["image"]
        assert tuned["loss"] < 0.9 * scratch["loss"]
