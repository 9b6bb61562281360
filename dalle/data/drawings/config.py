"""Settings of the data source `drawings`."""

from dataclasses import dataclass, field

from dalle.data.drawings.subjects import GROUPS
from dalle.data.source import check_image_size

PEOPLE = ("stated", "open")


@dataclass(frozen=True)
class MixConfig:
    """Numbers of composed pictures of each kind, per drawing of a split."""

    colours: float = 0.4  # drawings of a single colour in another one: "a green umbrella"
    panels: float = 0.6  # the same drawing in two styles, one above the other
    scenes: float = 0.3  # two drawings: "two owls", "a rocket above a house"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"data.mix.{name}={value} must be at least 0")


@dataclass
class DrawingsConfig:
    """Emoji and icon sets: 32,800 drawings (22,400 without a skin tone) of 1,977 concepts in 17 styles, with names.

    They are built with `make drawings`, and rendered once. Needs extra packages: pip install 'dalle[data]'.

    Splits: train and val by concept; novel has concepts in styles, colours has concepts in colours, in which training
    never shows them.
    Attribution: docs/drawings.md lists the authors and licences of all sets. Show with the images, and with images of
    models trained on them:
    "Drawings: OpenMoji (CC BY-SA 4.0), Fluent Emoji (Microsoft, MIT), Twemoji (CC BY 4.0), Noto Emoji (Google, Apache
    2.0), EmojiOne (CC BY 4.0, CC BY-SA 4.0) and icon sets: docs/drawings.md"
    """

    name: str = "drawings"
    path: str = "outputs/drawings"  # folder built by `make drawings`
    image_size: int = 128  # side in pixels of the square images that models get
    validation_share: float = 0.07  # share of the concepts held out for validation
    languages: list[str] = field(default_factory=lambda: ["en"])  # of the captions; panels and scenes are in English
    people: str = "stated"  # stated: captions name the skin tone that is drawn, in English | open: they leave it open
    skin_tones: float = 0.3  # share of the drawings with a skin tone that are used, besides those without one
    groups: list[str] = field(default_factory=list)  # use these groups of things only, such as [food-drink]; []: all
    mix: MixConfig = field(default_factory=MixConfig)
    opt_out: str = ""  # text file of keys to leave out
    seed: int = 0  # of the choice of composed pictures

    def __post_init__(self) -> None:
        if isinstance(self.mix, dict):  # from the JSON of a checkpoint
            self.mix = MixConfig(**self.mix)
        if not 0 < self.validation_share < 1:
            raise ValueError(f"data.validation_share must lie between 0 and 1, got {self.validation_share}")
        if not 0 <= self.skin_tones <= 1:
            raise ValueError(f"data.skin_tones must lie between 0 and 1, got {self.skin_tones}")
        check_image_size(self.image_size)
        if self.people not in PEOPLE:
            raise ValueError(f"data.people={self.people} is unknown; choose one of {', '.join(PEOPLE)}")
        if unknown := [group for group in self.groups if group not in GROUPS]:
            raise ValueError(f"data.groups: there is no group {', '.join(unknown)}; the groups are {', '.join(GROUPS)}")
        if not self.languages:
            raise ValueError("data.languages is empty; name at least one, such as [en]")
