"""Strip of a run's previews."""

import pytest
from PIL import Image

from dalle.training.preview_strip import MAX_PREVIEWS, main, preview_strip, spread, write_strip


def draw(folder, *steps):
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        Image.new("RGB", (40, 60), (step % 256, 0, 0)).save(folder / f"step-{step:06d}.png")


def test_previews_are_joined_in_the_order_of_steps(tmp_path):
    draw(tmp_path, 200, 50, 1_000_000)
    strip = preview_strip(tmp_path, "line/run")
    assert strip is not None
    reds = [strip.getpixel((x, 100))[0] for x in range(strip.width) if strip.getpixel((x, 100))[1:] == (0, 0)]
    assert list(dict.fromkeys(reds)) == [50, 200, 1_000_000 % 256]


def test_a_strip_needs_two_previews_and_leaves_itself_out(tmp_path, capsys):
    draw(tmp_path / "run" / "previews", 5)
    assert main([str(tmp_path / "run")]) == 0
    assert "fewer than two previews" in capsys.readouterr().out
    draw(tmp_path / "run" / "previews", 10)
    sizes = set()
    for _ in range(2):
        assert main([str(tmp_path / "run")]) == 0
        with Image.open(write_strip(tmp_path / "run" / "previews")) as image:
            sizes.add(image.size)
    assert len(sizes) == 1
    assert main([]) == 2


@pytest.mark.parametrize("count", [1, 12, 13, 600])
def test_many_previews_are_thinned_out_evenly(count):
    chosen = spread(list(range(0, 5 * count, 5)), MAX_PREVIEWS)
    assert len(chosen) == len(set(chosen)) == min(count, MAX_PREVIEWS)
    assert (chosen[0], chosen[-1]) == (0, 5 * (count - 1))
