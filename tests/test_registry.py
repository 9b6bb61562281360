from dataclasses import dataclass

import pytest

from dalle.registry import Entry, Registry


@dataclass(frozen=True)
class CircleConfig:
    radius: int = 1
    name: str = "circle"


@dataclass(frozen=True)
class Square:
    side: int = 1


SHAPES = Registry("shape", {"circle": Entry(lambda config: config.radius, CircleConfig), "square": Entry(Square)})


def test_entries_are_built_by_name_and_by_config():
    assert SHAPES.lookup("circle").build(CircleConfig(3)) == 3
    assert SHAPES.for_config(CircleConfig(3)) is SHAPES["circle"]
    assert list(SHAPES) == ["circle", "square"] and len(SHAPES) == 2 and "oval" not in SHAPES
    assert SHAPES.configs == {"circle": CircleConfig}


def test_an_unknown_name_raises_an_error_with_all_names():
    with pytest.raises(ValueError, match="there is no shape 'oval'; choose one of circle, square"):
        SHAPES.lookup("oval")
    with pytest.raises(ValueError, match="there is no shape with settings of type Square"):
        SHAPES.for_config(Square())


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (Entry("not a function"), "shape 'oval': 'not a function' cannot be called"),
        (Entry(int, int), "shape 'oval': its settings, <class 'int'>, are no dataclass"),
        (Entry(int, CircleConfig), "shape 'oval': CircleConfig has name='circle'"),
    ],
)
def test_an_invalid_entry_raises_an_error_at_registration(entry, complaint):
    with pytest.raises(TypeError, match=complaint):
        Registry("shape", {"oval": entry})
