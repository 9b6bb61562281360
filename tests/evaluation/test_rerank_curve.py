"""Metric `rerank_curve`: numbers, tables and plots, scorers for data without a judge, error messages."""

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from unreadable_source import PartlyUnreadable

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.data.folder import FolderConfig
from dalle.data.source import Record
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.features import FeatureOutput
from dalle.evaluation.judges import word_probe
from dalle.evaluation.judges.word_probe import WordProbe
from dalle.evaluation.metrics import rerank_curve


def test_numbers_table_and_plots(context, config):
    result = rerank_curve.measure(context, config)
    assert {f"judge_val_best_of_{size}" for size in (1, 2, 4)} <= result.numbers.keys()
    assert not any(name.startswith("clip_") for name in result.numbers)  # it is the reranker
    assert {f"kid_effnet_best_of_{size}" for size in (1, 2, 4)} <= result.numbers.keys()
    assert result.table.startswith("| quality | ranked by | 1 | 2 | 4 |")
    assert "| set of best candidates | 1 | 2 | 4 |" in result.table
    assert set(result.images) == {"rerank_curve", "rerank_sets"}
    assert result.settings["candidates"] == 4


def test_clip_reranking_without_clip_raises(config, without_clip):
    config = replace(config, checkpoint=str(without_clip()))
    context = EvaluationContext.load(config)
    with pytest.raises(CheckpointError, match="which a rerank curve by rerank=clip needs"):
        rerank_curve.measure(context, config)
    result = rerank_curve.measure(context, replace(config, rerank="image_likelihood"))
    assert "judge_val_best_of_4_by_perfect" in result.numbers


def test_description_says_if_there_is_no_independent_scorer(config, tmp_path):
    for number in range(30):
        Image.new("RGB", (16, 16), (8 * number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture{number}")
    data = FolderConfig(path=str(tmp_path), image_size=8, validation_share=0.3)
    result = rerank_curve.measure(EvaluationContext.load(replace(config, data=data)), replace(config, data=data))
    assert (
        "No scorer is independent of the reranker, so single images are not scored: no word is in 5 to"
        in result.description
    )
    assert not any("val_best_of" in name for name in result.numbers)
    assert "kid_effnet_best_of_4" in result.numbers


def test_another_clip_as_the_scorer(context, config, checkpoints):
    config = replace(config, scorer=str(checkpoints / "clip"), rerank="image_likelihood")
    result = rerank_curve.measure(context, config)
    assert result.numbers["other_clip_val_best_of_4_by_perfect"] >= result.numbers["other_clip_val_best_of_4"]
    assert 0 <= result.numbers["other_clip_val_real_pairs"] <= 1
    assert "used neither for training nor for ranking" in result.description


@pytest.mark.parametrize("rerank", [None, "clip", "mixture"])
def test_the_clip_that_ranks_is_refused_as_the_scorer(context, config, checkpoints, rerank):
    """Also a copy of it elsewhere: its score would rise by selection alone."""
    shutil.copytree(checkpoints / "clip", config.folder / "copy")
    with pytest.raises(ValueError, match="copy is the CLIP that ranks the candidates"):
        rerank_curve.measure(context, replace(config, scorer=str(config.folder / "copy"), rerank=rerank))


class Pictures:
    """A data source of images of one colour and one caption each."""

    image_size = 8

    def __init__(self, pictures: list[tuple[str, str]]):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        colour, caption = self.pictures[index]
        return Record(Image.new("RGB", (8, 8), colour), (caption,), str(index))

    def captions(self, index):
        return (self.pictures[index][1],)


class Neighbour:
    """Scorer that rates the caption `offset` places behind an image's own highest, and then its own."""

    def __init__(self, offset: int):
        self.offset = offset

    def score(self, images, captions):
        own = torch.eye(len(images))
        return own + 2 * own.roll(self.offset, dims=1)


def test_real_images_are_compared_with_the_next_caption():
    """Of five captions, two neighbours are equal: four pairs are left."""
    source = Pictures([(colour, f"a {colour} one") for colour in ("red", "red", "blue", "green", "gray")])
    accuracy = rerank_curve._real_pair_accuracy
    scorers = {"own": Neighbour(0), "next": Neighbour(1), "previous": Neighbour(-1)}
    shares = {"own_val_real_pairs": 1, "next_val_real_pairs": 0, "previous_val_real_pairs": 1}
    assert accuracy(scorers, source, 5) == shares
    assert accuracy({"own": Neighbour(0)}, source, 1) == {}
    assert accuracy({"own": Neighbour(0)}, source, 2) == {}  # equal captions
    assert accuracy({"own": Neighbour(0)}, source, 3) == {"own_val_real_pairs": 1}


def test_what_the_numbers_depend_on_is_recorded(context, config, checkpoints):
    """Results with other weights of the scorer, or other features, must not overwrite these."""
    config = replace(config, scorer=str(checkpoints / "clip"), rerank="image_likelihood")
    settings = rerank_curve.measure(context, config).settings
    assert settings["scorer_digest"] == checkpoint.digest(checkpoints / "clip")
    assert settings["features"] == "efficientnet-lite0" and settings["features_digest"]


@pytest.mark.parametrize("scorer", ["drawings/clip", "~/clip"])
def test_a_scorer_is_found_as_other_checkpoints_are(context, config, checkpoints, monkeypatch, scorer):
    """By its name in the package, and below the home folder."""
    monkeypatch.setenv("HOME", str(checkpoints))
    scorers, _, settings = rerank_curve._scorers(context, replace(config, scorer=scorer), ranked_by_clip=False)
    assert scorers.keys() == {"other_clip"} and settings["scorer"] == scorer


def test_data_without_a_judge_are_scored_by_the_word_probe(config, tmp_path):
    """Images of one colour each, which their captions name."""
    colours = ["red", "green", "blue", "white"]
    for number in range(96):
        name = colours[number % 4]
        Image.new("RGB", (32, 32), name).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"a {name} picture")
    data = FolderConfig(path=str(tmp_path), image_size=8, validation_share=0.3)
    config = replace(config, data=data, curve_captions=12)
    result = rerank_curve.measure(EvaluationContext.load(config), config)
    assert {f"words_val_best_of_{size}" for size in (1, 2, 4)} <= result.numbers.keys()
    assert result.numbers["words_val_real_pairs"] > 0.6  # the next image may have the same colour
    assert "independent of the reranker" in result.description


class MeanColour:
    """Feature network of three features; `sizes` has the number of images of each call."""

    def __init__(self):
        self.sizes = []

    def __call__(self, images):
        self.sizes.append(len(images))
        return FeatureOutput(images.float().mean(dim=(2, 3)), torch.zeros(len(images), 1))


def test_the_word_probe_learns_from_all_parts_of_a_sorted_data_set(monkeypatch):
    """Files are sorted by path: the first 40 of 160 have one colour, the next 40 another."""
    colours = ["red", "green", "blue", "white"]
    source = Pictures([(colour, f"a {colour} picture") for colour in colours for _ in range(40)])
    monkeypatch.setattr(word_probe, "MAX_IMAGES", 40)
    network = MeanColour()
    probe = WordProbe.fit(PartlyUnreadable(source, {0, 156}), network)  # type: ignore[arg-type]
    assert probe.words == sorted(colours) and sum(network.sizes) == 38
    scores = probe.score([Image.new("RGB", (8, 8), colour) for colour in colours], colours)
    assert scores.argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_the_word_probe_computes_features_of_a_few_images_at_a_time():
    """512 candidates at 224 pixels would take gigabytes."""
    network = MeanColour()
    probe = WordProbe(
        network,  # type: ignore[arg-type]
        ["red"],
        torch.zeros(3),
        torch.ones(3),
        torch.eye(3)[:, :1].double(),
        torch.tensor([0.5]),
    )
    images = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(150)]
    scores = probe.score(images, ["a red circle", "a green square"])
    assert scores.shape == (150, 2) and sum(network.sizes) == 150 and max(network.sizes) <= 64
    assert (scores[1:, 0] > 0).all() and (scores[:, 1] == 0).all()
