"""The studio under load: many clients, a bounded queue, flat memory, slow readers, a killed server."""

import base64
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image
from running_studio import TOKEN, running

ROOT = Path(__file__).parents[2]
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.slow
def test_fifty_clients_at_once_get_exactly_their_own_pictures(make_session):
    """The queue holds 8 drawings, so that most clients are refused at first and try again."""
    with running(make_session(queue=8)) as studio:

        def client(seed: int) -> tuple[int, list[bytes]]:
            refused = 0
            body = {"prompt": "a red circle", "seed": seed, "n": 2}
            with httpx.Client(base_url=studio.address, headers=HEADERS, timeout=120, trust_env=False) as own:
                while (answer := own.post("/v1/images/generations", json=body)).status_code == 429:
                    refused += 1
                    time.sleep(0.3)
            assert answer.status_code == 200, answer.text
            files = [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]]
            return refused, [Image.open(io.BytesIO(file)).tobytes() for file in files]

        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(client, range(50)))
        dalle = studio.session.dalle
    assert sum(refused for refused, _ in answers) > 0
    for seed, (_, images) in enumerate(answers):
        expected = dalle.generate("a red circle", candidates=2, keep=2, seed=seed)
        assert images == [image.tobytes() for image in expected.images], seed
    assert len({tuple(images) for _, images in answers}) > 40  # different seeds are different pictures


def test_a_reader_that_never_reads_stalls_no_other(make_session):
    with running(make_session()) as studio:
        address = "127.0.0.1", int(studio.address.rsplit(":")[-1])
        jobs = [studio.draw(candidates=64, seed=seed) for seed in range(3)]
        connections = []
        for job in jobs * 5:
            connection = socket.create_connection(address)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            head = f"GET /api/jobs/{job}/events HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\n"
            connection.sendall(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
            connections.append(connection)
        assert all(studio.events(job)[-1][0] == "done" for job in jobs)
        assert studio.drawn(candidates=1)
        for connection in connections:
            connection.close()


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def command(checkpoints, tmp_path):
    """Start `dalle studio` as a process in an empty folder. Yields (process, client)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DALLE_STUDIO_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tmp_path)}
    settings = [f"checkpoint={checkpoints}", "port=0", "max_images=64", "max_uploads=4"]
    arguments = [sys.executable, "-m", "dalle", "studio", *settings]
    process = subprocess.Popen(
        arguments,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        # a shell starts background jobs, such as a run of these tests, with SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+(?=/#token=)", line)
        assert address, line
        with httpx.Client(base_url=address[0], headers=HEADERS, timeout=60, trust_env=False) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()


def draw(client: httpx.Client, seed: int, candidates: int = 1) -> None:
    body = {"prompt": "a red circle", "seed": seed, "n": candidates}
    assert client.post("/v1/images/generations", json=body).status_code == 200


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process from /proc")
def test_memory_is_flat_over_a_thousand_requests(command):
    process, client = command
    file = io.BytesIO()
    Image.effect_noise((400, 400), 90).convert("RGB").save(file, "JPEG")

    def requests(seeds: range) -> None:
        """Send four requests for each seed: a drawing, its events, its best image, and an upload or a wrong one."""
        for seed in seeds:
            settings = {"caption": "a red circle", "candidates": 2, "seed": seed}
            job = client.post("/api/jobs", json=settings).json()["job"]
            events = client.get(f"/api/jobs/{job}/events").text
            best = re.search(r'"id":"([^"]+)","candidate":\d+,"score"', events)
            assert best and client.get(f"/api/images/{best[1]}").status_code == 200
            if seed % 2:
                assert client.post("/api/uploads", content=file.getvalue()).status_code == 200
            else:
                assert client.get("/api/images/nothing").status_code == 404

    requests(range(100))  # until the limits of the session are reached
    before = resident_bytes(process.pid)
    requests(range(100, 350))
    grown = resident_bytes(process.pid) - before
    assert grown < 16e6, f"{grown / 1e6:.1f} MB more after 1,000 requests"


def test_a_killed_studio_leaves_no_file(command, tmp_path):
    process, client = command
    draw(client, 0, 8)
    answer = client.post("/api/jobs", json={"caption": "a red circle", "candidates": 64})
    assert answer.status_code == 202
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_ctrl_c_ends_a_busy_studio_and_its_streams(command):
    process, client = command
    job = client.post("/api/jobs", json={"caption": "a red circle", "candidates": 64}).json()["job"]
    with client.stream("GET", f"/api/jobs/{job}/events") as stream:
        chunks = stream.iter_text()
        next(chunks)
        process.send_signal(signal.SIGINT)
        rest = "".join(chunks)
    assert "event: failed" in rest or "event: done" in rest
    assert process.wait(120) == 130  # a busy computer takes its time
