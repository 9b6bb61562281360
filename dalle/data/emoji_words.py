"""Convert emoji names to plain English phrases, and find the base name of variants. Works on strings only."""

import re
from itertools import groupby

TONE = re.compile(r"\b(?:light|medium-light|medium|medium-dark|dark) skin tone\b")
HAIR = re.compile(r"(?P<who>man|woman|person) (?:(?P<hair>(?:red|curly|white|blond) hair)|(?P<beard>beard)|bald)")
GROUP = re.compile(r"(?P<group>kiss|couple with heart|family) (?P<members>(?:man|woman|person|adult|boy|girl|child).*)")
GROUP_PREPOSITION = {"kiss": " between ", "couple with heart": ", ", "family": " of "}
PLURALS = {"man": "men", "woman": "women", "person": "people", "child": "children"}

PERSON = re.compile(r"\b(man|woman|men|women|person|people|adult|boy|girl|child|and|facing right)\b")
APPEARANCE = re.compile(r"\b((red|curly|white|blond) hair|bald|beard)$")
BASES = {  # variants without a common word in their names
    "old": "older",
    "prince": "royalty",
    "princess": "royalty",
    "with crown": "royalty",
    "mermaid": "merperson",
    "merman": "merperson",
    "santa claus": "claus",
    "mrs. claus": "claus",
    "mx claus": "claus",
}

PLACES_WITH_THE = re.compile(
    r"^(United|European Union|Isle of|Bahamas|Gambia|Netherlands|Caribbean|Philippines|Maldives|Comoros|"
    r"Seychelles|British|U\.S\.|French Southern|Turks)|^[^&]*(Islands|Republic|Territories)$"
)

# Uncountable last words, and whole names that take no article for other reasons.
UNCOUNTABLE = re.compile(
    r"rice|bread|fire|fog|popcorn|spaghetti|sushi|oden|dango|sake|salt|butter|garlic|bacon|broccoli|meat|hair|"
    r"luggage|soap|yarn|thread|wood|coral|ice|money|food|water|splatter|dna|smoking|littering|candy|custard|"
    r"cooking|construction|camping|bowling|tennis|badminton|volleyball|lacrosse|hockey|moai|om|zzz|warning|"
    r"infinity|information|cinema|mate|wireless|prohibited|radioactive|biohazard|foggy|plus|minus|multiply|"
    r"divide|locked|unlocked|bald|dizzy|exchange|polish|claus"
)
WITHOUT_ARTICLE = re.compile(
    r"(no |input |locked ).*|.*(o'clock|-thirty|pong|struck|-feeding)|(high voltage|horse racing|"
    r"performing arts|passport control|baggage claim|milky way|mount fuji|Tokyo tower|flower playing cards|"
    r"dashing away|rolling on the floor laughing)"
)
SINGULAR_IN_S = re.compile(r".*(ss|us|rhinoceros)")
AFTER_HEAD = re.compile(
    r" (with|without|in|on|of|at|over|and|for|to|facing|behind|showing|pointing|pointed|tilted|holding|"
    r"wearing|getting|playing|lifting|bouncing|curving|blowing|savoring|fluttering|crossed) "
)
SPELLED_OUT = {"ATM", "SOS", "NG", "OK", "ID", "CL", "VS", "A", "B", "O", "P", "AB"}
VOWEL_SOUND = re.compile(r"(?!uni|one|ewe|euro|ufo|utensil)[aeiou8]|hour|x-", re.IGNORECASE)


def to_words(name: str) -> str:
    """Convert an emoji's name or keyword in the packages to words: ":red_apple:" -> "red apple"."""
    return " ".join(name.strip(":").replace("_", " ").replace("\u2019", "'").split())


def split_tones(name: str) -> tuple[str, list[str]]:
    """Split the name of an emoji into the name without skin tones, and the skin tones in order."""
    return " ".join(TONE.sub("", name).split()), TONE.findall(name)


def base_name(name: str) -> str:
    """Return the base name: the name without skin tone, hair style, gender and walking direction.

    "woman astronaut medium skin tone" and "man astronaut" give "astronaut"; "girl" and "man bald" give "person".
    """
    untoned_name, _ = split_tones(name)
    words = " ".join(PERSON.sub("", APPEARANCE.sub("", untoned_name)).lower().split())
    return BASES.get(words, words) or "person"


def flag_phrase(place: str) -> str:
    """Return the phrase for the flag of a country, region or union: "the flag of the United States"."""
    article = "the " if PLACES_WITH_THE.search(place) else ""
    return f"the flag of {article}{place.replace('&', 'and')}"


def phrase(name: str, tones: list[str]) -> str:
    """Convert a name to a phrase: "a red apple", "grapes", "a man with light skin tone and red hair"."""
    if not name:
        return join_words(tones)  # an emoji of the skin tone itself
    features = tones
    if hair := HAIR.fullmatch(name):
        features = tones + ([hair["hair"]] if hair["hair"] else ["a beard"] if hair["beard"] else [])
        text = with_article(hair["who"] if hair["hair"] or hair["beard"] else f"bald {hair['who']}")
    elif group := GROUP.fullmatch(name):
        text = (
            with_article(group["group"]) + GROUP_PREPOSITION[group["group"]] + count_members(group["members"].split())
        )
    elif name.startswith("keycap "):
        text = f"the key {name.removeprefix('keycap ')}"
    else:
        text = with_article(name)
    if not features:
        return text
    return f"{text}{',' if re.search(' with |, ', text) else ''} with {join_words(features)}"


def with_article(name: str) -> str:
    """Add "a" or "an" to a name, or no article for plurals, uncountable nouns and proper names."""
    # the package inflect chooses between a and an, but does not detect names without an article
    first, *rest = name.split()
    head = AFTER_HEAD.split(f"{name} ")[0].split()[-1]
    is_plural = head in PLURALS.values() or first in PLURALS.values()
    is_plural = is_plural or (head.endswith("s") and not SINGULAR_IN_S.fullmatch(head))
    is_proper_name = first.istitle() and not rest
    if name == "Statue of Liberty":
        return f"the {name}"
    if is_plural or is_proper_name or UNCOUNTABLE.fullmatch(head.lower()) or WITHOUT_ARTICLE.fullmatch(name):
        return name
    use_an = first[0] in "AEFHILMNORSX" if first in SPELLED_OUT else VOWEL_SOUND.match(first)
    return f"{'an' if use_an else 'a'} {name}"


def count_members(members: list[str]) -> str:
    """List people, with equal neighbours counted together: "two men and a girl"."""
    groups = [(who, len(list(equal))) for who, equal in groupby(members)]
    return join_words([with_article(who) if n == 1 else f"two {PLURALS.get(who, who + 's')}" for who, n in groups])


def join_words(words: list[str]) -> str:
    """Join words as an English list: commas between them, "and" before the last."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
