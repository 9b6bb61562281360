"""`make gpu` on a CPU: everything runs at toy size, and problems are reported."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dalle.sampling.memory import decoding_memory

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
PARTS = ["tests", "sampling", "training", "demo"]


@pytest.fixture
def gpu_module(monkeypatch):
    """Function that imports a module of benchmarks/gpu, which is not part of the installed package."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.gpu.{name}")


@pytest.fixture
def options(gpu_module, tmp_path):
    return gpu_module("part").Options(CPU, True, tmp_path, time.time() + 600)


def test_a_gpu_is_described_in_one_line(gpu_module):
    machine = {"gpu": "NVIDIA H100", "gpu_memory_bytes": 80 * 2**30, "driver": "1", "cuda": "13.0", "torch": "2.13"}
    assert gpu_module("hardware").name_of(machine) == "NVIDIA H100 (80 GiB), driver 1, CUDA 13.0, torch 2.13"


def make(target: str, out: Path, *variables: str) -> tuple[int, str]:
    command = ["make", "--no-print-directory", target, f"GPU_OUT={out}", f"PYTHON={sys.executable}", *variables]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_everything_runs_on_a_cpu_and_finished_measurements_are_not_repeated(tmp_path):
    status, printed = make("gpu", tmp_path, "DEVICE=cpu", "QUICK=1")
    assert status == 0, printed
    summary = printed.partition("# make gpu\n")[2].splitlines()
    assert 20 < len(summary) <= 100
    for part in PARTS:
        facts = json.loads((tmp_path / f"{part}.json").read_text())
        assert facts["machine"]["torch"] == torch.__version__ and facts["command"].startswith(f"make gpu-{part}")
        outcomes = facts["measurements"]
        assert outcomes and {outcome["status"] for outcome in outcomes.values()} == {"done"}, outcomes
        assert all(outcome["commit"] and outcome["date"] for outcome in outcomes.values())
        page = (tmp_path / f"{part}.md").read_text()
        assert torch.__version__ in page and f"make gpu-{part} DEVICE=cpu QUICK=1" in page
    assert (tmp_path / "demo-seed0.png").stat().st_size > 1000
    same = json.loads((tmp_path / "demo.json").read_text())["measurements"]["deterministic runs"]["results"]
    assert same["bitwise_equal"]["deterministic=true"] == {"dvae": True, "clip": True, "transformer": True}

    before = {part: (tmp_path / f"{part}.json").read_bytes() for part in PARTS}
    status, printed = make("gpu-training", tmp_path, "DEVICE=cpu", "QUICK=1")  # one part: the others do the same
    assert status == 0 and " ..." not in printed
    assert before == {part: (tmp_path / f"{part}.json").read_bytes() for part in PARTS}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_machine_without_a_gpu_gets_an_error(tmp_path):
    status, printed = make("gpu-sampling", tmp_path)
    assert status != 0
    assert f"no CUDA device was found by torch {torch.__version__}" in printed
    assert "DEVICE=cpu QUICK=1" in printed and "Traceback" not in printed


def test_wheels_of_another_python_and_missing_wheels_are_reported(gpu_module, monkeypatch, tmp_path):
    requirements = gpu_module("requirements")
    monkeypatch.setattr(requirements, "FILE", tmp_path / "requirements.txt")
    (tmp_path / "requirements.txt").write_text("torch>=2.6\nsynthetic-one>=1 # why\nsynthetic-two\n")
    (tmp_path / "synthetic_one-1.0-cp35-cp35m-manylinux2014_x86_64.whl").touch()
    assert [requirement.name for requirement in requirements.missing()] == ["synthetic-one", "synthetic-two"]
    other, absent = requirements.install(tmp_path, tmp_path / "site")
    here = f"PYTHON_VERSION={sys.version_info.major}.{sys.version_info.minor}"
    assert "synthetic_one-1.0-cp35-cp35m-manylinux2014_x86_64.whl is for another Python" in other and here in other
    assert "synthetic-two: neither installed nor in" in absent and here in absent


def test_requirements_cover_what_the_commands_import(gpu_module):
    """The environment of the tests meets all requirements, so their names and versions exist."""
    assert gpu_module("requirements").missing() == []


@pytest.fixture
def run_part(gpu_module, monkeypatch, tmp_path):
    """Function that runs a part with three measurements of given outcomes. Returns (complete, started, statuses)."""
    part = gpu_module("part")
    monkeypatch.setattr(
        part, "_describe_machine", lambda device: {"device": device, "processor": "p", "cores": 1, "torch": "t"}
    )
    names = ["first", "second", "third"]
    three = part.Part("synthetic", lambda quick: dict.fromkeys(names, lambda options: {}), lambda found: [*found])

    def run(outcomes: dict[str, str], minutes: float = 5) -> tuple[bool, list[str], dict[str, str]]:
        started = []

        def in_a_process(part_name, name, *_):
            started.append(name)
            results = {"results": {}} if outcomes[name] == "done" else {"reason": "because\nof this"}
            return {"status": outcomes[name], "seconds": 1.0, **results}

        monkeypatch.setattr(part, "_run_in_process", in_a_process)
        complete = part.run(three, "cpu", True, tmp_path, minutes)
        found = json.loads((tmp_path / "synthetic.json").read_text())["measurements"]
        return complete, started, {name: outcome["status"] for name, outcome in found.items()}

    return run


def test_failed_measurements_are_repeated_and_finished_ones_are_not(run_part, tmp_path):
    first = run_part({"first": "done", "second": "failed", "third": "skipped"})
    assert first == (False, ["first", "second", "third"], {"first": "done", "second": "failed", "third": "skipped"})
    assert "- second: failed: of this" in (tmp_path / "synthetic.md").read_text()
    assert run_part({"second": "done"}) == (True, ["second"], {"first": "done", "second": "done", "third": "skipped"})


def test_a_summary_counts_what_an_interrupted_command_did_not_start(run_part, gpu_module, tmp_path):
    with pytest.raises(KeyError):  # ends the command, as Ctrl-C does
        run_part({"first": "done"})
    lines, complete = gpu_module("summary").summary(tmp_path, ["synthetic"])
    assert not complete and "## gpu-synthetic: 1 done, 2 not started" in lines


def test_nothing_starts_after_the_deadline(run_part):
    complete, started, found = run_part({}, minutes=0.1)
    assert not complete and not started and set(found.values()) == {"not started"}
    assert run_part({"first": "done", "second": "done", "third": "done"})[0]


def test_results_of_another_machine_are_moved_away(run_part, gpu_module, monkeypatch, tmp_path):
    run_part({"first": "done", "second": "done", "third": "done"})
    other = {"device": "cpu", "processor": "another", "cores": 1, "torch": "t"}
    monkeypatch.setattr(gpu_module("part"), "_describe_machine", lambda device: other)
    assert run_part({"first": "done", "second": "done", "third": "done"})[1] == ["first", "second", "third"]
    assert len(list(tmp_path.glob("synthetic-*.json"))) == 1


def test_a_failed_measurement_is_saved_with_its_last_output(gpu_module, tmp_path):
    part = gpu_module("part")
    outcome = part._run_in_process("sampling", "no such measurement", "cpu", True, tmp_path, time.time() + 60)
    assert outcome["status"] == "failed" and "no such measurement" in outcome["reason"]


def test_a_measurement_is_stopped_at_its_deadline(gpu_module, tmp_path):
    part = gpu_module("part")
    outcome = part._run_in_process("training", "transformer, base", "cpu", False, tmp_path, time.time() + 2)
    assert outcome["status"] == "timed out" and outcome["seconds"] < 20


def test_an_interrupted_measurement_does_not_run_on(gpu_module, monkeypatch, tmp_path):
    started = []

    class InterruptedProcess(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is not None:
                started.append(self)
                raise KeyboardInterrupt
            return super().wait()

    part = gpu_module("part")
    monkeypatch.setattr(part.subprocess, "Popen", InterruptedProcess)
    with pytest.raises(KeyboardInterrupt):
        part._run_in_process("training", "transformer, base", "cpu", False, tmp_path, time.time() + 60)
    (process,) = started
    assert process.poll() == -signal.SIGKILL


def test_all_files_with_gpu_tests_are_run(gpu_module):
    names = {path.stem for path in gpu_module("tests").files()}
    assert {path.stem for path in ROOT.glob("tests/**/test_*_on_gpu.py")} < names
    assert {"test_flex_attention", "test_compilation"} < names


GPU_TESTS = """
import os
import pytest

pytestmark = pytest.mark.{mark}

def test_first():
    pass

def test_second():
    {second}

def test_third():
    pass
"""


def test_gpu_tests_that_passed_are_not_repeated(gpu_module, options):
    path = options.folder / "test_three.py"
    path.write_text(GPU_TESTS.format(mark="gpu", second="pass"))
    for _ in range(2):
        assert gpu_module("tests").run_file(path, options)["passed"] == 3


@pytest.mark.parametrize(
    ("mark", "second", "message"),
    [
        ("gpu", "os.abort()", "pytest ended with status -6 before all tests"),
        ("gpu", "pass\n\nimport no_such_module", "pytest ended with status 2 before all tests"),
        ("slow", "pass", "pytest ended with status 5 before all tests"),
        ("gpu", "assert False", "1 failed, 2 passed: test_second"),
    ],
    ids=["crash", "import error", "no tests", "failure"],
)
def test_gpu_tests_that_do_not_all_run_fail(gpu_module, options, mark, second, message):
    path = options.folder / "test_three.py"
    path.write_text(GPU_TESTS.format(mark=mark, second=second))
    with pytest.raises(SystemExit, match=message):
        gpu_module("tests").run_file(path, options)


def test_a_model_that_does_not_fit_beside_other_processes_is_tried_again(gpu_module, monkeypatch, options):
    sampling = gpu_module("sampling")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (50, 100))
    hardware, cuda = gpu_module("hardware"), torch.device("cuda")
    assert [hardware.is_shared(device, free) for device, free in ((cuda, 50), (cuda, 95), (CPU, 50))] == [
        True,
        False,
        False,
    ]
    monkeypatch.setattr(hardware, "memory_bytes", lambda device: 10**5)
    monkeypatch.setattr(hardware, "is_shared", lambda device, free: True)
    with pytest.raises(SystemExit, match="0.0 GB are free; other processes use the GPU"):  # failed: it is repeated
        sampling.draw("base", 4, options)


def test_a_peer_that_does_not_fit_leaves_our_results(gpu_module, monkeypatch, options):
    def too_large(*_):
        raise torch.OutOfMemoryError

    sampling = gpu_module("sampling")
    monkeypatch.setattr(sampling, "gpt2", too_large)
    found = sampling._gpt2(sampling.config_of("base", quick=True), 2, options)
    assert found == {"unavailable": "2 images do not fit"}


def test_a_model_that_does_not_fit_is_skipped_with_the_numbers(gpu_module, monkeypatch, options):
    sampling = gpu_module("sampling")
    monkeypatch.setattr(sampling.hardware, "memory_bytes", lambda device: 10**5)
    with pytest.raises(gpu_module("part").NotPossible, match=r"one candidate of base needs \d.* GB, and 0.0 GB are"):
        sampling.draw("base", 4, options)
    training = gpu_module("training")
    with pytest.raises(gpu_module("part").NotPossible, match=r"averages take 0.0 GB, and 0.0 GB are free"):
        training.train("clip", "small", options)


def test_fewer_candidates_are_sampled_if_not_all_fit(gpu_module, monkeypatch, options):
    sampling = gpu_module("sampling")
    config = sampling.config_of("base", quick=True)
    model = sampling.to_mixed_precision(sampling.Transformer(config), torch.bfloat16)
    budget = decoding_memory(model, torch.bfloat16, recompute_kv=True).total(3)
    monkeypatch.setattr(sampling.hardware, "memory_bytes", lambda device: int(budget / sampling.RESERVE) + 100)
    found = sampling.draw("base", 8, options)
    assert (found["images"], found["requested"], found["memory"]["fit"]) == (3, 8, 3)


def test_random_transformer_equals_a_model_built_in_float32(gpu_module):
    """It is built on the device without float32 weights. Its buffers must equal those of an ordinary model."""
    sampling = gpu_module("sampling")
    config = sampling.config_of("base", quick=True)
    model = sampling.random_transformer(config, torch.bfloat16, CPU)
    usual = sampling.to_mixed_precision(sampling.Transformer(config), torch.bfloat16).eval()
    usual.load_state_dict(model.state_dict())
    assert all(
        parameter.isfinite().all() and parameter.std() > 0 for parameter in model.parameters() if parameter.ndim == 2
    )
    caption, images = torch.tensor([[1, 2, 3, 0, 0, 0, 0, 0]]), torch.arange(16)[None]
    with torch.inference_mode():
        assert model(caption, images).image.equal(usual(caption, images).image)


def test_work_of_a_dense_step_equals_that_of_the_cpu_benchmark(gpu_module):
    sampling, machine = gpu_module("sampling"), importlib.import_module("benchmarks.machine")
    config = sampling.config_of("demo", quick=False)
    found = sampling.step_work(config, 7, torch.bfloat16)
    whole = machine.decoding_work(config, 7, "bfloat16")
    assert found == pytest.approx([amount / config.grid**2 for amount in whole], rel=1e-3)


def test_a_gpu_without_an_index_is_the_first_one(gpu_module, monkeypatch):
    """torch.cuda.set_device takes no device without an index."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    named = gpu_module("__main__").select_device
    assert [str(named(device)) for device in ("cuda", "cuda:1", "cpu")] == ["cuda:0", "cuda:1", "cpu"]
    assert [str(device) for device in chosen] == ["cuda:0", "cuda:1"]


def test_a_summary_lists_parts_that_have_not_run(gpu_module, tmp_path):
    lines, complete = gpu_module("summary").summary(tmp_path, PARTS)
    assert not complete and "Not run: `make gpu-sampling`." in lines
