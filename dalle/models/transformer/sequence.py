"""Every position of the transformer's stream: what stands where, what is its input, and what it predicts.

T = `text_positions` text states, then I = `grid * grid` image states in raster order (Sec. 2.2, App. B.1):

    state      0    1    ...  T-1       T     T+1  ...  T+I-1
    input      SOT  t[0] ...  t[T-2]    SOI   z[0] ...  z[I-2]      shifted right by one
    predicts   t[0] t[1] ...  t[T-1]    z[0]  z[1] ...  z[I-1]

Figure 10, as it was described to us, counts SOT among the text slots (not confirmed); read so, a caption has at
most T - 1 tokens (255 of the paper's 256), and the image sees all of them. Slots after the caption's last token
are pads: their input is a vector learned for that slot alone, and they are attended to like any other state. Text
other than pads has a learned position added, image inputs the row and the column of the cell that their state
predicts (SOI: row 0, column 0). Other readings are fields of `Stream`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD = -1  # stands in a caption tensor wherever there is no token
IGNORED = -100  # target that F.cross_entropy leaves out
PAD_TARGETS = ("none", "first", "all")
PADS = ("learned", "masked")
IMAGE_PLACES = ("predicted", "own")


@dataclass(frozen=True)
class Stream:
    """The arithmetic of the stream, without parameters."""

    text_positions: int  # T: SOT and the caption's tokens, then pads
    text_vocabulary: int  # BPE entries; the id after the last is SOT as an input and "pad" as a target
    image_vocabulary: int  # codebook size; the id after the last is SOI as an input
    grid: int  # image tokens per side: I = grid * grid
    pads: str = "learned"  # "learned" vectors that all later states see | "masked", seen by no state
    image_places: str = "predicted"  # an image input's row and column: of the cell "predicted" next | its "own"

    def __post_init__(self):
        if self.text_positions < 2:
            raise ValueError(f"text_positions={self.text_positions} holds no caption; use at least 2")
        if self.grid < 1:
            raise ValueError(f"grid={self.grid} holds no image; use at least 1")
        if self.pads not in PADS:
            raise ValueError(f"unknown kind of pads {self.pads!r}; choose one of {', '.join(PADS)}")
        if self.image_places not in IMAGE_PLACES:
            raise ValueError(f"unknown image places {self.image_places!r}; choose one of {', '.join(IMAGE_PLACES)}")

    @property
    def caption_limit(self) -> int:
        """The longest caption, in tokens."""
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

    def captions(self, captions: Sequence[Sequence[int]], truncate: bool = False) -> Tensor:
        """Token ids of each caption -> (b, T) int64, `PAD` where no token stands.

        Raises:
            ValueError: a caption has no tokens, or more than `caption_limit` and `truncate` is off.
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
            kept = ids[: self.caption_limit]
            padded[row, : len(kept)] = torch.as_tensor(kept)
        return padded

    def text_inputs(self, caption: Tensor) -> Tensor:
        """(b, T) caption -> (b, T) inputs of the text states: SOT, then the caption without its last slot."""
        start = torch.full_like(caption[:, :1], self.start_of_text)
        return torch.cat([start, caption[:, :-1]], dim=1)

    def hidden(self, caption: Tensor) -> Tensor | None:
        """(b, T) caption -> (b, T) bool: the text states that no state sees. None where all are seen."""
        return self.text_inputs(caption) == PAD if self.pads == "masked" else None

    def image_inputs(self, image: Tensor) -> Tensor:
        """(b, I) image tokens -> (b, I) inputs of the image states: SOI, then all tokens but the last."""
        start = torch.full_like(image[:, :1], self.start_of_image)
        return torch.cat([start, image[:, :-1]], dim=1)

    def text_targets(self, caption: Tensor, pads: str = "first") -> Tensor:
        """(b, T) caption -> (b, T) classes in [0, text_vocabulary], `IGNORED` where nothing is asked.

        Whether pads count in the text loss is not in the paper. Their class is `text_vocabulary`. "first":
        the caption's end is learned, as part of p(caption), and the certain pads behind it don't dilute the
        mean; "none": words only; "all": every slot.
        """
        if pads not in PAD_TARGETS:
            raise ValueError(f"unknown pad targets {pads!r}; choose one of {', '.join(PAD_TARGETS)}")
        is_pad = caption == PAD
        after_end = is_pad & (is_pad.cumsum(dim=1) > 1)
        ignored = {"none": is_pad, "first": after_end, "all": torch.zeros_like(is_pad)}[pads]
        return caption.masked_fill(is_pad, self.text_vocabulary).masked_fill(ignored, IGNORED)

    def split(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(b, n, d) -> text states (b, T, d), image states (b, I, d)."""
        return states[:, : self.text_positions], states[:, self.text_positions :]


class StreamEmbedding(nn.Module):
    """Embeds the inputs of the stream's states (App. B.1, Figure 10)."""

    def __init__(self, stream: Stream, width: int):
        super().__init__()
        self.stream = stream
        self.place_lag = 0 if stream.image_places == "predicted" else 1  # cells from a state's to its place
        self.text_token = nn.Embedding(stream.text_vocabulary + 1, width)  # the last is SOT
        self.text_position = nn.Embedding(stream.text_positions, width)
        self.pad = nn.Embedding(stream.text_positions, width)
        self.image_token = nn.Embedding(stream.image_vocabulary + 1, width)  # the last is SOI
        self.row = nn.Embedding(stream.grid, width)
        self.column = nn.Embedding(stream.grid, width)

    def forward(self, caption: Tensor, image: Tensor) -> Tensor:
        """Caption (b, T) with pads, image tokens (b, I) -> (b, T + I, d)."""
        return torch.cat([self.text(caption), self.image(image)], dim=1)

    def text(self, caption: Tensor) -> Tensor:
        """(b, T) -> (b, T, d)."""
        inputs = self.stream.text_inputs(caption)
        is_pad = (inputs == PAD).unsqueeze(-1)
        words = self.text_token(inputs.clamp(min=0)) + self.text_position.weight
        return torch.where(is_pad, self.pad.weight, words)

    def image(self, image: Tensor) -> Tensor:
        """(b, I) -> (b, I, d)."""
        return self.image_token(self.stream.image_inputs(image)) + self.places()

    def places(self) -> Tensor:
        """What is added to the token of each image state for its row and column: (I, d)."""
        cells = (self.row.weight[:, None] + self.column.weight[None, :]).flatten(0, 1)  # (h * w, d)
        return F.pad(cells, (0, 0, self.place_lag, 0))[: len(cells)]

    def image_state(self, previous: Tensor, position: int | Tensor) -> Tensor:
        """Input of the state that predicts cell `position`: (b,) tokens of the cell before it -> (b, d).

        For position 0, `previous` is the stream's `start_of_image`. A position that is a (1,) int64 tensor is looked
        up where it is: on a GPU, without waiting for it.
        """
        token = self.image_token(previous)
        if isinstance(position, Tensor):
            return token + self.places()[position]
        if position < self.place_lag:
            return token  # the start of image has no cell of its own
        row, column = divmod(position - self.place_lag, self.stream.grid)
        return token + self.row.weight[row] + self.column.weight[column]
