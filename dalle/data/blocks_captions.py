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


def _noun_phrase(phrase: NounPhrase) -> str:
    adjectives = f"{phrase.size} {phrase.colour}" if phrase.size else phrase.colour
    if phrase.count > 1:
        return f"{_NUMBERS[phrase.count]} {adjectives} {phrase.shape}{'es' if phrase.shape == 'cross' else 's'}"
    return f"{'an' if adjectives[0] in 'aeiou' else 'a'} {adjectives} {phrase.shape}"


def wordings(statement: Statement) -> list[str]:
    """Return all captions of `statement`. They have the same meaning and at most 20 words each."""
    phrases = [_noun_phrase(phrase) for phrase in statement.described]
    match statement.relations:
        case ():
            orders = permutations(phrases)
            plain_captions = [" and ".join(filter(None, [", ".join(order[:-1]), order[-1]])) for order in orders]
        case (Relation(subject, name, object_),):
            a, b = phrases[subject], phrases[object_]
            plain_captions = [f"{a} {words} {b}" for words in _PLAIN_WORDS[name]]
            plain_captions += [f"{b} with {a} {words}" for words in _WITH_WORDS[name]]
        case (first, second):
            a, b, c = phrases[first.subject], phrases[first.object], phrases[second.object]
            conjunction = " and " if first.subject == second.subject else " "  # else `second` is about b
            word_pairs = zip(_PLAIN_WORDS[first.name], _PLAIN_WORDS[second.name], strict=True)
            plain_captions = [
                f"{a} {first_words} {b}{conjunction}{second_words} {c}" for first_words, second_words in word_pairs
            ]
        case _:
            raise ValueError(f"captions state at most 2 relations, not {len(statement.relations)}")
    existential_captions = [
        ("there is " if caption.startswith("a") else "there are ") + caption for caption in plain_captions
    ]
    all_captions = plain_captions + existential_captions + [f"a picture of {caption}" for caption in plain_captions]
    return [caption for caption in all_captions if caption.count(" ") < _MAX_WORDS]
