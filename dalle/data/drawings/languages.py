"""Style and colour phrases of captions in languages other than English.

Captions in these languages are a name, or a name with tags, and a phrase after a comma, which needs no grammar:
"parapluie, dessin au trait". In languages without phrases, captions are names and tags alone.
"""

# style -> phrase; the keys are those of `dalle.data.drawings.sets.STYLES`
STYLE_PHRASES: dict[str, dict[str, str]] = {
    "de": {
        "outlined cartoon": "Cartoon mit schwarzen Umrissen",
        "line drawing": "Strichzeichnung",
        "flat": "flache Illustration",
        "shaded": "schattierter Cartoon",
        "material": "Material Design",
        "bright flat": "leuchtend flache Illustration",
        "3d": "3D-Darstellung",
        "high contrast": "kontrastreiches Symbol",
        "colorful": "bunter Cartoon",
        "retro": "Retro-Emoji",
        "stencil": "schwarze Schablone",
        "sticker": "Aufkleber",
        "line icon": "Liniensymbol",
        "silhouette": "Silhouette",
        "blue icon": "blaues Symbol",
        "gray icon": "graues Symbol",
        "pixel art": "Pixelgrafik",
    },
    "es": {
        "outlined cartoon": "caricatura con contornos negros",
        "line drawing": "dibujo de líneas",
        "flat": "ilustración plana",
        "shaded": "caricatura sombreada",
        "material": "diseño material",
        "bright flat": "ilustración plana de colores vivos",
        "3d": "imagen 3D",
        "high contrast": "icono de alto contraste",
        "colorful": "caricatura colorida",
        "retro": "emoji retro",
        "stencil": "plantilla negra",
        "sticker": "pegatina",
        "line icon": "icono de líneas",
        "silhouette": "silueta",
        "blue icon": "icono azul",
        "gray icon": "icono gris",
        "pixel art": "arte de píxeles",
    },
    "fr": {
        "outlined cartoon": "dessin animé aux contours noirs",
        "line drawing": "dessin au trait",
        "flat": "illustration plate",
        "shaded": "dessin animé ombré",
        "material": "style material design",
        "bright flat": "illustration plate aux couleurs vives",
        "3d": "image 3D",
        "high contrast": "icône très contrastée",
        "colorful": "dessin animé coloré",
        "retro": "émoji rétro",
        "stencil": "pochoir noir",
        "sticker": "autocollant",
        "line icon": "icône au trait",
        "silhouette": "silhouette",
        "blue icon": "icône bleue",
        "gray icon": "icône grise",
        "pixel art": "pixel art",
    },
}

# colour -> phrase; the keys are those of `dalle.data.drawings.render.COLOURS`
COLOUR_PHRASES: dict[str, dict[str, str]] = {
    "de": {
        "black": "schwarz",
        "red": "rot",
        "orange": "orange",
        "yellow": "gelb",
        "green": "grün",
        "teal": "blaugrün",
        "blue": "blau",
        "purple": "lila",
        "pink": "rosa",
        "brown": "braun",
        "gray": "grau",
    },
    "es": {
        "black": "en negro",
        "red": "en rojo",
        "orange": "en naranja",
        "yellow": "en amarillo",
        "green": "en verde",
        "teal": "en verde azulado",
        "blue": "en azul",
        "purple": "en morado",
        "pink": "en rosa",
        "brown": "en marrón",
        "gray": "en gris",
    },
    "fr": {
        "black": "en noir",
        "red": "en rouge",
        "orange": "en orange",
        "yellow": "en jaune",
        "green": "en vert",
        "teal": "en bleu-vert",
        "blue": "en bleu",
        "purple": "en violet",
        "pink": "en rose",
        "brown": "en marron",
        "gray": "en gris",
    },
}


# beginnings of words in style phrases that say that a drawing is black
BLACK = {"de": "schwarz", "es": "negr", "fr": "noir"}


def names_in(language: str, label: str, tags: list[str], style: str = "", colour: str = "") -> list[str]:
    """Return captions of a subject in a language: its name twice and with each tag, half of them with the style.

    label, tags: of the subject, in that language.
    style, colour: keys of the tables; "" states none. With a colour, a style phrase that says black is left out.
    """
    names = [label, label, *(f"{label}, {tag}" for tag in tags)]
    if colour:
        phrase = COLOUR_PHRASES.get(language, {}).get(colour)
        names = [f"{name}, {phrase}" for name in names] if phrase else []
    phrase = STYLE_PHRASES.get(language, {}).get(style)
    if phrase and not (colour and BLACK[language] in phrase):
        return [*(f"{name}, {phrase}" for name in names), *names]
    return names
