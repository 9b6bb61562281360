"""Layout of the transformer's sequence: inputs and targets of every position, and the input embedding.

T = `text_positions` text positions, then I = `grid * grid` image positions in raster order (Sec. 2.2, App. B.1):

    position   0    1    ...  T-1       T     T+1  ...  T+I-1
    input      SOT  t[0] ...  t[T-2]    SOI   z[0] ...  z[I-2]      shifted right by one
    predicts   t[0] t[1] ...  t[T-1]    z[0]  z[1] ...  z[I-1]

SOT counts as one of the text positions, according to a description of Figure 10 (not confirmed). A caption then has at
most T - 1 tokens (255 of the paper's 256), and image positions attend to all of them. Positions after the caption's
last token are padding: each has its own learned embedding as input, and is attended to like any other position. Text
tokens have a learned position embedding added. Image tokens have row and column embeddings added, those of the cell
that the position predicts (SOI: row 0, column 0). `SequenceLayout` has fields for the alternatives that the paper
leaves open.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.models.linear_cross_entropy import IGNORED

PAD = -1  # padding id in caption tensors
MAX_POSITIONS = 20_000  # a mask of 400 MB for each pattern
PAD_LOSS_OPTIONS = ("none", "first", "all")
PADDING = ("learned", "masked")
IMAGE_POSITION_EMBEDDINGS = ("predicted", "own")


@dataclass(frozen=True)
class SequenceLayout:
    """Sequence layout of text and image tokens, without parameters. Raises ValueError for invalid sizes or names."""

    text_positions: int  # T: SOT and the caption's tokens, then padding
    text_vocabulary: int  # BPE vocabulary size, also the id of SOT as an input and the class of padding as a target
    image_vocabulary: int  # codebook size, also the id of SOI as an input
    grid: int  # image tokens per side: I = grid * grid
    pads: str = "learned"  # padding is "learned" embeddings, attended to | "masked", never attended to
    # position embedding of an image token: "predicted", of the cell predicted from it | "own", of its own cell
    image_position_embedding: str = "predicted"

    def __post_init__(self):
        if self.text_positions < 2:
            raise ValueError(f"text_positions={self.text_positions} holds no caption; use at least 2")
        if self.grid < 1:
            raise ValueError(f"grid={self.grid} holds no image; use at least 1")
        if self.positions > MAX_POSITIONS:
            raise ValueError(
                f"text_positions={self.text_positions} and grid={self.grid} make {self.positions:,} positions; use at "
                f"most {MAX_POSITIONS:,}, as attention masks grow with their square"
            )
        if self.pads not in PADDING:
            raise ValueError(f"pads={self.pads!r} is unknown; choose one of {', '.join(PADDING)}")
        if self.image_position_embedding not in IMAGE_POSITION_EMBEDDINGS:
            raise ValueError(
                f"image_position_embedding={self.image_position_embedding!r} is unknown; choose one of "
                f"{', '.join(IMAGE_POSITION_EMBEDDINGS)}"
            )

    @property
    def caption_limit(self) -> int:
        """Maximum length of a caption in tokens."""
        return self.text_positions - 1

    @property
    def image_positions(self) -> int:
        return self.grid * self.grid

    @property
    def positions(self) -> int:
        return self.text_positions + self.image_positions

    @property
    def start_of_text(self) -> int:
        return self.text_vocabulary

    @property
    def start_of_image(self) -> int:
        return self.image_vocabulary

    def pad_captions(self, captions: Sequence[Sequence[int]], truncate: bool = False) -> Tensor:
        """Pad the token ids of captions to the text positions, with `PAD`: (b, T) int64.

        Raises:
            ValueError: a caption has no tokens, or more than `caption_limit` while `truncate` is False.
        """
        padded = torch.full((len(captions), self.text_positions), PAD, dtype=torch.int64)
        for row, ids in enumerate(captions):
            if not ids:
                raise ValueError("the caption is empty; give at least one word")
            if len(ids) > self.caption_limit and not truncate:
                raise ValueError(
                    f"the caption is {len(ids)} tokens long and {self.caption_limit} fit "
                    f"(text_positions={self.text_positions}); shorten it"
                )
            truncated = ids[: self.caption_limit]
            padded[row, : len(truncated)] = torch.as_tensor(truncated)
        return padded

    def text_inputs(self, caption: Tensor) -> Tensor:
        """Return the inputs of the text positions, SOT and the caption without its last token: (b, T) -> (b, T)."""
        start = torch.full_like(caption[:, :1], self.start_of_text)
        return torch.cat([start, caption[:, :-1]], dim=1)

    def key_padding_mask(self, caption: Tensor) -> Tensor | None:
        """Return the key padding mask of text positions, (b, T) bool, true where masked; None if padding is learned."""
        return self.text_inputs(caption) == PAD if self.pads == "masked" else None

    def image_inputs(self, image: Tensor) -> Tensor:
        """Return the inputs of the image positions, SOI and all tokens but the last: (b, I) -> (b, I)."""
        start = torch.full_like(image[:, :1], self.start_of_image)
        return torch.cat([start, image[:, :-1]], dim=1)

    def text_targets(self, caption: Tensor, pad_loss: str = "first") -> Tensor:
        """Return the targets of the text positions: (b, T) captions -> (b, T) classes in [0, text_vocabulary].

        Padding has the class `text_vocabulary`. The paper does not say if padding counts in the text loss. "first": the
        first padding token counts, so the caption's end is learned as part of p(caption), and the predictable padding
        after it does not dilute the mean; "none": caption tokens only; "all": every position. Others are `IGNORED`.
        """
        if pad_loss not in PAD_LOSS_OPTIONS:
            raise ValueError(f"pad_loss={pad_loss!r} is unknown; choose one of {', '.join(PAD_LOSS_OPTIONS)}")
        is_padding = caption == PAD
        after_end = is_padding & (is_padding.cumsum(dim=1) > 1)
        ignored = {"none": is_padding, "first": after_end, "all": torch.zeros_like(is_padding)}[pad_loss]
        return caption.masked_fill(is_padding, self.text_vocabulary).masked_fill(ignored, IGNORED)

    def split(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Split hidden states into text and image: (b, n, d) -> (b, T, d), (b, I, d)."""
        return states[:, : self.text_positions], states[:, self.text_positions :]


class SequenceEmbedding(nn.Module):
    """Input embedding of the sequence (App. B.1, Figure 10)."""

    def __init__(self, sequence: SequenceLayout, width: int):
        super().__init__()
        self.sequence = sequence
        # cells between the one that a position predicts and the earlier one whose embedding is added
        self.position_offset = 0 if sequence.image_position_embedding == "predicted" else 1
        self.text_token = nn.Embedding(sequence.text_vocabulary + 1, width)  # the last is SOT
        self.text_position = nn.Embedding(sequence.text_positions, width)
        self.pad = nn.Embedding(sequence.text_positions, width)
        self.image_token = nn.Embedding(sequence.image_vocabulary + 1, width)  # the last is SOI
        self.row = nn.Embedding(sequence.grid, width)
        self.column = nn.Embedding(sequence.grid, width)

    def forward(self, caption: Tensor, image: Tensor) -> Tensor:
        """Embed captions with padding, (b, T), and image tokens, (b, I) -> (b, T + I, d)."""
        return torch.cat([self.text(caption), self.image(image)], dim=1)

    def text(self, caption: Tensor) -> Tensor:
        """Embed the inputs of the text positions: captions with padding, (b, T) -> (b, T, d)."""
        inputs = self.sequence.text_inputs(caption)
        is_padding = (inputs == PAD).unsqueeze(-1)
        tokens = self.text_token(inputs.clamp(min=0)) + self.text_position.weight
        return torch.where(is_padding, self.pad.weight, tokens)

    def image(self, image: Tensor) -> Tensor:
        """Embed the inputs of the image positions: image tokens, (b, I) -> (b, I, d)."""
        # all positions, for training: `image_position_embeddings` has the same values, but rounds gradients differently
        cells = (self.row.weight[:, None] + self.column.weight[None, :]).flatten(0, 1)  # (h * w, d), row plus column
        positions = F.pad(cells, (0, 0, self.position_offset, 0))[: len(cells)]
        return self.image_token(self.sequence.image_inputs(image)) + positions

    def image_position_embeddings(self, positions: Tensor) -> Tensor:
        """Return the position embeddings of image positions, row plus column: (...) int64 -> (..., d).

        It is 0 where no cell's embedding is added: at position 0, if each token has that of its own cell.
        """
        grid = self.sequence.grid
        if not self.position_offset:
            return self.row(positions // grid) + self.column(positions % grid)
        cells = positions - self.position_offset
        embeddings = self.row(cells.clamp(min=0) // grid) + self.column(cells % grid)
        return embeddings.masked_fill((cells < 0).unsqueeze(-1), 0)

    def embed_image_tokens(self, previous: Tensor, positions: Tensor) -> Tensor:
        """Embed the inputs of image positions, the previous tokens: (b, n), (b, n) or (n,) -> (b, n, d).

        Positions past the last one are embedded like the last.
        """
        clamped = positions.clamp(max=self.sequence.image_positions - 1)
        return self.image_token(previous) + self.image_position_embeddings(clamped)

    def embed_decoding_step(self, previous: Tensor, position: int | Tensor) -> Tensor:
        """Embed the input of one image position, the previous token of each image: (b,) -> (b, d).

        For position 0, `previous` is the sequence's `start_of_image`. A position given as a (1,) int64 tensor is looked
        up on its device, without synchronising with the GPU.
        """
        token = self.image_token(previous)
        if isinstance(position, Tensor):
            return token + self.image_position_embeddings(position)
        # special case for speed on a CPU, where it takes half the time of looking up a tensor; it adds in another order
        if position < self.position_offset:
            return token  # the start-of-image token has no cell
        row, column = divmod(position - self.position_offset, self.sequence.grid)
        return token + self.row.weight[row] + self.column.weight[column]
