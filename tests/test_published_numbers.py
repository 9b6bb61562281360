"""Every number that the paper and its appendices print, compared with `preset=paper`.

Sections are those of arXiv 2102.12092. "Code" is openai/DALL-E, "CLIP" is Radford et al. 2021."""

from typing import Any

import pytest
import torch

from dalle.cli.config import compose
from dalle.models.blocks import ResidualBranch
from dalle.models.dvae.model import PIXEL_MARGIN
from dalle.models.transformer.model import Transformer
from dalle.training.schedules import Schedule

PUBLISHED: list[tuple[str, Any, str]] = [
    # --- stage 1: the discrete VAE
    ("dvae.model.vocabulary", 8192, "Section 2"),
    ("dvae.model.width", 256, "Code"),
    ("dvae.model.groups", 4, "Code"),
    ("dvae.model.blocks_per_group", 2, "Code"),
    ("dvae.model.decoder_input", 128, "Code"),
    ("dvae.model.downsample", 8, "Section 2: 256x256 pixels, 32x32 tokens"),
    ("dvae.model.branch_gain", 1 / 64, "Section 2.1; Code"),
    ("dvae.model.bottleneck_kernel", 1, "Section 2.1"),
    ("dvae.model.pool", "max", "Appendix A.1"),
    ("dvae.model.relaxation", "gumbel_softmax", "Section 2.1"),
    ("dvae.likelihood.kind", "logit_laplace", "Appendix A.3"),
    ("dvae.likelihood.floor", None, "Appendix A.3"),
    ("dvae.kl_weight", Schedule("cosine", 0.0, 6.6, 5_000), "Section 2.1; Appendix A.2"),
    ("dvae.temperature", Schedule("cosine", 1.0, 1 / 16, 150_000), "Section 2.1; Appendix A.2"),
    ("dvae.optimizer.learning_rate", Schedule("cosine", 1e-4, 1.25e-6, 1_200_000), "Appendix A.2"),
    ("dvae.optimizer.betas", [0.9, 0.999], "Appendix A.2"),
    ("dvae.optimizer.eps", 1e-8, "Appendix A.2"),
    ("dvae.optimizer.weight_decay", 1e-4, "Appendix A.2"),
    ("dvae.ema.decay", 0.999, "Appendix A.2"),
    ("dvae.ema.every", 1, "Appendix A.2"),
    ("dvae.batch_size", 512, "Appendix A.2: 64 GPUs x 8"),
    ("dvae.steps", 3_000_000, "Appendix A.2"),
    ("dvae.gradient_scaling", "global", "Appendix A.2"),
    ("dvae.transform", "dvae", "Listing 1"),
    # --- stage 2: the transformer
    ("transformer.model.text_positions", 256, "Section 2.2"),
    ("transformer.model.text_vocabulary", 16_384, "Section 2.2"),
    ("transformer.model.image_vocabulary", 8192, "Section 2.2"),
    ("transformer.model.grid", 32, "Section 2.2"),
    ("transformer.model.depth", 64, "Section 2.2; Appendix B.1"),
    ("transformer.model.heads", 62, "Section 2.2; Appendix B.1"),
    ("transformer.model.width", 62 * 64, "Appendix B.1; Table 1: 3968"),
    ("transformer.model.patterns", ["paper"], "Appendix B.1"),
    ("transformer.model.kernel", 11, "Appendix B.1"),
    ("transformer.model.pads", "learned", "Section 2.2"),
    ("transformer.model.attention_normalisation", "joint", "Section 2.2, footnote 7"),
    ("transformer.image_targets", "argmax", "Section 2.2, footnote 6"),
    ("transformer.text_weight", 1 / 8, "Section 2.2"),
    ("transformer.bpe_dropout", 0.1, "Section 2.2"),
    ("transformer.transform", "transformer", "Listing 2"),
    ("transformer.optimizer.learning_rate", Schedule("constant", 4.5e-4), "Appendix B.2"),
    ("transformer.optimizer.warmup_steps", 5_000, "Appendix B.2"),
    ("transformer.optimizer.plateau.max_reductions", 5, "Appendix B.2"),
    ("transformer.optimizer.betas", [0.9, 0.96], "Appendix B.2"),
    ("transformer.optimizer.eps", 1e-8, "Appendix B.2"),
    ("transformer.optimizer.weight_decay", 4.5e-2, "Appendix B.2"),
    ("transformer.optimizer.variance_clip", 5.0, "Appendix B.2"),
    ("transformer.clip_norm", 4.0, "Appendix B.2"),
    ("transformer.batch_size", 1024, "Appendix B.2"),
    ("transformer.steps", 430_000, "Appendix B.2"),
    ("transformer.ema.decay", 0.99, "Appendix B.2"),
    ("transformer.ema.every", 25, "Appendix B.2"),
    ("transformer.precision", "float16", "Section 2.4"),
    ("transformer.gradient_scaling", "resblock", "Appendix D"),
    ("transformer.recompute", True, "Section 2.4"),
    ("transformer.optimizer.moments", "paper16", "Appendix D"),
    ("transformer.compression.rank", 896, "Table 1"),
    ("transformer.compression.blocks", 8, "Section 2.5: the GPUs of a machine"),
    ("transformer.compression.basis", "fixed", "Appendix E, footnote 10"),
    # --- the reranker
    ("clip.model.patch", 32, "CLIP, ViT-B/32"),
    ("clip.model.image_width", 768, "CLIP, ViT-B/32"),
    ("clip.model.image_depth", 12, "CLIP, ViT-B/32"),
    ("clip.model.image_heads", 12, "CLIP, ViT-B/32"),
    ("clip.model.text_width", 512, "CLIP, ViT-B/32"),
    ("clip.model.text_depth", 12, "CLIP, ViT-B/32"),
    ("clip.model.text_heads", 8, "CLIP, ViT-B/32"),
    ("clip.model.embedding", 512, "CLIP, ViT-B/32"),
    ("clip.model.text_vocabulary", 49_408, "CLIP's code"),
    ("clip.model.text_positions", 77, "CLIP's code"),
    ("clip.model.initial_temperature", 0.07, "CLIP, Section 2.5"),
    ("clip.model.max_logit_scale", 100.0, "CLIP, Section 2.5"),
    ("clip.optimizer.learning_rate.start", 5e-4, "CLIP, hyperparameters"),
    ("clip.optimizer.warmup_steps", 2_000, "CLIP, hyperparameters"),
    ("clip.optimizer.betas", [0.9, 0.98], "CLIP, hyperparameters"),
    ("clip.optimizer.eps", 1e-6, "CLIP, hyperparameters"),
    ("clip.optimizer.weight_decay", 0.2, "CLIP, hyperparameters"),
    ("clip.optimizer.decay", "matrices", "CLIP, Section 2.5"),
    ("clip.batch_size", 32_768, "CLIP, Section 2.5"),
]


@pytest.fixture(scope="module")
def paper() -> dict[str, Any]:
    return compose("train", ["stage=all", "preset=paper"]).stage


@pytest.mark.parametrize(("key", "value", "source"), PUBLISHED, ids=[key for key, *_ in PUBLISHED])
def test_paper_preset_has_the_published_number(paper, key, value, source):
    stage, *names = key.split(".")
    found = paper[stage]
    for name in names:
        found = getattr(found, name)
    assert found == value, source


@pytest.mark.parametrize("stage", ["dvae", "clip", "transformer"])
def test_single_stage_has_the_same_recipe_as_all_stages(paper, stage):
    assert compose("train", [f"stage={stage}", "preset=paper"]).stage == paper[stage]


@pytest.mark.parametrize(
    ("preset", "width", "rank", "compression"),
    [("paper-3b", 1920, 512, 0.83), ("paper-6b", 2688, 640, 0.85), ("paper", 3968, 896, 0.86)],
)
def test_sizes_of_table_1_have_its_widths_ranks_and_compression(preset, width, rank, compression):
    stage = compose("train", ["stage=transformer", f"preset={preset}"]).stage
    assert (stage.model.width, stage.compression.rank) == (width, rank)
    assert stage.model.heads * 64 == width
    assert 1 - 5 * rank / (8 * width) == pytest.approx(compression, abs=0.006)  # Table 2, with 8 GPUs a machine


def test_derived_numbers_match_the_paper(paper):
    with torch.device("meta"):
        model = Transformer(paper["transformer"].model)
    assert model.sequence.positions == 1280
    assert sum(isinstance(module, ResidualBranch) for module in model.modules()) == 128  # Appendix D
    names = model.pattern_names
    assert [names.count(name) for name in ("row", "column", "convolutional")] == [47, 16, 1]
    assert model.patterns["row"].attends(torch.tensor(500), torch.arange(1024), 32).sum() == 33
    optimizer = paper["transformer"].optimizer
    last = optimizer.learning_rate.value(430_000) * 0.5**optimizer.plateau.max_reductions
    assert last == pytest.approx(4.5e-4 / 32)
    dvae = paper["dvae"]
    assert dvae.kl_weight.value(5_000) / (3 * dvae.model.downsample**2) == pytest.approx(0.034375)
    assert PIXEL_MARGIN == 0.1  # Equation 3
    assert paper["clip"].steps * paper["clip"].batch_size == 32 * 400_000_000
