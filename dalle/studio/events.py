"""Event log of one drawing, for any number of readers. A slow reader delays neither the writer nor other readers.

All persistent events are kept, in order. Of progress events, only the newest of each name is kept: a slow or late
reader skips the earlier ones.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from threading import Lock
from typing import Any

KEEP_ALIVE = 10.0  # seconds between comments on a silent stream, which find out that a reader has gone


class EventLog:
    """Events that one thread writes and asynchronous readers read, each from the start."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._lasting: list[str] = []
        self._newest: dict[str, tuple[int, str]] = {}  # name: (version, event)
        self._version = 0
        self.final_event: tuple[str, Any] | None = None  # name and data of the event that ended the log
        self._readers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    @property
    def ended(self) -> bool:
        """True once the final event was appended."""
        return self.final_event is not None

    def append(self, name: str, data: Any, last: bool = False) -> None:
        """Append a persistent event and remove all progress events. No effect once the log has ended.

        last: this event ends the log, and all streams.
        """
        with self._lock:
            if self.final_event is not None:
                return
            self._newest.clear()
            self._lasting.append(_format(name, data))
            if last:
                self.final_event = name, data
        self._wake()

    def show_progress(self, name: str, data: Any) -> None:
        """Replace the progress event `name`. No effect once the log has ended."""
        with self._lock:
            if self.final_event is not None:
                return
            self._version += 1
            self._newest[name] = self._version, _format(name, data)
        self._wake()

    async def read(self, keep_alive: float = KEEP_ALIVE) -> AsyncGenerator[str, None]:
        """Yield the events so far and then new ones, as text of server-sent events, until the last one."""
        has_new_events = asyncio.Event()
        reader = asyncio.get_running_loop(), has_new_events
        with self._lock:
            self._readers.add(reader)
        try:
            position, version, ended = 0, 0, False
            while not ended:
                has_new_events.clear()
                text, position, version, ended = self._events_since(position, version)
                if text:
                    yield text
                    continue
                try:
                    await asyncio.wait_for(has_new_events.wait(), keep_alive)
                except asyncio.TimeoutError:
                    yield ": keep-alive\n\n"
        finally:
            with self._lock:
                self._readers.discard(reader)

    def _events_since(self, position: int, version: int) -> tuple[str, int, int, bool]:
        """Return the events that a reader has not seen, its new position and version, and if there will be no more."""
        with self._lock:
            newest = sorted(entry for entry in self._newest.values() if entry[0] > version)
            text = "".join([*self._lasting[position:], *(event for _, event in newest)])
            return text, len(self._lasting), self._version, self.final_event is not None

    def _wake(self) -> None:
        with self._lock:
            readers = list(self._readers)
        for loop, has_new_events in readers:
            if not loop.is_closed():
                loop.call_soon_threadsafe(has_new_events.set)


def _format(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
