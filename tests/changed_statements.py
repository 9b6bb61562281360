"""Statements about a scene of `blocks` with one fact changed, for tests of captions and of the judge."""

from dataclasses import replace

from dalle.data.blocks_scene import COLOURS, DIRECTIONS, OUTLINES, RADII, Statement


def one_fact_changed(statement: Statement) -> dict[str, list[Statement]]:
    """Return the statements that differ from `statement` in one fact, by the name of the changed fact.

    Each is false for every image that `statement` describes, for three reasons: a statement describes everything in
    its image; a (shape, colour) has one noun phrase; a relation's axis dominates, so no other relation holds.
    The facts are "colour", "shape", "size", "relation" and "count". A fact that is not stated has no entry.
    """
    changed: dict[str, list[Statement]] = {}
    for index, thing in enumerate(statement.described):
        options = {"shape": tuple(OUTLINES), "colour": tuple(COLOURS), "count": (1, 2, 3)}
        if thing.size is not None:
            options["size"] = tuple(RADII)
        for fact, values in options.items():
            for value in values:
                if value != getattr(thing, fact):
                    false = _with_described(statement, index, **{fact: value})
                    changed.setdefault(fact, []).append(false)
    for index, relation in enumerate(statement.relations):
        for name in DIRECTIONS:
            # "on top of" implies "above"
            if name != relation.name and (relation.name, name) != ("on top of", "above"):
                relations = list(statement.relations)
                relations[index] = relation._replace(name=name)
                changed.setdefault("relation", []).append(replace(statement, relations=tuple(relations)))
    return changed


def _with_described(statement: Statement, index: int, **changes) -> Statement:
    described = list(statement.described)
    described[index] = replace(described[index], **changes)
    return replace(statement, described=tuple(described))
