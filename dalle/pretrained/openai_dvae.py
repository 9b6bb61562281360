"""Import of OpenAI's dVAE from its two published files.

The files are whole modules of the package `dall_e`, pickled by `torch.save`. They are read as data, without executing
code; see `dalle.pretrained.restricted_unpickler`. Sizes are inferred from the tensor shapes, so models of other sizes
saved by the same code can be read as well, and so can state dicts of the two modules.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dalle.checkpoint import CheckpointError
from dalle.pretrained.pretrained_weights import PretrainedWeights, origin
from dalle.pretrained.restricted_unpickler import TorchFile, read_torch_file

URL = "https://cdn.openai.com/dall-e/{}.pkl"

# the paper's likelihood and final temperature (Section 2.1, Appendix A.2), for evaluation
EVALUATION_META = {"likelihood": {"kind": "logit_laplace"}, "temperature": 1 / 16}

# classes in the published files
CLASSES = frozenset(
    {
        "dall_e.encoder.Encoder",
        "dall_e.encoder.EncoderBlock",
        "dall_e.decoder.Decoder",
        "dall_e.decoder.DecoderBlock",
        "dall_e.utils.Conv2d",
        "torch.nn.modules.activation.ReLU",
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.linear.Identity",
        "torch.nn.modules.pooling.MaxPool2d",
        "torch.nn.modules.upsampling.Upsample",
    }
)

# kernel sizes in a residual branch, and the names of its convolutions in OpenAI's code and in ours
KERNELS = {"encoder": (3, 3, 3, 1), "decoder": (1, 3, 3, 3)}
CONVOLUTION_NAMES = {"conv_1": "first", "conv_2": "second", "conv_3": "third", "conv_4": "last"}

# tensors whose shapes distinguish encoder and decoder
IDENTIFYING_TENSORS = ("blocks.input.w", "blocks.output.conv.w")
IDENTIFYING_SHAPES = {
    "encoder": "(width, 3, 7, 7) and (codes, 8 width, 1, 1)",
    "decoder": "(channels, codes, 1, 1) and (6, width, 1, 1)",
}


@dataclass
class OpenAIDVAEConfig:
    """Options of prepare.py import=openai-dvae.

    python prepare.py import=openai-dvae encoder=encoder.pkl decoder=decoder.pkl out=outputs/openai-dvae

    Import OpenAI's dVAE for 256x256 images, with 8,192 codes of 8x8 pixels, from its two published files:
    https://cdn.openai.com/dall-e/encoder.pkl and https://cdn.openai.com/dall-e/decoder.pkl.
    They are read as data; code in them is not executed.
    """

    encoder: str = "encoder.pkl"  # file, from https://cdn.openai.com/dall-e/encoder.pkl
    decoder: str = "decoder.pkl"  # file, from https://cdn.openai.com/dall-e/decoder.pkl


@dataclass(frozen=True)
class ConvolutionMapping:
    """Name of one convolution in OpenAI's files (`source`) and in `DiscreteVAE` (`target`), and its weight's shape."""

    source: str
    target: str
    shape: tuple[int, int, int, int]  # outputs, inputs, kernel height, kernel width


def read_openai_dvae(encoder: str | Path, decoder: str | Path) -> PretrainedWeights:
    """Read OpenAI's dVAE from its two files, without executing code in them.

    Raises CheckpointError if a file is missing, damaged, refers to unexpected code, is another model or the other half,
    or if the two halves are not of the same model.
    """
    paths = {"encoder": Path(encoder).expanduser(), "decoder": Path(decoder).expanduser()}
    halves = {half: _read_half(path, half) for half, path in paths.items()}
    sizes = _common_sizes(paths, {half: _sizes(half, saved.tensors, paths[half]) for half, saved in halves.items()})
    tensors: dict[str, Tensor] = {}
    for half, saved in halves.items():
        tensors |= _convert_state_dict(saved.tensors, list(convolution_mappings(half, sizes)), paths[half])
    config = sizes | {"gain": _gain(halves, paths)}
    return PretrainedWeights("dvae", config, tensors, origin("openai-dvae", **paths) | EVALUATION_META)


def convolution_mappings(half: str, sizes: Mapping[str, int]) -> Iterator[ConvolutionMapping]:
    """Iterate over the convolutions of the "encoder" or "decoder", from input to output; each has weight and bias."""
    widths = [sizes["width"] * 2**group for group in range(sizes["groups"])]
    if half == "encoder":
        input_shape, output_shape = (widths[0], 3, 7, 7), (sizes["vocabulary"], widths[-1], 1, 1)
    else:
        widths.reverse()
        input_shape, output_shape = (sizes["decoder_input"], sizes["vocabulary"], 1, 1), (6, widths[-1], 1, 1)

    yield ConvolutionMapping("blocks.input", f"{half}.input", input_shape)
    inputs = input_shape[0]
    for group, outputs in enumerate(widths):
        for block in range(sizes["blocks_per_group"]):
            source_block, target_block = f"blocks.group_{group + 1}.block_{block + 1}", f"{half}.groups.{group}.{block}"
            if inputs != outputs:
                yield ConvolutionMapping(f"{source_block}.id_path", f"{target_block}.identity", (outputs, inputs, 1, 1))
            channels = [inputs, *[outputs // 4] * 3, outputs]
            for number, (name, kernel) in enumerate(zip(CONVOLUTION_NAMES, KERNELS[half], strict=True)):
                shape = (channels[number + 1], channels[number], kernel, kernel)
                yield ConvolutionMapping(
                    f"{source_block}.res_path.{name}", f"{target_block}.{CONVOLUTION_NAMES[name]}", shape
                )
            inputs = outputs
    yield ConvolutionMapping("blocks.output.conv", f"{half}.output", output_shape)


def _read_half(path: Path, half: str) -> TorchFile:
    if not path.exists():
        raise CheckpointError(f"there is no file {path}; OpenAI's {half} is published at {URL.format(half)}")
    return read_torch_file(path, CLASSES.__contains__)


def _sizes(half: str, tensors: Mapping[str, Tensor], path: Path) -> dict[str, int]:
    """Infer sizes, fields of a DVAEConfig, from the tensors of `half`, "encoder" or "decoder", in the file `path`.

    Raises CheckpointError if they are not of that half.
    """
    input_shape, output_shape = (_shape(tensors.get(name)) for name in IDENTIFYING_TENSORS)
    actual_half = _identify_half(input_shape, output_shape)
    if actual_half is None:
        shapes = " and ".join(str(shape or "missing") for shape in (input_shape, output_shape))
        raise CheckpointError(
            f"{path} is not the {half} of OpenAI's dVAE: {' and '.join(IDENTIFYING_TENSORS)} have the shapes {shapes}, "
            f"not {IDENTIFYING_SHAPES[half]}"
        )
    if actual_half != half:
        raise CheckpointError(f"{path} is OpenAI's {actual_half}, not the {half}: swap encoder= and decoder=")
    groups = {name.split(".")[1] for name in tensors if re.match(r"blocks\.group_\d+\.", name)}
    blocks = {name.split(".")[2] for name in tensors if re.match(r"blocks\.group_1\.block_\d+\.", name)}
    depth = {
        "groups": max(1, len(groups)),
        "blocks_per_group": max(1, len(blocks)),
    }
    if half == "encoder":
        return {"width": input_shape[0], "vocabulary": output_shape[0], **depth}
    return {"width": output_shape[1], "vocabulary": input_shape[1], "decoder_input": input_shape[0], **depth}


def _identify_half(input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> str | None:
    """Return "encoder" or "decoder" for the weight shapes of the first and the last convolution; None for neither.

    The encoder's input is an image, and the decoder's output has 6 channels.
    """
    if len(input_shape) != 4 or len(output_shape) != 4:
        return None
    if input_shape[1:] == (3, 7, 7):
        return "encoder"
    return "decoder" if input_shape[2:] == (1, 1) and output_shape[0] == 6 else None


def _shape(tensor: Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tuple(tensor.shape)


def _common_sizes(paths: Mapping[str, Path], sizes: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    encoder, decoder = sizes["encoder"], sizes["decoder"]
    for name, size in encoder.items():
        if decoder[name] != size:
            raise CheckpointError(
                f"{paths['encoder']} and {paths['decoder']} are not of one model: "
                f"{name} is {size} in the encoder and {decoder[name]} in the decoder"
            )
    return {**encoder, **decoder}


def _convert_state_dict(
    tensors: Mapping[str, Tensor], expected: list[ConvolutionMapping], path: Path
) -> dict[str, Tensor]:
    """Rename tensors to our state-dict keys. Raises CheckpointError unless names and shapes are those of `expected`."""
    target_keys, shapes = {}, {}
    for convolution in expected:
        target_keys |= {
            f"{convolution.source}.w": f"{convolution.target}.weight",
            f"{convolution.source}.b": f"{convolution.target}.bias",
        }
        shapes |= {f"{convolution.source}.w": convolution.shape, f"{convolution.source}.b": convolution.shape[:1]}
    for name, shape in shapes.items():
        if _shape(tensors.get(name)) != shape:
            problem = "is missing" if name not in tensors else f"is {_shape(tensors[name])}"
            raise CheckpointError(f"{path}: {name} {problem}; expected {shape}")
    for name in tensors:
        if name not in target_keys:
            raise CheckpointError(f"{path} holds the tensor {name}, which OpenAI's dVAE does not have")
    return {target_keys[name]: tensor for name, tensor in tensors.items()}


def _gain(halves: Mapping[str, TorchFile], paths: Mapping[str, Path]) -> float | None:
    """Return the gain of the residual branches, an attribute of saved modules; None if the files are state dicts."""
    gains = {
        number for saved in halves.values() for name, number in saved.numbers.items() if name.endswith(".post_gain")
    }
    if len(gains) > 1:
        raise CheckpointError(
            f"{paths['encoder']} and {paths['decoder']} are not of one model: residual branches have the gains "
            f"{', '.join(str(gain) for gain in sorted(gains))}"
        )
    return next(iter(gains), None)
