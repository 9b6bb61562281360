import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def sample(*overrides: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "sample.py"), *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_sample_draws_ranks_and_says_where_the_pictures_are(checkpoints, tmp_path):
    out = tmp_path / "drawn"
    done = sample(
        f"checkpoint={checkpoints}",
        'captions=["a red circle","three green triangles, small"]',
        "candidates=5",
        "keep=2",
        "seed=3",
        f"out={out}",
    )
    assert done.returncode == 0, done.stderr
    assert str(out / "grid.png") in done.stdout
    facts = json.loads((out / "samples.json").read_text())
    assert [entry["caption"] for entry in facts["captions"]] == ["a red circle", "three green triangles, small"]
    assert set(facts["settings"]["digests"]) == {"dvae", "transformer", "clip"}
    assert facts["settings"]["seed"] == 3
    assert len(list(out.glob("*.png"))) == 1 + 4


def test_sample_without_a_caption_says_how_to_give_one(checkpoints):
    failed = sample(f"checkpoint={checkpoints}")
    assert failed.returncode != 0
    assert 'caption="a red circle"' in failed.stderr
    assert "Traceback" not in failed.stderr


def test_sample_without_a_checkpoint_names_it(tmp_path):
    failed = sample(f"checkpoint={tmp_path / 'nowhere'}", "caption=x")
    assert failed.returncode != 0
    assert f"no checkpoint at {tmp_path / 'nowhere'}" in failed.stderr
    assert "Traceback" not in failed.stderr
