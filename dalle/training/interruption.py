"""Signal handling: on Ctrl-C or SIGTERM training finishes the update, saves its state and stops."""

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Training was interrupted by a signal and has saved its state; the message says how to resume."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number  # signal number


class StopRequest:
    """Context that records SIGINT or SIGTERM in `number`; a second Ctrl-C raises KeyboardInterrupt as usual."""

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # handlers need the main thread
            self._previous = {each: signal.signal(each, self._note) for each in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
