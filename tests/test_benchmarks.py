"""Benchmarks run at toy size, and scale partial measurements correctly."""

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from dalle.data.blocks_scene import OUTLINES
from dalle.sampling import decode
from dalle.sampling.decode import sample_all_tokens
from dalle.sampling.sampling_config import GUESS_NAMES, DecodingConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    """Function that imports a module of benchmarks/, which is not part of the installed package."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def numbers(facts) -> list[float]:
    """Return all numbers in a JSON value."""
    if isinstance(facts, dict):
        facts = list(facts.values())
    if isinstance(facts, list):
        return [number for fact in facts for number in numbers(fact)]
    return [facts] if isinstance(facts, (int, float)) else []


def test_sampling_benchmark_runs_without_peers(run_command, tmp_path):
    out = tmp_path / "new" / "facts.json"
    status, printed = run_command("benchmarks/sampling", "--quick", "--peers", "--out", str(out))
    assert status == 0, printed
    facts = json.loads(out.read_text())
    assert all(map(math.isfinite, numbers(facts)))
    assert {(row["batch"], row["precision"]) for row in facts["decoders"]} == {
        (batch, precision) for batch in (1, 2) for precision in ("float32", "bfloat16")
    }
    assert all(row["images_per_second"] > 0 for row in facts["decoders"])
    assert [row["pattern"] for row in facts["attention"]] == ["dense", "row", "column", "convolutional", "paper"]
    assert "| this project | float32 |" in printed


def test_data_benchmark_runs_without_peers(run_command, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "webdataset", None)  # the package appears not to be installed
    out = tmp_path / "new" / "facts.json"
    status, printed = run_command("benchmarks/data", "--quick", "--positions", "16", "--out", str(out))
    assert status == 0, printed
    assert "the package webdataset is not installed" in printed
    facts = json.loads(out.read_text())
    rows = [row for table in ("64x48", "rendered", "tokens") for row in facts[table]]
    assert all(row["images_per_second"] > 0 for row in rows)
    sources = {row["name"].split(":")[0] for row in rows if row["name"].endswith("batches")}
    assert sources >= {"folder", "coco", "webdataset", "blocks"}
    assert facts["64x48"][0]["times_reference"] == facts["tokens"][0]["times_reference"] == 1
    assert "| token cache: reads | tokens |" in printed


def test_cpu_configurations_are_compared_in_each_round(benchmarks):
    training = benchmarks("cpu_settings")
    assert training.images_per_second([], 90.0, 1, 1) > 0
    speeds = {"a dVAE": {configuration: [10.0, 20.0, 40.0] for configuration in training.CONFIGURATIONS}}
    speeds["a dVAE"]["both"] = [15.0, 60.0, 80.0]
    assert "| both | 2.00 (1.50 to 3.00) |" in training.table(speeds)


def test_training_benchmark_runs_without_peers(run_command, monkeypatch, tmp_path):
    for name in ("x_transformers", "dalle_pytorch", "dall_e"):
        monkeypatch.setitem(sys.modules, name, None)  # the packages appear not to be installed
    out = tmp_path / "new" / "facts.json"
    parts = ["transformer", "dvae", "attention", "relaxation"]
    status, printed = run_command("benchmarks/training", "--quick", "--parts", *parts, "--out", str(out))
    assert status == 0, printed
    facts = json.loads(out.read_text())
    assert list(facts["parts"]) == parts
    assert facts["unavailable"].keys() == {"x_transformers", "dalle_pytorch", "dalle_pytorch_dvae"}
    rows = [row for part in parts for row in facts["parts"][part]]
    assert all(row["per_second"] > 0 and 0 < row["share_of_matmul_rate"] < 1 for row in rows)
    assert {row["precision"] for row in rows} == {"float32", "bfloat16"}
    assert "| Hugging Face GPT-2 | float32 |" in printed  # a test dependency
    assert "make bench installs it" in printed


def test_speeds_are_compared_with_the_best_peer_of_the_same_precision(benchmarks, monkeypatch):
    training = benchmarks("training")
    monkeypatch.setattr(training, "matmul_rate", lambda precision, clock: 1e12)
    monkeypatch.setattr(training, "peak_memory", lambda work: (work(), 0))
    monkeypatch.setattr(training, "seconds", lambda work, clock: work())
    times = {("ours", "float32"): 2, ("a", "float32"): 8, ("b", "float32"): 4, ("a", "bfloat16"): 1}
    cases = [
        benchmarks("training_cases").Case(name, precision, lambda taken=duration: taken, count=8, ours=name == "ours")
        for (name, precision), duration in times.items()
    ]
    results = training.compare(cases, rounds=3)
    assert [result.per_second for result in results] == [4, 1, 2, 8]
    assert [result.times_peer for result in results] == [2, 0.5, 1, 1]


def test_precision_benchmark_compares_bfloat16_and_float32(run_command, tmp_path):
    out = tmp_path / "new" / "facts.json"
    status, printed = run_command("benchmarks/precision", "--quick", "--out", str(out))
    assert status == 0, printed
    rows = json.loads(out.read_text())["rows"]
    assert [row["model"] for row in rows] == ["dVAE", "transformer"]
    assert all(row["ratio"] > 0 for row in rows)


def test_attention_benchmark_compares_all_implementations(run_command, tmp_path):
    status, printed = run_command("benchmarks/attention_training", "--quick", "--out", str(tmp_path / "facts.json"))
    assert status == 0, printed
    (row,) = json.loads((tmp_path / "facts.json").read_text())["rows"]
    assert row["times_float32"].keys() == {"torch_kernel_in_float32", "torch_kernel", "matrix_products"}
    assert row["times_float32"]["torch_kernel_in_float32"] == 1


@pytest.mark.slow
def test_compilation_benchmark_compares_compiled_and_eager(run_command, tmp_path):
    status, printed = run_command("benchmarks/compilation", "--quick", "--out", str(tmp_path / "facts.json"))
    assert status == 0, printed
    (row,) = json.loads((tmp_path / "facts.json").read_text())["rows"]
    assert row["least"] == row["ratio"] == row["most"] > 0


def test_missing_peer_is_reported(benchmarks, monkeypatch):
    peers = benchmarks("peers")

    def missing(config):
        raise ModuleNotFoundError("No module named 'transformers'")

    monkeypatch.setitem(peers.PEERS, "gpt2-float32", missing)
    found, unavailable = peers.available(["gpt2-float32"], benchmarks("sampling").QUICK_SIZES)
    assert found == []
    assert "No module named 'transformers'" in unavailable["gpt2-float32"]


def test_a_decoder_without_a_compiler_is_reported(benchmarks, monkeypatch):
    monkeypatch.setattr(benchmarks("compiled_decoder"), "has_compiler", lambda: False)
    found, unavailable = benchmarks("peers").available(["gpt-fast-float32"], benchmarks("sampling").QUICK_SIZES)
    assert found == []
    assert "no C++ compiler for torch.compile" in unavailable["gpt-fast-float32"]


@torch.inference_mode()
def test_a_static_cache_gives_the_logits_of_a_full_forward_pass(benchmarks):
    module, config = benchmarks("compiled_decoder"), benchmarks("sampling").QUICK_SIZES
    torch.manual_seed(0)
    model = module.CompiledDecoder(config).eval()
    tokens = torch.randint(config.text_vocabulary, (3, 10))
    expected = model(tokens, torch.arange(10), model.new_cache(3))
    cache = model.new_cache(3)
    model(tokens[:, :7], torch.arange(7), cache)
    for position in range(7, 10):
        found = model(tokens[:, position : position + 1], torch.tensor([position]), cache)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, model(tokens.flip(1), torch.arange(10), model.new_cache(3)), atol=1e-2)


@pytest.mark.slow
def test_compiled_and_eager_decoders_sample_the_same_tokens(benchmarks):
    module, config = benchmarks("compiled_decoder"), benchmarks("sampling").QUICK_SIZES
    if not module.has_compiler():
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    model = module.CompiledDecoder(config).eval()
    model.head.weight.data *= 1e4  # the most probable token has a probability of 1
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    eager, compiled = (module.sampler(model, compile)(prompt, 6) for compile in (False, True))
    assert eager.equal(compiled) and len(set(eager.flatten().tolist())) > 2


@pytest.mark.parametrize("cached", [True, False])
def test_decoders_warm_up_with_the_batch_that_is_timed(benchmarks, monkeypatch, cached):
    compare, calls = benchmarks("compare"), []
    monkeypatch.setattr(compare, "MAX_REPEATED_BATCH", 2)
    monkeypatch.setattr(compare, "roofline_seconds", lambda *_: 1.0)
    config = benchmarks("sampling").QUICK_SIZES
    decoder = compare.Decoder("peer", "float32", torch.nn.Identity(), lambda *call: calls.append(call), cached=cached)
    compare.compare([decoder], config, 4, rounds=1)
    assert calls[0] == ((4, 2) if cached else (2, 2))


@pytest.mark.parametrize(("cached", "batch", "expected"), [(True, 16, 1256), (True, 64, 1256), (False, 4, 256)])
def test_time_from_some_tokens_is_scaled_up_to_images(benchmarks, monkeypatch, cached, batch, expected):
    compare, counts = benchmarks("compare"), []
    # one second per token, and 1,000 for the caption unless each token's forward pass includes it
    monkeypatch.setattr(compare, "seconds", lambda work: work() + 1000 * cached)

    def decode(images: int, tokens: int) -> int:
        counts.append(tokens)
        return tokens

    decoder = compare.Decoder("peer", "float32", torch.nn.Identity(), decode, cached=cached)
    assert compare.batch_seconds(decoder, batch, 256) == pytest.approx(expected)
    assert (max(counts) == 256) == (cached and batch == 16)


def test_decoding_work_counts_all_weights_and_cache_reads(benchmarks, make_transformer):
    machine = benchmarks("machine")
    model = make_transformer(patterns=["dense"], width=32, grid=4)
    layers = [layer.weight for block in model.layers for layer in block.modules() if isinstance(layer, torch.nn.Linear)]
    weights = sum(weight.numel() for weight in [*layers, model.image_head.weight])
    caption = 2 * model.config.depth * 32 * model.config.text_positions
    images = sum(5 * 2 * model.config.depth * 32 * states for states in range(1, 17))

    size, operations = machine.decoding_work(model.config, 5, "float32")
    assert size == 4 * (16 * (weights + caption) + images)
    assert machine.decoding_work(model.config, 5, "bfloat16") == (size // 2, operations)
    assert operations == 2 * (16 * 5 * (weights + caption) + images)


def test_parallel_decoding_benchmark_compares_every_guess(run_command, tmp_path):
    out = tmp_path / "facts.json"
    options = ("--quick", "--captions", "2", "--windows", "3", "--batches", "2", "--candidates", "2")
    status, printed = run_command("benchmarks/parallel_decoding", *options, "--out", str(out))
    assert status == 0, printed
    rows = json.loads(out.read_text())
    assert [row["decoding"] for row in rows] == ["sequential", *GUESS_NAMES]
    assert all(row["equal_images"] == 1 and row["ties"] == row["differences"] == 0 for row in rows)
    assert all(0 < row["share_of_roofline"] < math.inf for row in rows)
    assert rows[0]["tokens_per_pass"] == 1


def test_parallel_decoding_benchmark_plots_several_models(run_command, checkpoints, tmp_path):
    (tmp_path / "captions.txt").write_text("a red circle\n\nthree green triangles\n")
    options = ("--quick", "--checkpoints", str(checkpoints), "untrained", "--windows", "2", "4", "--guesses", "above")
    files = ("--captions-file", "captions.txt", "--out", "facts.json", "--plot", "new/plot.png")
    status, printed = run_command("benchmarks/parallel_decoding", *options, *files, "--captions", "2")
    assert status == 0, printed
    rows = json.loads((tmp_path / "facts.json").read_text())
    assert [(row["model"], row["window"]) for row in rows] == [
        (model, window) for model in (str(checkpoints), "untrained, 64 codes") for window in (1, 2, 4)
    ]
    assert all(math.isfinite(number) for number in numbers(rows))
    with Image.open(tmp_path / "new" / "plot.png") as image:
        assert image.width > image.height > 100

    status, printed = run_command("benchmarks/parallel_decoding", *options, *files, "--captions", "3")
    assert "--captions 3: there are 2 for" in str(status)


def test_captions_of_the_benchmark_fit_the_model(benchmarks, checkpoints, make_transformer, tmp_path):
    find = benchmarks("parallel_decoding").find_captions
    model = make_transformer()
    model.save(tmp_path / "blocks", {"data": {"name": "blocks", "image_size": 8, "val": 4}})
    captions = find(tmp_path / "blocks", None, 3)
    assert len(set(captions)) == 3 and all(any(shape in caption for shape in OUTLINES) for caption in captions)
    model.save(tmp_path / "drawings", {"data": {"name": "drawings"}})
    assert find(tmp_path / "drawings", None, 2) == ["a red apple, 3D render", "a green umbrella"]
    with pytest.raises(ValueError, match="give captions with --captions-file"):
        find(checkpoints / "transformer", None, 2)


def test_passes_of_several_tokens_read_weights_less_often(benchmarks):
    """And compute more, for the tokens of the window that they do not keep."""
    work, config = benchmarks("machine").decoding_work, benchmarks("sampling").QUICK_SIZES
    (size, operations), (fewer, more) = (
        work(config, 2, "float32", captions=2, tokens_per_pass=tokens, window=window)
        for tokens, window in ((1, 1), (2, 8))
    )
    assert (fewer, more) == (size / 2, 4 * operations)
    sparse = replace(config, patterns=["row"])
    assert benchmarks("machine").attended_positions(config) == config.depth * (16 + 1) / 2
    assert work(sparse, 2, "float32") < work(config, 2, "float32")


def test_differences_of_rounding_are_ties_and_others_are_errors(benchmarks, monkeypatch):
    """Windows that add some noise to the logits, as rounding does, against a token that the test changes."""
    find = benchmarks("decoding_differences").find_differences
    model = benchmarks("parallel_decoding").untrained(500, 4)
    decode_window, generator = model.decode_window, torch.Generator().manual_seed(0)

    def rounded(*inputs, **options):
        logits = decode_window(*inputs, **options)
        return logits + 0.01 * torch.randn(logits.shape, generator=generator)

    monkeypatch.setattr(decode, "pack_linear_layers", lambda model, *_: model)
    monkeypatch.setattr(model, "decode_window", rounded)
    caption, config = model.sequence.pad_captions([[1, 2, 3]]), DecodingConfig(window=5)
    sequential, parallel = (
        sample_all_tokens(model, caption, 64, replace(config, decoding=name))[0] for name in ("sequential", "parallel")
    )
    found = find(model, caption, config, sequential, parallel)
    assert len(found) == (sequential != parallel).flatten(1).any(dim=1).sum() > 0
    assert all(difference.is_tie for difference in found)

    wrong = sequential.clone()
    wrong[3, 1, 2] = (wrong[3, 1, 2] + 1) % 500
    (error,) = find(model, caption, config, sequential, wrong)
    assert (error.candidate, error.position, error.is_tie) == (3, 4 + 2, False)
    assert find(model, caption, config, sequential, sequential) == []
    with pytest.raises(ValueError, match="candidate 3 is not an image of sequential decoding"):
        find(model, caption, config, wrong, sequential)
