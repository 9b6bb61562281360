"""Queue, cancelling and event streams of the studio."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from running_studio import running

from dalle.sampling.pipeline import DALLE
from dalle.sampling.rerank import Reranker
from dalle.studio.errors import ApiError
from dalle.studio.events import EventLog
from dalle.studio.jobs import Job, JobQueue
from dalle.studio.serial_executor import SerialExecutor


class Brake:
    """Makes a studio's drawings stop before each batch until they are let go."""

    def __init__(self, studio):
        drawer = studio.session.jobs._run
        self.waiting, self.go = threading.Semaphore(0), threading.Semaphore(0)
        whole = type(drawer)._decode_batch

        def finished(own, job, config, tokens, first):
            images = whole(own, job, config, tokens, first)
            self.waiting.release()
            assert self.go.acquire(timeout=30)
            return images

        self.patch = finished


@pytest.fixture
def braked(make_session, monkeypatch):
    with running(make_session(queue=2)) as studio:
        brake = Brake(studio)
        monkeypatch.setattr(type(studio.session.jobs._run), "_decode_batch", brake.patch)
        yield studio, brake
        for _ in range(100):
            brake.go.release()


def test_cancelling_keeps_and_ranks_what_is_finished(braked):
    studio, brake = braked
    job = studio.draw(candidates=20, seed=4)
    for _ in range(2):  # the batches of 1 and 4
        assert brake.waiting.acquire(timeout=30)
        brake.go.release()
    assert brake.waiting.acquire(timeout=30)  # the third is drawn, and kept too: it was finished before the cancelling
    studio.client.post(f"/api/jobs/{job}/cancel")
    brake.go.release()
    events = dict(studio.events(job))
    assert events["cancelled"] == {"kept": 13} and "done" not in events
    ranked = events["ranked"]["images"]
    assert sorted(image["candidate"] for image in ranked) == list(range(13))
    expected = studio.session.dalle.generate("a red circle", candidates=13, keep=13, seed=4)
    assert [image["candidate"] for image in ranked] == expected.candidates
    assert all(studio.client.get(f"/api/images/{image['id']}").status_code == 200 for image in ranked)


class SlowScore:
    """A score of two batches. Waits between them until it is let go."""

    def __init__(self):
        self.waiting, self.go, self.finished = threading.Event(), threading.Event(), False

    def __call__(self, candidates, on_chunk):
        self.waiting.set()
        assert self.go.wait(30)
        on_chunk()
        self.finished = True
        return torch.arange(len(candidates.tokens)).float()


@pytest.fixture
def slow_score(monkeypatch) -> SlowScore:
    score = SlowScore()
    monkeypatch.setattr(DALLE, "reranker", lambda *_: Reranker({"clip": score}, {"clip": 1.0}))
    return score


def test_cancelling_while_candidates_are_ranked_keeps_them_as_they_were_drawn(studio, slow_score):
    job = studio.draw(candidates=6, keep=4, seed=4)
    assert slow_score.waiting.wait(30)
    studio.client.post(f"/api/jobs/{job}/cancel")
    slow_score.go.set()
    events = dict(studio.events(job))
    assert events["cancelled"] == {"kept": 4} and "done" not in events
    kept = events["ranked"]["images"]
    assert [(image["candidate"], image["score"]) for image in kept] == [(number, None) for number in range(4)]
    assert not slow_score.finished
    record = studio.session.store.find_drawn(kept[0]["id"]).record
    assert (record["score"], record["settings"]["rerank"]) == (None, "none")


def test_candidates_of_a_cancelled_drawing_are_ranked_unless_it_is_cancelled_again(braked, slow_score):
    studio, brake = braked
    for again in (False, True):
        slow_score.waiting.clear()
        slow_score.go.clear()
        job = studio.draw(candidates=20, seed=4)
        assert brake.waiting.acquire(timeout=30)
        studio.client.post(f"/api/jobs/{job}/cancel")
        brake.go.release()
        assert slow_score.waiting.wait(30)
        if again:
            studio.client.post(f"/api/jobs/{job}/cancel")
        slow_score.go.set()
        events = dict(studio.events(job))
        assert events["cancelled"] == {"kept": 1}
        assert [image["score"] for image in events["ranked"]["images"]] == [None if again else 0.0]


def test_a_full_queue_refuses_and_says_so(braked):
    studio, brake = braked
    first = studio.draw(candidates=1)
    assert brake.waiting.acquire(timeout=30)  # it is drawn
    answers = [studio.client.post("/api/jobs", json={"caption": "a red circle", "candidates": 1}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert [answer.json()["position"] for answer in answers[:2]] == [1, 2]
    assert answers[2].json()["error"]["type"] == "queue_full"
    for _ in range(3):
        brake.go.release()
    for job in (first, *(answer.json()["job"] for answer in answers[:2])):
        assert studio.events(job)[-1][0] == "done"


def test_a_waiting_drawing_is_cancelled_at_once(braked):
    studio, brake = braked
    first = studio.draw(candidates=1)
    assert brake.waiting.acquire(timeout=30)
    second, third = studio.draw(candidates=1), studio.draw(candidates=1)
    studio.client.post(f"/api/jobs/{second}/cancel")
    assert studio.events(second) == [("ranked", {"images": []}), ("cancelled", {"kept": 0})]
    for _ in range(2):
        brake.go.release()
    assert studio.events(first)[-1][0] == studio.events(third)[-1][0] == "done"
    studio.client.post(f"/api/jobs/{first}/cancel")  # too late: it stays done
    assert studio.events(first)[-1][0] == "done"


def test_a_drawing_that_fails_does_not_stop_the_next(studio, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(type(studio.session.jobs._run), "_rank", fail)
        name, data = studio.events(studio.draw(candidates=1))[-1]
    assert (name, "RuntimeError" in data["message"]) == ("failed", True)
    assert "out of luck" not in data["message"] and "out of luck" in capsys.readouterr().err
    assert studio.drawn(candidates=1)


def run(coroutine: Coroutine[Any, Any, list[str]]) -> list[str]:
    """Run a coroutine in a thread: in this one, Playwright's loop runs if browser tests came before."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def read_all(log: EventLog, pause: float = 0.0) -> list[str]:
    async def read() -> list[str]:
        found = []
        async for text in log.read(keep_alive=0.05):
            found.append(text)
            await asyncio.sleep(pause)
        return found

    return run(read())


def test_a_slow_reader_skips_previews_but_no_lasting_event():
    log = EventLog()

    def write() -> None:
        for number in range(200):
            log.show_progress("partial", number)
            if number % 50 == 49:
                log.append("image", number)
            time.sleep(0.001)
        log.append("done", {}, last=True)

    writer = threading.Thread(target=write)
    writer.start()
    text = "".join(read_all(log, pause=0.05))
    writer.join()
    assert [number for number in range(200) if f"event: image\ndata: {number}\n" in text] == [49, 99, 149, 199]
    assert text.count("event: partial") < 20
    assert text.endswith("event: done\ndata: {}\n\n")


def test_a_silent_stream_is_kept_alive_and_a_reader_that_leaves_is_forgotten():
    log = EventLog()

    async def read_a_little() -> list[str]:
        found = []
        async for text in log.read(keep_alive=0.01):
            found.append(text)
            if len(found) == 3:
                break
        return found

    async def main() -> list[str]:
        found = await read_a_little()
        await asyncio.get_running_loop().shutdown_asyncgens()
        return found

    assert run(main()) == [": keep-alive\n\n"] * 3
    assert not log._readers
    log.append("done", {}, last=True)
    log.append("image", 1)  # ignored after the last event
    assert read_all(log) == ["event: done\ndata: {}\n\n"]


def test_drawings_are_drawn_after_a_failed_warm_up(capsys):
    drawn = threading.Event()

    def warm_up() -> None:
        raise RuntimeError("out of memory")

    def draw(job: Job) -> None:
        drawn.set()
        job.events.append("done", {}, last=True)

    jobs = JobQueue(draw, 4, warm_up)
    jobs.submit(Job(None, None, None))
    assert drawn.wait(30)
    jobs.close()
    assert "out of memory" in capsys.readouterr().err


def test_a_finished_job_stays_finished_when_the_studio_stops_and_holds_no_canvas():
    jobs = JobQueue(lambda job: job.events.append("done", {}, last=True), 4)
    job = Job(None, None, canvas=object())
    jobs.submit(job)
    while not job.events.ended or job.canvas is not None:
        time.sleep(0.01)
    jobs.close()
    assert job.failure == ""
    failed = Job(None, None, None)
    failed.fail("no memory")
    failed.fail("the studio was stopped")
    assert failed.failure == "no memory"


def test_image_work_is_serial_and_bounded():
    executor, go, order = SerialExecutor(2), threading.Event(), []

    def work(number: int) -> int:
        go.wait(30)
        order.append(number)
        return number

    async def main() -> list[str]:
        first = asyncio.ensure_future(executor.run(work, 1))
        second = asyncio.ensure_future(executor.run(work, 2))
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as refused:
            await executor.run(work, 3)
        assert refused.value.status_code == 429
        go.set()
        assert [await first, await second, await executor.run(work, 4)] == [1, 2, 4]
        return []

    run(main())
    assert order == [1, 2, 4]
