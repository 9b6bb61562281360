"""Metric `drawings` and its judge: labels, partners, and the numbers of a model with random weights."""

from dataclasses import replace

import pytest
import torch
from drawings_packages import Registry, package_files
from PIL import Image

from dalle.data.drawings import splits
from dalle.data.drawings.build import build
from dalle.data.drawings.config import DrawingsConfig, MixConfig
from dalle.data.drawings.source import DrawingsSource
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.judges import drawings_classifier_training, efficientnet_classifier
from dalle.evaluation.judges.digest import weights_digest
from dalle.evaluation.judges.drawings_classifier import DrawingClassifier, classify
from dalle.evaluation.judges.drawings_classifier_training import load_classifier, train_classifier
from dalle.evaluation.judges.training_pictures import judge_folder, training_pictures
from dalle.evaluation.metrics import drawing_edits, drawing_partners, drawings
from dalle.image_conversion import to_pil_images
from dalle.sampling.canvas import Canvas

pytest.importorskip("resvg_py", reason="drawings are rendered with resvg-py, of the extra `data`")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DrawingsConfig:
    folder = tmp_path_factory.mktemp("drawings")
    build(folder / "built", folder / "packages", Registry(package_files()).fetch)
    return DrawingsConfig(
        path=str(folder / "built"), image_size=32, skin_tones=1.0, validation_share=0.3, mix=MixConfig(2.0, 2.0, 2.0)
    )


@pytest.fixture(scope="module")
def judge(data) -> DrawingClassifier:
    return train_classifier(data, epochs=1, batch_size=16)


def test_the_judge_knows_the_training_concepts_and_no_others(data, judge):
    source = DrawingsSource(data, "val")
    held_out = {source.drawings.pictures[record.first].subject.concept for record in source.records}
    assert judge.config.concepts and not held_out & set(judge.config.concepts)


@pytest.mark.slow
def test_the_judge_learns(data, monkeypatch):
    """Every subject of a set is the same square here, so styles and colours can be learned, and concepts cannot."""
    monkeypatch.setattr(DrawingClassifier, "SIDE", 32)  # enough for squares
    monkeypatch.setattr(DrawingClassifier, "STYLE_SIDE", 32)
    judge = train_classifier(data, epochs=30, batch_size=16)
    assert colour_accuracy(judge, data) > 0.8


def test_training_twice_gives_the_same_judge(data, judge):
    again = train_classifier(data, epochs=1, batch_size=16)
    assert all(torch.equal(a, b) for a, b in zip(judge.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("name", "value"),
    [("NOVEL_STYLES", 0.5), ("NOVEL_COLOURS", 0.5), ("MIN_STYLES", 2), ("ALWAYS_TRAINED", {"owl"})],
)
def test_a_judge_is_not_kept_for_other_held_out_drawings(data, monkeypatch, name, value):
    """It would have been trained on drawings that it is to judge."""
    before = judge_folder(data, "judge")
    monkeypatch.setattr(splits, name, value)
    assert judge_folder(data, "judge") != before


def test_the_judge_is_trained_once_and_kept_beside_the_data(data, judge, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(drawings_classifier_training, "train_classifier", lambda config: calls.append(config) or judge)
    first = load_classifier(data)
    second = load_classifier(replace(data, languages=["en", "fr"], mix=MixConfig()))
    assert len(calls) == 1
    assert torch.equal(first.concept.weight, judge.concept.weight)
    assert torch.equal(second.concept.weight, judge.concept.weight)
    load_classifier(replace(data, image_size=8))  # judges images of any size
    assert len(calls) == 1
    assert calls[0].image_size == 128  # whatever size the first model's images have
    load_classifier(replace(data, validation_share=0.5))  # other concepts are held out: another judge
    assert len(calls) == 2
    (tmp_path / "list.txt").write_text("openmoji/1F34E\n")
    load_classifier(replace(data, opt_out=str(tmp_path / "list.txt")))  # fewer pictures
    assert len(calls) == 3


@pytest.mark.slow
def test_the_second_judge_is_trained_once_on_features_of_photographs(data, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the second judge needs the extra `eval`")
    whole = efficientnet_classifier.train_heads
    calls = []

    def short(config, folder):
        calls.append(folder)
        return whole(replace(config, mix=data.mix), folder, epochs=20, batch_size=32)

    monkeypatch.setattr(efficientnet_classifier, "train_heads", short)
    second = efficientnet_classifier.load_efficientnet_classifier(data)
    again = efficientnet_classifier.load_efficientnet_classifier(replace(data, languages=["en", "fr"]))
    assert len(calls) == 1
    assert colour_accuracy(second, data) > 0.8
    weights = zip(second.heads.state_dict().values(), again.heads.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in weights)


def colour_accuracy(judge, data) -> float:
    """Return the share of coloured training pictures whose colour the judge knows."""
    pictures, concepts = training_pictures(data)
    logits = classify(judge, to_pil_images(pictures.images.float() / 255))
    assert logits.concept.shape == (len(pictures), len(concepts))
    labelled = pictures.labels.colour >= 0
    return (logits.colour.argmax(dim=1) == pictures.labels.colour)[labelled].float().mean().item()


def test_labels_are_those_that_captions_state(data, judge):
    source = DrawingsSource(data, "train")
    records = [next(i for i, record in enumerate(source.records) if record.kind == "colour")]
    labels = drawings.true_labels(source, records, judge.config.concepts)
    caption = source.captions(records[0])[0]
    assert judge.config.concepts[labels.concept[0]] in caption
    assert judge.config.colours[labels.colour[0]] in caption


def test_other_partners_have_the_same_style_and_other_concepts(data):
    source = DrawingsSource(data, "train")
    panels = [i for i, record in enumerate(source.records) if record.kind == "panels"]
    pictures = source.drawings.pictures
    for record in panels:
        own = pictures[source.records[record].second]
        others = [
            pictures[source.records[i].second] for i in drawing_partners.other_partners(source, panels, record, seed=0)
        ]
        assert all(partner.drawing_set.style == own.drawing_set.style for partner in others)
        concepts = [partner.subject.concept for partner in others]
        assert own.subject.concept not in concepts and len(set(concepts)) == len(concepts)


def test_the_closest_is_strictly_closer_than_all_others(judge):
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    assert drawing_partners.is_closest(judge, blue, blue, red, red)
    assert not drawing_partners.is_closest(judge, blue, red, red, blue)
    assert not drawing_partners.is_closest(judge, blue, blue, red, blue)  # a tie


def test_the_chance_of_a_partner_is_that_of_its_own_number_of_others(of_drawings, judge, monkeypatch):
    """One prompt has no others, and is left out; the next has one, the last three: chances of 1/2 and 1/4."""
    context, config = of_drawings
    source = DrawingsSource(context.data, "val")
    panels = [record for record, composed in enumerate(source.records) if composed.kind == "panels"]
    counts = dict(zip(panels, (0, 1, 3), strict=False))
    monkeypatch.setattr(drawing_partners, "other_partners", lambda _s, _p, record, _seed: panels[:1] * counts[record])
    prompts, numbers = drawing_partners.measure_partners(context.require_pipeline(), judge, source, config)
    assert len(prompts) == 3
    assert numbers["drawings_partner_chance"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert all(2 * numbers[f"drawings_partner_found_{which}"] in (0, 1, 2) for which in ("first", "top", "real"))
    counts = dict.fromkeys(panels, 0)
    prompts, numbers = drawing_partners.measure_partners(context.require_pipeline(), judge, source, config)
    assert len(prompts) == 3
    assert numbers.keys() == {f"drawings_partner_style_{which}" for which in ("first", "top", "real")}


def test_the_lower_panel_is_the_square_in_the_middle_of_the_lower_half():
    image = Image.new("RGB", (32, 32), "white")
    image.paste("red", (8, 16, 24, 32))
    assert drawing_partners.lower_panel(image).getcolors() == [(256, (255, 0, 0))]


def test_other_data_are_refused(context, config):
    with pytest.raises(ValueError, match="needs data=drawings"):
        drawings.measure(context, config)


def test_the_table_relates_the_model_to_the_judge():
    numbers = {f"drawings_novel_style_{which}": value for which, value in (("first", 0.2), ("top", 0.4), ("real", 0.8))}
    assert drawings.table(numbers).splitlines()[-1] == "| novel_style | 0.200 | 0.400 | 0.800 | 0.50 |"


class SecondJudge:
    """The tests' judge in the place of the one on features of photographs."""

    def __init__(self, judge: DrawingClassifier):
        self.heads = judge

    def __call__(self, images):
        return self.heads(images)


@pytest.fixture
def of_drawings(data, judge, config, monkeypatch):
    """Evaluation of the tiny models on drawings, with the tests' judge in place of both judges."""
    for module in (drawings, drawing_edits):
        monkeypatch.setattr(module, "load_classifier", lambda _: judge)
    monkeypatch.setattr(drawings, "load_efficientnet_classifier", lambda _: SecondJudge(judge))
    monkeypatch.setattr(splits, "NOVEL_STYLES", 0.5)  # the data set is small
    monkeypatch.setattr(splits, "MIN_STYLES", 1)
    monkeypatch.setattr(splits, "NOVEL_COLOURS", 0.5)
    config = replace(config, data=replace(data, image_size=8), captions=3, candidates=2)
    return EvaluationContext.load(config), config


def test_the_metric_measures_both_splits_and_partners(of_drawings, judge):
    result = drawings.measure(*of_drawings)
    names = {f"drawings_{name}" for name in ("novel_concept", "novel_style", "colours_concept", "colours_colour")}
    names |= {f"{name}_effnet" for name in names} | {"drawings_partner_found", "drawings_partner_style"}
    of_three = {f"{name}_{which}" for name in names for which in ("first", "top", "real")}
    assert result.numbers.keys() == of_three | {"drawings_partner_chance"}
    assert all(0 <= value <= 1 for value in result.numbers.values())
    for name in names:  # the same network judges as both
        assert result.numbers[f"{name}_real"] == result.numbers[f"{name.removesuffix('_effnet')}_real"]
    assert result.settings["judge"]["digest"] == weights_digest(judge) == result.settings["judge_effnet"]["digest"]
    assert result.images.keys() == {"drawings"}
    assert result.table.count("\n") == 1 + len(names)


def test_a_split_without_drawings_is_named(of_drawings, monkeypatch):
    monkeypatch.setattr(splits, "NOVEL_COLOURS", 0.0)
    with pytest.raises(ValueError, match="the split colours of the drawings is empty"):
        drawings.measure(*of_drawings)


def test_an_empty_split_is_named_before_anything_is_sampled(of_drawings, monkeypatch):
    monkeypatch.setattr(splits, "NOVEL_COLOURS", 0.0)
    monkeypatch.setattr(drawings, "sample_captions", lambda *_: pytest.fail("sampled"))
    with pytest.raises(ValueError, match="the split colours of the drawings is empty"):
        drawings.measure(*of_drawings)


def test_without_panels_the_other_numbers_are_measured(of_drawings):
    context, config = of_drawings
    context = replace(context, data=replace(context.data, mix=MixConfig(panels=0)))
    result = drawings.measure(context, config)
    assert "drawings_novel_style_top" in result.numbers
    assert not any("partner" in name for name in result.numbers)
    assert result.notes == ["No partners: the split val has no panels (data.mix.panels)."]


def test_edits_keep_their_tokens(of_drawings):
    result = drawing_edits.measure(*of_drawings)
    edits = ("complete", "inpaint", "outpaint", "variations", "remix")
    assert {f"drawing_edits_{name}_kept" for name in edits} < result.numbers.keys()
    assert all(result.numbers[f"drawing_edits_{name}_kept"] == 1 for name in edits)
    assert 0 <= result.numbers["drawing_edits_original_style"] <= 1


def test_edits_of_models_that_rank_by_a_mixture(of_drawings):
    """Their default cannot rank the larger images of outpaint, and gives way to CLIP for them."""
    context, config = of_drawings
    dalle = context.require_pipeline()
    dalle.defaults = replace(dalle.defaults, rerank="mixture")
    result = drawing_edits.measure(context, config)
    assert result.numbers["drawing_edits_outpaint_kept"] == 1


def test_a_changed_token_is_noticed(of_drawings):
    context, config = of_drawings
    canvas = Canvas(torch.full((4, 4), 3))
    result = context.require_pipeline().generate("a red circle", config.sampling(1), canvas=canvas)
    assert drawing_edits.keeps_tokens(result, canvas)
    assert not drawing_edits.keeps_tokens(result, Canvas(torch.full((4, 4), 2)))


def test_edits_of_other_data_are_refused(context, config):
    with pytest.raises(ValueError, match="needs data=drawings"):
        drawing_edits.measure(context, config)
