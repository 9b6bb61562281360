"""Executor of the work on images: one function at a time, a bounded number that wait."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import BoundedSemaphore
from typing import TypeVar

from dalle.studio.errors import ApiError

T = TypeVar("T")


class SerialExecutor:
    """Thread that runs one function at a time, so that the server's other threads stay free for short work."""

    def __init__(self, limit: int):
        """limit: functions that run or wait."""
        self.limit = limit
        self._slots = BoundedSemaphore(limit)
        self._executor = ThreadPoolExecutor(1, "studio images")

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a function when those before it have ended, and return what it returns.

        Raises:
            ApiError: too many wait already.
        """
        if not self._slots.acquire(blocking=False):
            raise ApiError(429, f"{self.limit} images are being worked on already; try again in a moment")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *arguments))
        finally:
            self._slots.release()

    def close(self) -> None:
        """Forget the functions that wait."""
        self._executor.shutdown(wait=False, cancel_futures=True)
