"""Draw the model, from image to best sample: `make architecture`, or `python docs/architecture.py [file]`.

Each box has its equation in the paper's notation, its file under `dalle/`, and the function or class that computes it.
The layout does not depend on the names. `tests/test_docs.py` checks that every file and name exists.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH = 1200  # pixels
SANS = "-apple-system, BlinkMacSystemFont, 'Segoe UI', 'Noto Sans', Helvetica, Arial, 'DejaVu Sans', sans-serif"
SERIF = "'STIX Two Text', 'Times New Roman', Times, 'DejaVu Serif', serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
INK, FAINT, PAPER, RULE, EMPTY = "#1f2328", "#59636e", "#ffffff", "#d1d9e0", "#edf0f3"
RED, BLUE = "#cf4457", "#3b6fd4"  # the shapes of the example image
DVAE, TRANSFORMER, SAMPLING = "#1a7f64", "#7a4fcf", "#b3640a"  # colours of the panels
TINTS = {DVAE: "#f1faf6", TRANSFORMER: "#f8f5ff", SAMPLING: "#fff9ef"}

SIDE, CELLS = 96, 12  # pixels along a side of an image; tokens along a side, as drawn
CAPTION = ("a small red", "circle above", "a large blue", "square")


class Box(NamedTuple):
    """One step of the model."""

    x: int
    y: int
    width: int
    title: str
    equation: str  # _{...} is a subscript, ^{...} a superscript
    file: str  # under dalle/
    name: str  # defined in it
    colour: str
    training: bool = False  # used in training only: drawn with dashes


FIRST, SECOND, THIRD = 16, 322, 652  # top of each panel
HEIGHTS = {FIRST: 290, SECOND: 290, THIRD: 306}  # of the panels
ROW, BELOW, MIDDLE = 54, 184, 110  # from a panel's top: to its boxes, to those below them, and to the arrows
HEIGHT = THIRD + HEIGHTS[THIRD] + 16

MODEL, PIXELS = "models/transformer/model.py", "models/dvae/model.py"
BOXES = (
    Box(196, FIRST + ROW, 240, "dVAE encoder", "z = argmax_{k} q_{φ}(k | x)", PIXELS, "DiscreteVAE.encode", DVAE),
    Box(806, FIRST + ROW, 220, "dVAE decoder", "mean of p_{θ}(x | z)", PIXELS, "DiscreteVAE.decode", DVAE),
    Box(
        196,
        FIRST + BELOW,
        430,
        "Gumbel-softmax relaxation, Sec. 2.1",
        "z̃ = softmax((ln q_{φ} + g) / τ),  τ from 1 to 1/16",
        "models/dvae/relaxation.py",
        "gumbel_softmax",
        DVAE,
        training=True,
    ),
    Box(
        754,
        FIRST + BELOW,
        406,
        "Loss of the dVAE, Eq. 1",
        "−ln p_{θ}(x | z̃) + β KL(q_{φ}(z | x) ‖ uniform)",
        "losses.py",
        "per_pixel_loss",
        DVAE,
        training=True,
    ),
    Box(
        196,
        SECOND + ROW,
        240,
        "BPE tokenizer, fn. 5",
        "y = BPE(caption)",
        "tokenizer.py",
        "CaptionTokenizer.encode",
        TRANSFORMER,
    ),
    Box(
        920,
        SECOND + ROW,
        240,
        "Transformer, Sec. 2.2",
        "p_{ψ}(y, z) = ∏_{i} p_{ψ}(t_{i} | t_{<i})",
        MODEL,
        "Transformer.forward",
        TRANSFORMER,
    ),
    Box(
        196,
        SECOND + BELOW,
        430,
        "Attention of the 64 layers, Fig. 11",
        "row, column, row, row, … , convolutional",
        "models/transformer/patterns.py",
        "pattern_names",
        TRANSFORMER,
    ),
    Box(
        654,
        SECOND + BELOW,
        406,
        "Loss of the transformer, Sec. 2.2",
        "1/8 text + 7/8 image,  each −ln p_{ψ}(t_{i} | t_{<i})",
        "stages/transformer.py",
        "TransformerStage.loss",
        TRANSFORMER,
        training=True,
    ),
    Box(
        40,
        THIRD + ROW,
        230,
        "Sample 512, Sec. 2.6",
        "z_{i} ~ p_{ψ}(z_{i} | y, z_{<i})",
        "sampling/decode.py",
        "TokenSampler.sample",
        SAMPLING,
    ),
    Box(436, THIRD + ROW, 210, "dVAE decoder", "mean of p_{θ}(x | z)", PIXELS, "DiscreteVAE.decode", SAMPLING),
    Box(814, THIRD + ROW, 210, "Rank with CLIP", "max cos(f(x), g(y))", "sampling/rerank.py", "Reranker", SAMPLING),
    Box(
        654,
        THIRD + BELOW + 16,
        406,
        "Loss of CLIP, Radford et al. 2021",
        "cross-entropy of e^{s} f(x)·g(y), both ways",
        "losses.py",
        "contrastive",
        SAMPLING,
        training=True,
    ),
)
SEQUENCE = ("models/transformer/sequence.py", "SequenceLayout")
REFERENCES = [SEQUENCE, *((box.file, box.name) for box in BOXES)]  # every file, under dalle/, and name in the drawing


def draw() -> str:
    """Return the drawing as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" font-family="{SANS}">',
        "<title>DALL-E: from image and caption to the best sample</title>",
        f'<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 1 L9 5 L0 9 Z" fill="{FAINT}"/></marker><g id="tokens">{token_grid()}</g></defs>',
        rectangle(0, 0, WIDTH, HEIGHT, PAPER, radius=0),
        panel(FIRST, "1. Discrete VAE: an image as 32 × 32 tokens", DVAE),
        panel(SECOND, "2. Transformer: caption and image as one sequence", TRANSFORMER),
        panel(THIRD, "3. Sampling: draw 512 candidates, keep those that CLIP ranks first", SAMPLING),
        *draw_dvae(),
        *draw_transformer(),
        *draw_sampling(),
        *(draw_box(box) for box in BOXES),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def draw_dvae() -> list[str]:
    """Draw the images, tokens and arrows of the first panel."""
    top, line = FIRST + MIDDLE - SIDE // 2, FIRST + MIDDLE
    return [
        label(88, top - 11, "x: 256 × 256"),
        scene(40, top),
        arrow((136, line), (194, line)),
        arrow((436, line), (640, line)),
        label(538, line - 10, "each one of 8,192"),
        label(690, top - 11, "z: 32 × 32"),
        tokens(642, top),
        arrow((738, line), (804, line)),
        arrow((1026, line), (1062, line)),
        scene(1064, top),
        label(1112, top - 11, "reconstruction"),
        arrow((690, top + SIDE + 2), (690, SECOND + MIDDLE - 14)),
    ]


def draw_transformer() -> list[str]:
    """Draw the caption, the sequence and the arrows of the second panel."""
    line = SECOND + MIDDLE
    text, image = ([start + 28 * number for number in range(count)] for start, count in ((476, 4), (604, 10)))
    return [
        label(96, line - 59, "y: a caption"),
        rectangle(40, line - 48, 112, 96, PAPER, RULE),
        *(write(96, line - 20 + 17 * row, words, 14, INK, anchor="middle") for row, words in enumerate(CAPTION)),
        arrow((152, line), (194, line)),
        arrow((436, line), (472, line)),
        write(530, line - 24, "t = (y, z)", 18, INK, SERIF, anchor="middle"),
        *(rectangle(x, line - 12, 24, 24, "#cbb8f0", radius=4) for x in text),
        *(rectangle(x, line - 12, 24, 24, token_colour(1 + number, 3), radius=4) for number, x in enumerate(image)),
        label(530, line + 32, "256 of text"),
        label(742, line + 32, "1,024 of the image"),
        write(680, line + 56, f"{SEQUENCE[0]}: {SEQUENCE[1]}", 13, FAINT, MONO, anchor="middle"),
        arrow((884, line), (918, line)),
        arrow((1110, line + 56), (1110, THIRD - 20), (28, THIRD - 20), (28, THIRD + MIDDLE), (38, THIRD + MIDDLE)),
        label(1098, THIRD - 26, "p(z | y)", anchor="end"),
    ]


def draw_sampling() -> list[str]:
    """Draw the candidates and arrows of the third panel, and the legend."""
    top, line = THIRD + MIDDLE - SIDE // 2, THIRD + MIDDLE
    under = top + SIDE + 22
    return [
        arrow((270, line), (306, line)),
        *(tokens(308 + 6 * back, top - 6 * back) for back in (2, 1, 0)),
        label(356, under, "512 × 1,024 tokens"),
        arrow((416, line), (434, line)),
        arrow((646, line), (684, line)),
        *(scene(686 + 6 * back, top - 6 * back, shift=-3 * back) for back in (2, 1, 0)),
        label(734, under, "512 images"),
        arrow((794, line), (812, line)),
        arrow((1024, line), (1060, line)),
        scene(1064, top),
        rectangle(1062, top - 2, SIDE + 4, SIDE + 4, "none", SAMPLING, width=3),
        label(1112, under, "the best"),
        write(40, THIRD + BELOW + 56, "Files are under dalle/. Symbols are the paper's.", 14, FAINT),
        write(40, THIRD + BELOW + 78, "Dashed boxes are used in training only.", 14, FAINT),
    ]


def panel(y: int, title: str, colour: str) -> str:
    """Draw the background and the title of one part."""
    back = rectangle(16, y, WIDTH - 32, HEIGHTS[y], TINTS[colour], radius=10)
    return back + write(40, y + 30, title, 18, colour, weight=600)


def draw_box(box: Box) -> str:
    """Draw a step: title, equation, file and name."""
    wide = box.width > 300
    middle = box.x + box.width / 2
    where = [f"{box.file}: {box.name}"] if wide else [box.file, box.name]
    return "".join(
        [
            rectangle(box.x, box.y, box.width, 90 if wide else 112, PAPER, box.colour, width=1.5, dashed=box.training),
            write(middle, box.y + 24, box.title, 15, box.colour, anchor="middle", weight=600),
            write(middle, box.y + 51, box.equation, 18, INK, SERIF, anchor="middle"),
            *(write(middle, box.y + 76 + 20 * row, text, 13, FAINT, MONO, "middle") for row, text in enumerate(where)),
        ]
    )


def scene(x: int, y: int, shift: int = 0) -> str:
    """Draw the example image with its top left corner at (x, y); `shift` moves its shapes apart."""
    circle = f'<circle cx="{x + 48 + shift}" cy="{y + 26}" r="14" fill="{RED}"/>'
    square = rectangle(x + 27 - shift, y + 48, 42, 42, BLUE, radius=0)
    return rectangle(x, y, SIDE, SIDE, PAPER, RULE, radius=3) + circle + square


def tokens(x: int, y: int) -> str:
    """Draw the tokens of the example image with their top left corner at (x, y)."""
    return f'<use href="#tokens" x="{x}" y="{y}"/>'


def token_grid() -> str:
    """Draw the tokens of the example image as a grid of coloured cells at the origin."""
    size = SIDE // CELLS
    cells = [
        rectangle(column * size, row * size, size - 1, size - 1, token_colour(column, row), radius=1)
        for row in range(CELLS)
        for column in range(CELLS)
    ]
    return rectangle(-2, -2, SIDE + 3, SIDE + 3, PAPER, RULE, radius=3) + "".join(cells)


def token_colour(column: int, row: int) -> str:
    """Return the colour of a cell of the example image's tokens; cells along the outlines are lighter."""
    x, y = 8 * column + 4, 8 * row + 4
    from_circle = ((x - 48) ** 2 + (y - 26) ** 2) ** 0.5 - 14
    from_square = max(abs(x - 48) - 21, abs(y - 69) - 21)
    for distance, inside, edge in ((from_circle, RED, "#ecb4bc"), (from_square, BLUE, "#b1c5ee")):
        if distance < 4:
            return inside if distance < -3 else edge
    return EMPTY


def rectangle(
    x: float,
    y: float,
    width_: float,
    height: float,
    fill: str,
    stroke: str = "none",
    radius: int = 6,
    width: float = 1,
    dashed: bool = False,
) -> str:
    outline = "" if stroke == "none" else f' stroke="{stroke}" stroke-width="{width}"'
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<rect x="{x}" y="{y}" width="{width_}" height="{height}" rx="{radius}" fill="{fill}"{outline}{dashes}/>'


def arrow(*points: tuple[int, int]) -> str:
    """Draw a line through `points` with a head at the last one."""
    path = " ".join(f"{'L' if number else 'M'}{x} {y}" for number, (x, y) in enumerate(points))
    return f'<path d="{path}" fill="none" stroke="{FAINT}" stroke-width="1.5" marker-end="url(#head)"/>'


def label(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return write(x, y, text, 14, FAINT, anchor=anchor)


def write(
    x: float,
    y: float,
    text: str,
    size: float,
    fill: str,
    family: str | None = None,
    anchor: str = "start",
    weight: int = 400,
) -> str:
    """Write a line of text with its baseline at y. `_{...}` is set lower and `^{...}` higher, both smaller."""
    spans, raised = [], 0.0
    for plain, mark, small in re.findall(r"((?:[^_^]|[_^](?!\{))+)|([_^])\{([^}]*)\}", text):
        target = {"": 0.0, "_": 0.25 * size, "^": -0.35 * size}[mark]
        scale = f' font-size="{0.7 * size:.1f}"' if mark else ""
        spans.append(f'<tspan dy="{target - raised:.1f}"{scale}>{escape(plain or small)}</tspan>')
        raised = target
    content = spans[0][spans[0].index(">") + 1 : -len("</tspan>")] if len(spans) == 1 else "".join(spans)
    font = f' font-family="{family}"' if family else ""
    bold = f' font-weight="{weight}"' if weight != 400 else ""
    place = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}"{font}{bold}{place}>{content}</text>'


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg")
    path.write_text(draw(), encoding="utf-8", newline="\n")
    print(path)
