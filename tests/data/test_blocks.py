"""Data set `blocks`: reproducible scenes, correct captions, and held-out combinations."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from changed_statements import one_fact_changed

from dalle.data.blocks import SPLITS, BlocksConfig, BlocksSource
from dalle.data.blocks_captions import wordings
from dalle.data.blocks_random_scene import GAP, HALF_EXTENTS, HELD_OUT
from dalle.data.blocks_scene import BACKGROUND, COLOURS, DIRECTIONS, OUTLINES, draw

CONFIG = BlocksConfig(image_size=32)
SCENES = {split: [BlocksSource(CONFIG, split).scene(index) for index in range(300)] for split in SPLITS}
EVERY_SCENE = [scene for scenes in SCENES.values() for scene in scenes]


def pairs_of(scene):
    return {(piece.shape, piece.colour) for piece in scene.objects}


@pytest.mark.parametrize("split", SPLITS)
def test_record_depends_only_on_config_split_and_index(split):
    forwards = [BlocksSource(CONFIG, split)[index] for index in range(6)]
    backwards = [BlocksSource(CONFIG, split)[index] for index in reversed(range(6))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert (one.key, one.captions) == (other.key, other.captions)
        assert np.array_equal(np.asarray(one.image), np.asarray(other.image))


def test_splits_seeds_and_indices_give_different_images():
    sources = [BlocksSource(CONFIG, split) for split in SPLITS]
    sources.append(BlocksSource(BlocksConfig(image_size=32, seed=1), "train"))
    pictures = {source[index].image.tobytes() for source in sources for index in range(40)}
    assert len(pictures) == 160


def test_first_scene_is_unchanged_between_releases():
    scene = SCENES["train"][0]
    assert wordings(scene.statement)[0] == "two small yellow crosses and a large yellow square"


def test_train_and_val_have_no_held_out_pairs():
    for scene in SCENES["train"] + SCENES["val"]:
        assert not pairs_of(scene) & set(HELD_OUT)


def test_every_novel_caption_names_a_held_out_pair():
    for scene in SCENES["novel"]:
        assert {(thing.shape, thing.colour) for thing in scene.statement.described} & set(HELD_OUT)


def test_held_out_pairs_differ_in_shape_and_colour_and_training_has_all_others():
    assert {shape for shape, _ in HELD_OUT} == set(OUTLINES)
    assert len({colour for _, colour in HELD_OUT}) == len(HELD_OUT)
    shown = set().union(*map(pairs_of, SCENES["train"]))
    assert len(shown) == len(OUTLINES) * len(COLOURS) - len(HELD_OUT)


def test_statements_match_the_image():
    for scene in EVERY_SCENE:
        named = Counter()
        for thing in scene.statement.described:
            named[thing.shape, thing.colour] += thing.count
            sizes = {p.size for p in scene.objects if (p.shape, p.colour) == (thing.shape, thing.colour)}
            assert len(sizes) == 1 and thing.size in (None, *sizes)
        assert named == Counter((piece.shape, piece.colour) for piece in scene.objects)


def test_shapes_are_within_the_image_and_separated():
    for scene in EVERY_SCENE:
        resting = {(r.subject, r.object) for r in scene.statement.relations if r.name == "on top of"}
        boxes = [(np.array((piece.x, piece.y)), HALF_EXTENTS[piece.shape] * piece.radius) for piece in scene.objects]
        assert all((centre - half > -1e-9).all() and (centre + half < 1 + 1e-9).all() for centre, half in boxes)
        for (i, (one, its_half)), (j, (other, other_half)) in combinations(enumerate(boxes), 2):
            apart = (np.abs(one - other) - its_half - other_half).max()
            assert abs(apart) < 1e-9 if (i, j) in resting else apart >= GAP


@pytest.mark.parametrize("lattice", [8, 16])
def test_lattice_aligns_bounding_boxes(lattice):
    source = BlocksSource(BlocksConfig(lattice=lattice), "train")
    for piece in (piece for index in range(100) for piece in source.scene(index).objects):
        corner = (np.array((piece.x, piece.y)) - piece.radius) * lattice
        assert np.allclose(corner, np.rint(corner))


def test_without_lattice_shapes_are_anywhere_within_the_image():
    source = BlocksSource(BlocksConfig(lattice=0, radius_jitter=0.05), "train")
    pieces = [piece for index in range(100) for piece in source.scene(index).objects]
    assert all(at - piece.radius > 0.02 and at + piece.radius < 0.98 for piece in pieces for at in (piece.x, piece.y))
    assert len({round(piece.x % (1 / 16), 4) for piece in pieces}) > 50


@pytest.mark.parametrize("settings", [{"lattice": 12}, {"radius_jitter": 0.5}])
def test_settings_without_room_for_shapes_raise(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        BlocksConfig(**settings)


def test_relations_are_unambiguous():
    for scene in EVERY_SCENE:
        for subject, name, object_ in scene.statement.relations:
            one, other = scene.objects[subject], scene.objects[object_]
            step = np.array((one.x - other.x, one.y - other.y))
            along = step @ np.array(DIRECTIONS[name])
            assert along > 1.9 * (np.abs(step).sum() - along)


def test_every_kind_of_scene_occurs():
    relations = Counter(r.name for scene in SCENES["train"] for r in scene.statement.relations)
    assert set(relations) == set(DIRECTIONS)
    described = Counter(tuple(t.count for t in scene.statement.described) for scene in SCENES["train"])
    assert set(described) == {(1,), (2,), (3,), (1, 1), (2, 1), (1, 1, 1)}


def test_captions_are_short_distinct_and_plain_english():
    vocabulary = set()
    for scene in EVERY_SCENE:
        captions = wordings(scene.statement)
        assert len(set(captions)) == len(captions) >= 3
        assert max(len(caption.split()) for caption in captions) <= 20
        vocabulary |= {word for caption in captions for word in caption.replace(",", "").split()}
        for thing in scene.statement.described:
            assert all(thing.colour in caption and thing.shape in caption for caption in captions)
    assert len(vocabulary) < 60


@pytest.mark.parametrize("split", SPLITS)
def test_captions_of_a_record_are_wordings_of_its_statement(split):
    source = BlocksSource(CONFIG, split)
    for index in range(20):
        assert set(source[index].captions) <= set(wordings(source.scene(index).statement))
        assert 1 <= len(source[index].captions) <= CONFIG.wordings


def test_altered_statement_differs_in_one_fact():
    for scene in EVERY_SCENE[::7]:
        for fact, statements in one_fact_changed(scene.statement).items():
            for statement in statements:
                told = [vars(thing) for thing in scene.statement.described]
                now = [vars(thing) for thing in statement.described]
                differences = [key for a, b in zip(told, now, strict=True) for key in a if a[key] != b[key]]
                differences += ["relation"] * (statement.relations != scene.statement.relations)
                assert differences == [fact]
                wordings(statement)  # false statements can be worded, too


@pytest.mark.parametrize("size", [24, 64, 100])
def test_image_size_is_configurable_and_background_constant(size):
    picture = np.asarray(draw(SCENES["val"][0], size))
    assert picture.shape == (size, size, 3)
    assert {tuple(picture[y, x]) for y in (0, -1) for x in (0, -1)} == {BACKGROUND}


def test_invalid_splits_indices_and_sizes_raise():
    with pytest.raises(ValueError, match="train, val, novel"):
        BlocksSource(CONFIG, "test")
    with pytest.raises(IndexError, match="2000"):
        BlocksSource(CONFIG, "val")[2000]
    with pytest.raises(ValueError, match="image_size=2"):
        BlocksConfig(image_size=2)
    with pytest.raises(ValueError, match="val=-1 must be at least 0"):
        BlocksConfig(val=-1)
    with pytest.raises(ValueError, match="wordings=0"):
        BlocksConfig(wordings=0)
