"""Bodies of requests: settings of a drawing and of its edit. Types are checked here, ranges by `SamplingConfig`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dalle.sampling.sampling_config import MIXTURE, SCORE_NAMES, UNRANKED, SamplingConfig
from dalle.studio.errors import ApiError, unknown_field

LONGEST_CAPTION = 4000  # characters; the model's own limit is in tokens, and lower
NUM_SEEDS = 2**53  # the largest integers that JavaScript holds

Caption = Annotated[str, Field(max_length=LONGEST_CAPTION)]


class Body(BaseModel):
    """Body of a request. Unknown fields are refused with the nearest name."""

    model_config = ConfigDict(strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(unknown_field(str(name), list(cls.model_fields)))
        return values


class Refined(Body):
    """Fields of edits that are sampled anew several times, to fit the tokens after them. More passes take longer."""

    image: str = Field(description="id of a drawn or uploaded image")
    refinement_passes: int = Field(1, ge=0, le=2)
    proposals: int = Field(4, ge=1, le=16)


class Inpaint(Refined):
    kind: Literal["inpaint"]
    mask: str = Field(description="id of an uploaded mask of the image's size; white is drawn again")


class Extend(Refined):
    kind: Literal["extend"]
    direction: Literal["left", "right", "up", "down"]
    amount: float = Field(0.25, gt=0, le=1, allow_inf_nan=False, description="share of the model's grid that is added")


class Vary(Refined):
    kind: Literal["vary"]
    strength: float = Field(0.5, gt=0, lt=1, allow_inf_nan=False, description="share of tokens that are drawn anew")


class Complete(Body):
    kind: Literal["complete"]
    image: str = Field(description="id of a drawn or uploaded image")
    rows: int | None = Field(None, description="rows of tokens that are kept, from the top; null: the paper's 15 of 32")


Edit = Annotated[Inpaint | Extend | Vary | Complete, Field(discriminator="kind")]
Rerank = Literal["clip", "image_likelihood", "caption_likelihood", "mixture", "none"]
assert set(Rerank.__args__) == {*SCORE_NAMES, MIXTURE, UNRANKED}


class Settings(Body):
    """Settings of sampling that all requests share."""

    temperature: float | None = Field(None, allow_inf_nan=False, description="null: the checkpoint's")
    top_k: int | None = None
    top_p: float | None = Field(None, allow_inf_nan=False)
    min_p: float | None = Field(None, allow_inf_nan=False)
    guidance: float | None = Field(None, allow_inf_nan=False, description="null: the checkpoint's")
    seed: int | None = Field(None, ge=0, lt=NUM_SEEDS, description="null: a random one")
    rerank: Rerank | None = Field(None, description="null: the checkpoint's")
    decoder: bool = False


class DrawRequest(Settings):
    """Body of `POST /api/jobs`."""

    caption: Caption
    candidates: int = 8
    keep: int | None = Field(None, description="images kept, the best ones; null: all")
    edit: Edit | None = None

    def sampling_config(self) -> SamplingConfig:
        """Return the settings as a `SamplingConfig`, for `DALLE.generate`.

        Raises:
            ValueError: a setting out of its range.
        """
        assert self.seed is not None
        settings = self.model_dump(exclude={"caption", "edit", "decoder"})
        settings["keep"] = self.candidates if self.keep is None else self.keep
        settings["rerank"] = None if self.rerank == UNRANKED else self.rerank
        return SamplingConfig(**settings)


class GenerationRequest(Settings):
    """Body of `POST /v1/images/generations`: OpenAI's fields, and the settings of a drawing."""

    prompt: Caption
    n: int = Field(1, ge=1)
    size: str | None = "auto"
    response_format: str | None = "b64_json"
    candidates: int | None = Field(None, description="images drawn, of which the n best are returned; null: n")
    model: str | None = Field(None, description="ignored: the studio has one model")
    user: str | None = Field(None, description="ignored")

    def draw_request(self, image_size: int) -> DrawRequest:
        """Convert the request to a `DrawRequest`. image_size: side of the model's images in pixels.

        Raises:
            ApiError: another size or format than this studio has, or fewer candidates than images.
        """
        model_size = f"{image_size}x{image_size}"
        if self.size not in (None, "auto", model_size):
            raise ApiError(400, f"size={self.size[:20]} is not a size of this model; use {model_size} or auto")
        if self.response_format not in (None, "b64_json"):
            raise ApiError(400, "response_format must be b64_json: the studio gives no addresses to its images")
        settings = self.model_dump(include=set(Settings.model_fields))
        candidates = self.n if self.candidates is None else self.candidates
        if candidates < self.n:
            raise ApiError(400, f"n={self.n} of candidates={candidates} is impossible; raise candidates or lower n")
        return DrawRequest(caption=self.prompt, candidates=candidates, keep=self.n, **settings)
