"""Sampling on a GPU matches a CPU: noise, logits, CUDA graphs and memory."""

from dataclasses import replace

import pytest
import torch

from dalle import DALLE
from dalle.models.mixed_precision import to_mixed_precision
from dalle.models.transformer.model import Transformer
from dalle.models.transformer.patterns import PATTERNS as REGISTRY
from dalle.sampling import decode
from dalle.sampling.cuda_graphs import CUDAGraphStep, decoding_step
from dalle.sampling.decode import MASKED, sample_all_tokens
from dalle.sampling.gumbel_noise import candidate_noise_keys, gumbel_noise
from dalle.sampling.memory import decoding_memory
from dalle.sampling.sampling_config import DecodingConfig

from .test_cuda_graphs import all_logits, example

pytestmark = pytest.mark.gpu
PATTERNS = [
    *({"patterns": [name]} for name in REGISTRY),
    {"patterns": ["row"], "row_counts_itself": False},
    {"patterns": ["convolutional"], "convolution_wraps": False},
    {"patterns": ["paper"]},
    {"patterns": ["paper"], "qk_norm": True, "mlp": "swiglu"},
]
CAPTION = "a small red circle above a large blue square"


def test_noise_on_gpu_equals_cpu_bitwise(gpu):
    keys = candidate_noise_keys(5, torch.arange(256))
    assert candidate_noise_keys(5, torch.arange(256, device=gpu)).cpu().equal(keys)
    for position in (0, 1023):
        assert gumbel_noise(keys.to(gpu), position, 8192).cpu().equal(gumbel_noise(keys, position, 8192))


@pytest.mark.parametrize("normalisation", ["joint", "separate"])
@pytest.mark.parametrize("recompute_kv", [False, True])
@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.3), (torch.float16, 0.05)], ids=str
)
@torch.inference_mode()
def test_step_on_gpu_matches_full_forward_on_cpu(
    gpu, make_transformer, patterns, recompute_kv, dtype, tolerance, normalisation
):
    """On a GPU the step is a CUDA graph. A second image starts again at position 0."""
    model = make_transformer(depth=4, attention_normalisation=normalisation, **patterns)
    captions, images = example(model)
    expected = model(captions.repeat_interleave(3, dim=0), images).image
    model = to_mixed_precision(model, dtype).to(gpu)
    images = images.to(gpu)
    step = decoding_step(model, model.prefill(captions.to(gpu)), 3, recompute_kv)
    assert isinstance(step, CUDAGraphStep) == (gpu.type == "cuda")
    logits = all_logits(model, step, images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.cpu(), expected, rtol=tolerance, atol=tolerance)
    assert all_logits(model, step, images).equal(logits)


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
@torch.inference_mode()
def test_cuda_graph_equals_eager_steps_bitwise(cuda, make_transformer, patterns):
    """Compares `CUDAGraphStep` with the calls that it recorded."""
    model = make_transformer(depth=4, **patterns).to(cuda)
    captions, images = example(model)
    images, text = images.to(cuda), model.prefill(captions.to(cuda))
    cache = model.new_cache(text, 3, static_shapes=True)

    def eager(previous: torch.Tensor, position: int) -> torch.Tensor:
        return model.decode_one_token(previous, torch.full((1,), position, device=cuda), cache)

    graphed = CUDAGraphStep(model, model.new_cache(text, 3, static_shapes=True))
    assert all_logits(model, graphed, images).equal(all_logits(model, eager, images))


@torch.inference_mode()
def test_cuda_graph_on_a_second_device(cuda, make_transformer):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    model = make_transformer(depth=4)
    captions, _ = example(model)
    drawn = [sample_all_tokens(to_mixed_precision(model, torch.float32).to(f"cuda:{n}"), captions, 3) for n in (0, 1)]
    assert drawn[0].equal(drawn[1])


@torch.inference_mode()
def test_samples_on_gpu_do_not_depend_on_the_batch(gpu, make_transformer):
    model = make_transformer(depth=4).to(gpu)
    captions, _ = example(model)
    config = DecodingConfig(temperature=0.7, top_k=8, top_p=0.9, guidance=1.5, seed=4)
    whole = sample_all_tokens(model, captions, 6, replace(config, batch_size=12))
    assert sample_all_tokens(model, captions, 6, replace(config, batch_size=4)).equal(whole)
    assert sample_all_tokens(model, captions[1:], 2, config, candidate_offset=3).equal(whole[1:, 3:5])


@pytest.mark.parametrize("recompute_kv", [False, True])
@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
@torch.inference_mode()
def test_prefilled_and_stepwise_prefixes_sample_the_same_tokens_on_gpu(
    gpu, make_transformer, monkeypatch, patterns, recompute_kv
):
    model = make_transformer(depth=4, **patterns).to(gpu)
    captions, images = example(model)
    canvas, config = images.view(2, 3, 4, 4).clone(), DecodingConfig(guidance=1.5, seed=4)
    canvas.flatten(2)[..., 6:] = MASKED
    monkeypatch.setattr(decode, "prefill_sizes", lambda *_: (2, 4))
    monkeypatch.setattr(decode, "prefill_passes", lambda *_: 1)  # as if it were fewer than steps
    found = sample_all_tokens(model, captions, 3, config, canvas=canvas, recompute_kv=recompute_kv)
    monkeypatch.setattr(decode, "prefill_sizes", lambda *_: (0, 0))
    assert sample_all_tokens(model, captions, 3, config, canvas=canvas, recompute_kv=recompute_kv).equal(found)


@pytest.mark.parametrize("recompute_kv", [False, True])
@torch.inference_mode()
def test_sampling_on_gpu_stays_within_memory_estimate(cuda, make_transformer, recompute_kv, record_property):
    sizes = {"width": 256, "heads": 4, "depth": 4, "grid": 16, "image_vocabulary": 512, "patterns": ["paper"]}
    model = make_transformer(**sizes).to(cuda)
    captions, candidates = model.sequence.pad_captions([[1, 2, 3]]), 256
    estimate = decoding_memory(model, recompute_kv=recompute_kv, static_shapes=True).total(candidates)
    sample_all_tokens(model, captions, 2, recompute_kv=recompute_kv)  # workspaces of libraries
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() - sum(parameter.nbytes for parameter in model.parameters())
    sample_all_tokens(model, captions, candidates, DecodingConfig(batch_size=candidates), recompute_kv=recompute_kv)
    workspaces = 3 * 2**25  # of cuBLAS, one a stream: they do not grow with the model
    share = (torch.cuda.max_memory_allocated() - before) / (estimate + workspaces)
    record_property("peak over estimate", share)
    assert share <= 1


@torch.inference_mode()
def teacher_forced(model: Transformer, caption: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    device = model.image_head.weight.device
    return model(caption.to(device).expand(len(images), -1), images.to(device)).image.cpu()


@torch.inference_mode()
def test_loaded_model_on_gpu_matches_cpu(gpu, checkpoints, record_property):
    """Teacher-forced in float32: logits within 1e-4, and 99.9% of the tokens. The first different token is reported."""
    here, there = DALLE.load(checkpoints, precision="float32"), DALLE.load(checkpoints, gpu, precision="float32")
    caption = here.transformer.sequence.pad_captions([here.tokenizer.encode(CAPTION)])
    candidates = 64
    images = sample_all_tokens(here.transformer, caption, candidates, DecodingConfig(seed=1))[0].flatten(1)
    models = here.transformer, there.transformer
    logits = [teacher_forced(model, caption, images) for model in models]
    difference = (logits[0] - logits[1]).abs().max().item()
    record_property("largest difference of logits", difference)
    assert difference < 1e-4

    keys = candidate_noise_keys(1, torch.arange(candidates))
    noise = torch.stack([gumbel_noise(keys, n, logits[0].shape[-1]) for n in range(images.shape[1])], dim=1)
    drawn = [(scores + noise).argmax(dim=-1) for scores in logits]
    assert drawn[0].equal(images)  # it is what was drawn token by token
    agreed = (drawn[0] == drawn[1]).float().mean().item()
    record_property("share of equal tokens, teacher-forced", agreed)
    assert agreed >= 0.999

    free = sample_all_tokens(there.transformer, caption, candidates, DecodingConfig(seed=1))[0].flatten(1)
    other = (free != images).nonzero()
    first = "none" if not len(other) else min(other.tolist(), key=lambda place: place[1])
    record_property("first other token when free-running, (candidate, position)", str(first))
    record_property("candidates that differ when free-running", f"{len(set(other[:, 0].tolist()))} of {candidates}")


def test_a_loaded_model_gives_the_same_pixels_and_scores(gpu, checkpoints):
    found = []
    for device in ("cpu", gpu):
        result = DALLE.load(checkpoints, device, precision="float32").generate(CAPTION, candidates=8, keep=8, seed=2)
        order = sorted(range(8), key=lambda n: result.candidates[n])
        found.append((result.tokens[order], torch.tensor(result.scores)[order]))
    assert found[0][0].equal(found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)


def test_bfloat16_is_what_a_gpu_draws_in_by_default(cuda, checkpoints):
    model = DALLE.load(checkpoints, cuda).transformer
    assert model.dtype == torch.bfloat16
    assert model.image_head.weight.dtype == torch.float32  # logits are not rounded
