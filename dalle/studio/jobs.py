"""Jobs: a bounded queue of drawings, and the one thread that draws them."""

import secrets
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition, Thread

from dalle.sampling.canvas import Canvas
from dalle.sampling.progress_bar import SamplingStopped
from dalle.sampling.sampling_config import SamplingConfig
from dalle.studio.errors import ApiError
from dalle.studio.events import EventLog
from dalle.studio.requests import DrawRequest

MAX_REMEMBERED_JOBS = 256  # jobs whose events can still be read; ended ones above that are forgotten, the oldest first


@dataclass(eq=False)
class Job:
    """A drawing, from the queue to its last event."""

    request: DrawRequest
    config: SamplingConfig  # of the request, resolved
    canvas: Canvas | None  # of its edit, for all candidates
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    events: EventLog = field(default_factory=EventLog)
    images: list[str] = field(default_factory=list)  # ids of the kept images, best first, once ranked
    cancel_requests: int = 0

    @property
    def cancelled(self) -> bool:
        """True once the job was asked to stop."""
        return self.cancel_requests > 0

    def raise_if_cancelled(self, *_: object) -> None:
        """Raise `SamplingStopped` if the job was cancelled: a progress callback of sampling."""
        if self.cancelled:
            raise SamplingStopped

    @property
    def failure(self) -> str:
        """Sentence of a job that failed; "" for others."""
        name, data = self.events.final_event or ("", {})
        return data["message"] if name == "failed" else ""

    def fail(self, sentence: str) -> None:
        """End the events with a failure. Ignored if they have ended."""
        self.events.append("failed", {"message": sentence}, last=True)


class JobQueue:
    """Jobs that wait, and a thread that runs one after the other."""

    def __init__(self, run: Callable[[Job], None], limit: int, prepare: Callable[[], None] = lambda: None):
        """Start the thread.

        run: draws a job and writes its events. limit: most jobs that wait. prepare: called once, before the first job.
        """
        self._run, self.limit, self._prepare = run, limit, prepare
        self._condition = Condition()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._closed = False
        self._thread = Thread(target=self._work, name="studio drawing", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> int:
        """Add a job. Returns the number of jobs before it.

        Raises:
            ApiError: the queue is full.
        """
        with self._condition:
            self.check_capacity()
            position = len(self._waiting) + (self._running is not None)
            self._jobs[job.id] = job
            self._forget_oldest()
            job.events.show_progress("queued", {"position": position})
            self._waiting.append(job)
            self._condition.notify()
        return position

    def check_capacity(self) -> None:
        """Raise ApiError if the queue is full or closed."""
        if self._closed:
            raise ApiError(500, "the studio is stopping")
        if len(self._waiting) >= self.limit:
            raise ApiError(429, f"{self.limit} drawings are waiting already; try again when one of them has started")

    def get(self, key: str) -> Job:
        """Return a job by its id. Raises ApiError if there is none."""
        job = self._jobs.get(key)
        if job is None:
            raise ApiError(404, "there is no such drawing; it may be too old, or of a studio that was restarted")
        return job

    def cancel(self, job: Job) -> None:
        """Cancel a job. No effect on one that has ended.

        A running job stops sampling, ranks its finished candidates and keeps the best. If it is ranking already, it
        stops and keeps the first candidates in the order of sampling.
        """
        job.cancel_requests += 1
        with self._condition:
            if job in self._waiting:
                self._waiting.remove(job)
                job.canvas = None
                job.events.append("ranked", {"images": []})
                job.events.append("cancelled", {"kept": 0}, last=True)
                self._show_positions()

    def close(self) -> None:
        """Cancel all jobs and end their events."""
        with self._condition:
            self._closed = True
            for job in self._jobs.values():
                job.cancel_requests += 1
                job.fail("the studio was stopped")
            self._waiting.clear()
            self._condition.notify()

    def join(self, seconds: float) -> None:
        """Wait for the thread to end, for at most `seconds`."""
        self._thread.join(seconds)

    def _work(self) -> None:
        try:
            self._prepare()
        except Exception:  # the first drawing will say what is wrong
            traceback.print_exc()
        while True:
            with self._condition:
                self._running = None
                self._condition.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._running = self._waiting.popleft()
                self._show_positions()
            try:
                self._run(job)
            except ValueError as error:
                job.fail(str(error))
            except Exception as error:  # the thread must live on, whatever one drawing raises
                traceback.print_exc()
                job.fail(f"the drawing failed with {type(error).__name__}; the studio's terminal says more")
            finally:
                job.canvas = None  # ended jobs are remembered for their events; a canvas holds an image

    def _show_positions(self) -> None:
        for position, job in enumerate(self._waiting, start=int(self._running is not None)):
            job.events.show_progress("queued", {"position": position})

    def _forget_oldest(self) -> None:
        ended = [key for key, job in self._jobs.items() if job.events.ended]
        for key in ended[: max(0, len(self._jobs) - MAX_REMEMBERED_JOBS)]:
            del self._jobs[key]
