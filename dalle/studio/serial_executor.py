"""Executor of the work on images: one function at a time, a bounded number that wait."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from dalle.studio.errors import ApiError

T = TypeVar("T")


class SerialExecutor:
    """Runs one function at a time in a thread, so that the server's other threads stay free for short work."""

    def __init__(self, limit: int):
        """limit: functions that run or wait."""
        self.limit = limit
        self._count = 0
        self._lock = asyncio.Lock()

    def check_capacity(self) -> None:
        """Raise ApiError if too many functions wait already."""
        if self._count >= self.limit:
            raise ApiError(429, f"{self.limit} images are being worked on already; try again in a moment")

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a function when those before it have ended, and return what it returns.

        Raises:
            ApiError: too many wait already.
        """
        self.check_capacity()
        self._count += 1
        try:
            async with self._lock:
                return await asyncio.to_thread(function, *arguments)
        finally:
            self._count -= 1
