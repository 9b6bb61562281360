from dataclasses import replace

import pytest
import torch

from dalle.sampling import batch_size
from dalle.sampling.batch_size import choose_batch_size, format_bytes, free_memory, memory_budget
from dalle.sampling.memory import decoding_memory
from dalle.sampling.sampling_config import GB, SamplingConfig

CPU = torch.device("cpu")
FOUR = SamplingConfig(candidates=4, keep=1)


def gigabytes(size: float) -> str:
    return str(size / GB)


def test_enough_memory_gives_the_largest_useful_batch(make_transformer):
    model = make_transformer()
    assert choose_batch_size(model, 1, SamplingConfig(candidates=512)).images == batch_size.SATURATING_BATCH_SIZE["cpu"]
    assert choose_batch_size(model, 3, FOUR).images == 12
    assert not choose_batch_size(model, 1, SamplingConfig(candidates=512)).memory.recompute_kv


@pytest.mark.parametrize(("captions", "candidates"), [(1, 40), (5, 8), (2, 12)])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_batch_is_the_largest_that_fits(make_transformer, captions, candidates, guidance):
    model = make_transformer(patterns=["dense"], width=32)
    needs, rows = decoding_memory(model, recompute_kv=True), 1 if guidance == 1 else 2
    texts = 2 * rows - 1  # of a guided caption: its own, the empty one, and the one that this is a copy of
    allowed = texts * needs.caption + rows * int(7.5 * needs.candidate)
    config = SamplingConfig(candidates=candidates, keep=1, guidance=guidance, memory=gigabytes(allowed))
    chosen = choose_batch_size(model, captions, config)

    def taken(images: int) -> int:
        return chosen.memory.total(rows * images, texts) - chosen.memory.weights

    assert chosen.images < chosen.unlimited
    assert taken(chosen.images) <= allowed < taken(chosen.images + 1)


def test_parallel_decoding_takes_more_memory_for_each_image(make_transformer):
    model = make_transformer(patterns=["row"], width=32)
    needs = decoding_memory(model, window=8)
    config = SamplingConfig(candidates=40, keep=1, decoding="parallel", window=8)
    config = replace(config, memory=gigabytes(needs.caption + 7.5 * needs.candidate))
    assert choose_batch_size(model, 1, config).images == 7
    assert choose_batch_size(model, 1, replace(config, decoding="sequential")).images > 7


def test_too_little_memory_for_one_image_raises(make_transformer, monkeypatch):
    model = make_transformer()
    needs = decoding_memory(model, recompute_kv=True)
    one = needs.total(1, 1) - needs.weights
    assert choose_batch_size(model, 1, replace(FOUR, memory=gigabytes(one + 1))).images == 1
    with pytest.raises(
        ValueError, match=rf"sampling one image takes {format_bytes(one)} .*allow more with memory=<GB>"
    ):
        choose_batch_size(model, 1, replace(FOUR, memory=gigabytes(one - 2)))
    monkeypatch.setattr(batch_size, "free_in_cgroups", lambda: 0)  # of a container that is full
    with pytest.raises(ValueError, match="0 bytes are available: free some memory$"):
        choose_batch_size(model, 1, FOUR)


def test_auto_uses_most_of_free_memory_less_packed_weights(make_transformer, monkeypatch):
    model = make_transformer()
    monkeypatch.setattr(batch_size, "free_memory", lambda _: 10_000_000)
    weights = decoding_memory(model).weights
    assert choose_batch_size(model, 1, FOUR).budget == 9_000_000 - weights
    assert choose_batch_size(model, 1, FOUR, torch.bfloat16).budget == 9_000_000 - weights // 2


def test_free_memory_is_positive_and_below_total():
    assert 10**7 < free_memory(CPU) < 10**14


@pytest.mark.parametrize("memory", ["lots", "0", "-1", "nan", "inf", ""])
def test_invalid_memory_raises(memory):
    with pytest.raises(ValueError, match=f"memory={memory} is not an amount of memory"):
        memory_budget(memory, CPU)


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 bytes"), (999, "999 bytes"), (22_400, "22.4 kB"), (5 * 10**6, "5 MB"), (1.5e9, "1.5 GB")]
)
def test_bytes_are_formatted_with_units(size, words):
    assert format_bytes(size) == words
