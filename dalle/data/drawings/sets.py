"""Table of the sets of drawings: the package, style, licence and author of each.

A style is a phrase that a caption can state and a viewer can check. Two sets that look alike share a style.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class DrawingSet:
    """One set of drawings by the same authors in one style, and where to find it."""

    name: str  # also the prefix of keys: "openmoji/1F34E"
    style: str  # key of STYLES
    kind: str  # "emoji": matched by code point; "names": emoji set with names; "icons": icon set with names
    family: str  # sets of a family show the same drawing in several styles, under the same name
    iconify: str = ""  # name of the set in the package @iconify/json, "" for sets with a package of their own
    suffix: str = ""  # keep the names with this ending only, and remove it: "-fill"
    recolour: bool = False  # drawn in a single colour, which can be replaced


# style -> phrases of captions, the first one is the name that the judge and tables show
STYLES: dict[str, tuple[str, ...]] = {
    "outlined cartoon": ("outlined cartoon", "cartoon with black outlines", "comic with black outlines"),
    "line drawing": ("line drawing", "outline drawing", "pen drawing"),
    "flat": ("flat design", "flat illustration", "flat emoji"),
    "shaded": ("shaded cartoon", "shaded emoji", "cartoon with soft shading"),
    "material": ("material design", "paper-like design"),
    "bright flat": ("bright flat design", "bright flat emoji"),
    "3d": ("3D render", "3D model", "computer render"),
    "high contrast": ("high contrast icon", "bold black-and-white icon"),
    "colorful": ("colorful cartoon", "colorful emoji"),
    "retro": ("retro emoji", "old-fashioned emoji"),
    "stencil": ("black stencil", "stencil", "black-and-white stencil"),
    "sticker": ("sticker", "cute sticker with a shadow"),
    "line icon": ("line icon", "minimal line icon", "simple outline icon"),
    "silhouette": ("silhouette", "black silhouette", "solid icon"),
    "blue icon": ("blue icon", "icon with blue fill and black outlines"),
    "gray icon": ("gray icon", "icon with gray fill"),
    "pixel art": ("pixel art", "8-bit pixel art"),
}

STYLE_COLOURS = {"blue icon": "blue", "gray icon": "gray"}  # styles that paint each thing in one colour of captions

SETS: tuple[DrawingSet, ...] = (
    DrawingSet("openmoji", "outlined cartoon", "emoji", "openmoji"),
    DrawingSet("openmoji-black", "line drawing", "emoji", "openmoji", recolour=True),
    DrawingSet("fluent-3d", "3d", "emoji", "fluent"),
    DrawingSet("fluent-flat", "bright flat", "emoji", "fluent", "fluent-emoji-flat"),
    DrawingSet("fluent-high-contrast", "high contrast", "emoji", "fluent", "fluent-emoji-high-contrast", recolour=True),
    DrawingSet("twemoji", "flat", "emoji", "twemoji", "twemoji"),
    DrawingSet("noto", "shaded", "emoji", "noto", "noto"),
    DrawingSet("noto-v1", "material", "names", "noto-v1", "noto-v1"),
    DrawingSet("emojione", "colorful", "names", "emojione", "emojione"),
    DrawingSet("emojione-monotone", "stencil", "names", "emojione", "emojione-monotone", recolour=True),
    DrawingSet("emojione-v1", "retro", "names", "emojione-v1", "emojione-v1"),
    DrawingSet("fxemoji", "flat", "names", "fxemoji", "fxemoji"),
    DrawingSet("streamline-emojis", "sticker", "names", "streamline-emojis", "streamline-emojis"),
    DrawingSet("icon-park", "blue icon", "icons", "icon-park", "icon-park"),
    DrawingSet("icon-park-outline", "line icon", "icons", "icon-park", "icon-park-outline", recolour=True),
    DrawingSet("icon-park-solid", "silhouette", "icons", "icon-park", "icon-park-solid", recolour=True),
    DrawingSet("icon-park-twotone", "gray icon", "icons", "icon-park", "icon-park-twotone"),
    DrawingSet("phosphor", "line icon", "icons", "phosphor", "ph", recolour=True),
    DrawingSet("phosphor-fill", "silhouette", "icons", "phosphor", "ph", suffix="-fill", recolour=True),
    DrawingSet("phosphor-duotone", "gray icon", "icons", "phosphor", "ph", suffix="-duotone"),
    DrawingSet("tabler", "line icon", "icons", "tabler", "tabler", recolour=True),
    DrawingSet("lucide", "line icon", "icons", "lucide", "lucide", recolour=True),
    DrawingSet("game-icons", "silhouette", "icons", "game-icons", "game-icons", recolour=True),
    DrawingSet("mdi", "silhouette", "icons", "mdi", "mdi", recolour=True),
    DrawingSet("font-awesome", "silhouette", "icons", "font-awesome", "fa7-solid", recolour=True),
    DrawingSet("streamline-pixel", "pixel art", "icons", "streamline-pixel", "streamline-pixel", recolour=True),
)
BY_NAME = {drawing_set.name: drawing_set for drawing_set in SETS}
