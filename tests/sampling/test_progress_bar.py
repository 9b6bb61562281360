import io

import pytest

from dalle.sampling.progress_bar import SamplingProgress, SamplingStopped


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_shows_finished_images_on_a_terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("dalle.progress.DELAY", 0)
    with SamplingProgress(8, shown=True, stop=lambda: False) as advance:
        for _ in range(16):
            advance(0.25)
    assert "4/8 images" in screen.getvalue()


@pytest.mark.parametrize(
    ("shown", "screen"), [(False, Terminal()), (True, io.StringIO())], ids=["unasked", "no screen"]
)
def test_bar_is_hidden_unless_requested_and_on_a_terminal(monkeypatch, shown, screen):
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("dalle.progress.DELAY", 0)
    with SamplingProgress(8, shown, stop=lambda: False) as advance:
        advance(8)
    assert screen.getvalue() == ""


def test_stop_request_raises_at_next_update():
    asked = []
    with SamplingProgress(8, shown=False, stop=lambda: bool(asked)) as advance:
        advance(1)
        asked.append(True)
        with pytest.raises(SamplingStopped):
            advance(1)
