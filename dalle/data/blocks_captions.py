"""Captions of `blocks`: every wording of a statement in plain English."""

from itertools import permutations

from dalle.data.blocks_scene import NounPhrase, Relation, Statement

# "A left of B", "B with A to its left"
_PLAIN_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "on top of": ("on top of", "resting on"),
}
_WITH_WORDS = {
    "left of": ("to its left",),
    "right of": ("to its right",),
    "above": ("above it",),
    "below": ("below it",),
    "on top of": ("on top of it",),
}
_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}  # scenes have at most three; evaluation prompts have more
_MAX_WORDS = 20


def _noun_phrase(thing: NounPhrase) -> str:
    adjectives = f"{thing.size} {thing.colour}" if thing.size else thing.colour
    if thing.count > 1:
        return f"{_NUMBERS[thing.count]} {adjectives} {thing.shape}{'es' if thing.shape == 'cross' else 's'}"
    return f"{'an' if adjectives[0] in 'aeiou' else 'a'} {adjectives} {thing.shape}"


def wordings(statement: Statement) -> list[str]:
    """Return all captions of `statement`. They have the same meaning and at most 20 words each."""
    phrases = [_noun_phrase(thing) for thing in statement.described]
    match statement.relations:
        case ():
            orders = permutations(phrases)
            bare = [" and ".join(filter(None, [", ".join(order[:-1]), order[-1]])) for order in orders]
        case (Relation(subject, name, object_),):
            a, b = phrases[subject], phrases[object_]
            bare = [f"{a} {words} {b}" for words in _PLAIN_WORDS[name]]
            bare += [f"{b} with {a} {words}" for words in _WITH_WORDS[name]]
        case (first, second):
            a, b, c = phrases[first.subject], phrases[first.object], phrases[second.object]
            also = " and " if first.subject == second.subject else " "  # else `second` is about b
            ways = zip(_PLAIN_WORDS[first.name], _PLAIN_WORDS[second.name], strict=True)
            bare = [f"{a} {one} {b}{also}{two} {c}" for one, two in ways]
        case _:
            raise ValueError(f"captions state at most 2 relations, not {len(statement.relations)}")
    there = [("there is " if words.startswith("a") else "there are ") + words for words in bare]
    every = bare + there + [f"a picture of {words}" for words in bare]
    return [words for words in every if words.count(" ") < _MAX_WORDS]
