"""Being asked to stop, by Ctrl-C or by a scheduler: finish the update, save, and say how to go on."""

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Training was asked to stop and has saved its state; the message says how to go on."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number  # of the signal


class StopRequest:
    """While entered, Ctrl-C and SIGTERM are noted in `number`; a second Ctrl-C acts as it always does."""

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = {each: signal.signal(each, self._note) for each in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
