"""Training work to be timed by benchmarks/training.py: this project's stages, as train.py runs them, and its parts."""

import itertools
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sampling import LONG_SIZES, QUICK_SIZES, SIZES
from dalle.cli.config import compose
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.precision import autocast
from dalle.stages import STAGES
from dalle.stages.data_module import StageContext
from dalle.stages.transformer import TokenizedBatch, TransformerStage
from dalle.training.loop import Trainer
from dalle.training.run import Run

CPU = torch.device("cpu")
PRECISIONS = ("float32", "bfloat16")
TOKENIZER = "tokenizer_records=200"


@dataclass(frozen=True)
class Case:
    """Work to be timed: one training update, or one pass of a part of a model."""

    name: str
    precision: str  # float32 or bfloat16
    work: Callable[[], object]
    count: int  # tokens or images that it processes
    weights_bytes: int = 0
    ours: bool = False


@dataclass(frozen=True)
class Sizes:
    """Sizes of the models that are compared."""

    transformer: TransformerConfig
    batch: int  # captions with images per update of the transformer
    long: TransformerConfig  # for attention patterns
    image_size: int  # pixels, of the dVAE's and CLIP's images
    dvae: DVAEConfig
    peer_dvae: dict[str, int]  # settings of dalle-pytorch's dVAE
    images: int  # per update of the dVAE
    clip: dict[str, int]  # CLIPConfig
    pairs: int  # per update of CLIP
    official: DVAEConfig  # as in OpenAI's code
    official_size: int  # pixels, for the official code


FULL = Sizes(
    transformer=SIZES,
    batch=8,
    # four layers in the paper's order, 256 + 1,024 positions
    long=replace(LONG_SIZES, patterns=["paper"], depth=4),
    image_size=128,
    dvae=DVAEConfig(width=88, blocks_per_group=2, decoder_input=128),  # 20 billion operations an image, as the peer's
    # the defaults of dalle-pytorch's train_vae.py
    peer_dvae={"num_tokens": 8192, "num_layers": 3, "num_resnet_blocks": 2, "codebook_dim": 512, "hidden_dim": 256},
    images=8,
    clip={
        "patch": 16,
        "image_width": 256,
        "image_depth": 6,
        "image_heads": 4,
        "text_vocabulary": 362,  # the words of generated scenes
        "text_positions": 64,
        "text_width": 256,
        "text_depth": 6,
        "text_heads": 4,
        "embedding": 256,
    },
    pairs=32,
    official=DVAEConfig(),
    official_size=256,
)
QUICK = Sizes(
    transformer=QUICK_SIZES,
    batch=2,
    long=replace(QUICK_SIZES, patterns=["paper"], depth=4),
    image_size=32,
    dvae=DVAEConfig(vocabulary=32, width=8, blocks_per_group=1, decoder_input=8),
    peer_dvae={"num_tokens": 32, "num_layers": 3, "num_resnet_blocks": 1, "codebook_dim": 8, "hidden_dim": 8},
    images=2,
    clip={
        "patch": 16,
        "image_width": 32,
        "image_depth": 1,
        "image_heads": 2,
        "text_vocabulary": 362,
        "text_positions": 16,
        "text_width": 32,
        "text_depth": 1,
        "text_heads": 2,
        "embedding": 16,
    },
    pairs=4,
    official=DVAEConfig(
        vocabulary=512, width=64, blocks_per_group=1, decoder_input=8
    ),  # the least of the official code
    official_size=32,
)


def transformer(sizes: Sizes, folder: Path) -> list[Case]:
    """Return updates of the transformer, with dense attention as the peers have it, and the paper's patterns."""
    config = sizes.transformer
    dvae = folder / "dvae"
    if not dvae.exists():
        DiscreteVAE(DVAEConfig(vocabulary=config.image_vocabulary, width=8, blocks_per_group=1)).save(dvae)
    caption, image = random_tokens(config, sizes.batch)
    batch = TokenizedBatch(caption, image, image, [str(number) for number in range(sizes.batch)])
    overrides = [
        f"data.image_size={8 * config.grid}",
        *_of_stage([TOKENIZER, "caption_dropout=0", "guidance=1", "optimizer.kind=adamw"]),
    ]
    return [
        our_update(
            name,
            "transformer",
            precision,
            overrides,
            sizes.batch,
            count=sizes.batch * (config.text_positions + config.grid**2),
            folder=folder,
            batch=batch,
            model=Transformer(replace(config, patterns=[pattern])),
        )
        for name, pattern in (("this project", "dense"), ("this project, the paper's patterns", "paper"))
        for precision in PRECISIONS
    ]


def dvae(sizes: Sizes, folder: Path) -> list[Case]:
    """Return updates of the dVAE with a Gumbel-softmax relaxation."""
    chosen = ["vocabulary", "width", "blocks_per_group", "decoder_input"]
    model = [f"model.{name}={getattr(sizes.dvae, name)}" for name in chosen]
    overrides = [f"data.image_size={sizes.image_size}", *_of_stage(model)]
    return [
        our_update("this project", "dvae", precision, overrides, sizes.images, sizes.images, folder)
        for precision in PRECISIONS
    ]


def clip(sizes: Sizes, folder: Path) -> list[Case]:
    model = [f"model.{name}={value}" for name, value in sizes.clip.items()]
    overrides = [f"data.image_size={sizes.image_size}", *_of_stage([*model, TOKENIZER])]
    return [
        our_update("this project", "clip", precision, overrides, sizes.pairs, sizes.pairs, folder)
        for precision in PRECISIONS
    ]


def reconstruction(sizes: Sizes, folder: Path) -> list[Case]:
    """Return encoding and decoding of one image by the dVAE of OpenAI's size."""
    model = DiscreteVAE(sizes.official).eval()
    image = torch.rand(1, 3, sizes.official_size, sizes.official_size)

    def run(precision: str) -> None:
        with torch.inference_mode(), autocast(precision, CPU):
            model.decode(model.encode(image))

    size = bytes_of(model)
    return [
        Case("this project", precision, lambda precision=precision: run(precision), 1, size, ours=True)
        for precision in PRECISIONS
    ]


def attention(sizes: Sizes, folder: Path) -> list[Case]:
    """Return forward and backward passes of attention in the paper's order of layers, sparse and with dense masks."""
    q, k, v = torch.randn(3, 4, sizes.long.heads, sizes.long.text_positions + sizes.long.grid**2, 64)
    cases = []
    for name, way in (("sparse, the paper's order of layers", "sparse"), ("dense masks", "dense")):
        model = Transformer(replace(sizes.long, attention=way))
        layers = [model.attend[pattern_name] for pattern_name in model.pattern_names]
        for precision in PRECISIONS:
            dtype = getattr(torch, precision)
            inputs = [tensor.to(dtype).requires_grad_() for tensor in (q, k, v)]

            def run(layers: list[nn.Module] = layers, inputs: list[Tensor] = inputs) -> None:
                for attend in layers:
                    attend(*inputs).sum().backward()

            positions = inputs[0].shape[0] * inputs[0].shape[2]
            cases.append(Case(name, precision, run, positions, ours=way == "sparse"))
    return cases


def relaxation(sizes: Sizes, folder: Path) -> list[Case]:
    """Return the Gumbel-softmax relaxation with the decoder's first layer, forward and backward, for two images."""
    cases = []
    config = sizes.official
    model = DiscreteVAE(config)
    side = sizes.official_size // 8
    for precision in PRECISIONS:
        logits = torch.randn(2, config.vocabulary, side, side).to(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(config.vocabulary, config.decoder_input).requires_grad_()

        def ours(logits: Tensor = logits, precision: str = precision) -> None:
            with autocast(precision, CPU):
                model.embed_relaxed(logits, 0.5).sum().backward()

        def plain(logits: Tensor = logits, weight: Tensor = weight, precision: str = precision) -> None:
            with autocast(precision, CPU):
                codes = F.gumbel_softmax(logits, tau=0.5, dim=1)
                torch.einsum("bnhw,nd->bdhw", codes, weight).sum().backward()

        cases.append(Case("this project", precision, ours, 2 * side**2, ours=True))
        cases.append(Case("F.gumbel_softmax and einsum, as in dalle-pytorch", precision, plain, 2 * side**2))
    return cases


def our_update(
    name: str,
    stage_name: str,
    precision: str,
    overrides: list[str],
    batch_size: int,
    count: int,
    folder: Path,
    batch: TokenizedBatch | None = None,
    model: Transformer | None = None,
) -> Case:
    """Return an update of a stage by the training loop, on one batch loaded beforehand.

    overrides: on top of preset=tiny.
    batch: None: the first batch of generated scenes.
    model: in place of the stage's transformer, whose vocabulary has the few words of generated scenes.
    """
    quiet = ["log_every=0", "validate_every=0", "preview_every=0", "save_every=0", "workers=0", "ema.every=1000000"]
    run_settings = [f"precision={precision}", f"batch_size={batch_size}", "accumulate=1"]
    data = ["data=blocks", f"data.train={4 * batch_size}", "data.val=2", "wandb.mode=disabled"]
    config = compose(
        "train", [f"stage={stage_name}", "preset=tiny", *data, *_of_stage(quiet + run_settings), *overrides]
    )
    stage = STAGES[stage_name].build(config.stage, config.data, StageContext(0, CPU, folder / "dvae"))
    if model is not None:
        assert isinstance(stage, TransformerStage)
        stage.model = model
    run = folder / f"{stage_name}-{name}-{precision}"
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        trainer = Trainer(stage, config.stage, Run(run, {}, 0, CPU, config.wandb))
    trainer.batches = itertools.cycle([next(trainer.batches) if batch is None else batch])
    return Case(name, precision, trainer.update, count, bytes_of(stage.model), ours=True)


def random_tokens(config: TransformerConfig, batch: int) -> tuple[Tensor, Tensor]:
    """Return random captions without padding and random images: (b, text_positions), (b, grid * grid)."""
    generator = torch.Generator().manual_seed(0)
    caption = torch.randint(1, config.text_vocabulary // 2, (batch, config.text_positions), generator=generator)
    image = torch.randint(config.image_vocabulary, (batch, config.grid**2), generator=generator)
    return caption, image


def bytes_of(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def _of_stage(overrides: list[str]) -> list[str]:
    return [f"stage.{override}" for override in overrides]
