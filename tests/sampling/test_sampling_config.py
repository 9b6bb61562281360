"""Sampling settings: validation, single definition, and suggestions for misspelt names."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import field, fields, is_dataclass, make_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args

import pytest

import dalle as package
from dalle import DALLE
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.sampling.command_config import SampleCommandConfig
from dalle.sampling.sampling_config import (
    DecodingConfig,
    RerankConfig,
    RerankWeights,
    SamplingConfig,
    memory_limit,
    with_overrides,
)
from dalle.sampling.sampling_defaults import SamplingDefaults

ROOT = Path(package.__file__).parent
OWNERS = {name: owner for owner in (DecodingConfig, RerankConfig, SamplingConfig) for name in owner.__annotations__}
MOST = 3  # settings that a function may take one by one: more travel as one object

WRONG = [
    *(
        ({"temperature": value}, f"temperature={value} is out of range; use 0 for greedy decoding, or 0.001 to 100")
        for value in (-1.0, 1e-300, 1e300, float("inf"), float("nan"))
    ),
    ({"top_k": 0}, "top_k=0 leaves no token to sample"),
    ({"top_p": 0.0}, r"top_p=0\.0 is not a probability"),
    ({"top_p": 1.5}, r"top_p=1\.5 is not a probability"),
    ({"min_p": 0.0}, r"min_p=0\.0 is not a fraction of a probability"),
    ({"min_p": 1.5}, r"min_p=1\.5 is not a fraction of a probability"),
    *(
        ({"guidance": value}, f"guidance={value} is out of range; use 0 to ignore the caption, .* or up to 100")
        for value in (-1.0, 1e300, float("inf"), float("nan"))
    ),
    ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ({"decoder_steps": 0}, "decoder_steps=0 must be at least 1"),
    ({"decoding": "luck"}, "decoding=luck"),
    ({"window": 0}, "window=0"),
    ({"guess": "luck"}, "guess=luck"),
    ({"candidates": 0}, "candidates=0 "),
    ({"candidates": -4}, "candidates=-4 "),
    ({"candidates": 10**12}, "candidates=1000000000000 are too many; use at most 1000000"),
    ({"rerank": "luck"}, "rerank=luck; choose one of clip, image_likelihood, caption_likelihood, mixture"),
    ({"rerank_weights": RerankWeights(clip=2)}, "need rerank=mixture; set it too"),
    ({"rerank": "clip", "rerank_weights": RerankWeights(clip=2)}, "need rerank=mixture, not rerank=clip; leave one"),
    ({"rerank": "mixture", "rerank_weights": RerankWeights(0, 0, 0)}, "all rerank_weights are 0"),
]
WRONG_WHERE_SOME_ARE_KEPT = [
    ({"keep": 0}, "keep=0 of candidates=64 is impossible; use 1 to 64"),
    ({"keep": 5, "candidates": 4}, "keep=5 of candidates=4 is impossible; use 1 to 4"),
    *(
        ({"memory": memory}, f"memory={memory} is not an amount of memory")
        for memory in ("lots", "0", "-1", "nan", "inf")
    ),
]
IDS = {"ids": lambda value: str(value) if isinstance(value, dict) else ""}


@pytest.mark.parametrize("config", [SamplingConfig, SampleCommandConfig, EvaluateConfig])
@pytest.mark.parametrize(("settings", "problem"), WRONG, **IDS)
def test_setting_out_of_range_raises_in_every_config(config, settings, problem):
    with pytest.raises(ValueError, match=problem.replace("+", r"\+")):
        config(**settings)


@pytest.mark.parametrize("config", [SamplingConfig, SampleCommandConfig])
@pytest.mark.parametrize(("settings", "problem"), WRONG_WHERE_SOME_ARE_KEPT, **IDS)
def test_invalid_number_to_keep_or_memory_raises(config, settings, problem):
    with pytest.raises(ValueError, match=problem):
        config(**settings)


def test_every_setting_has_an_invalid_value_in_the_list():
    """Except `seed`, which may be any integer, and references, which may be any captions."""
    tested = {name for settings, _ in [*WRONG, *WRONG_WHERE_SOME_ARE_KEPT] for name in settings}
    assert tested == OWNERS.keys() - {"seed", "rerank_references"}


def test_limits_of_each_range_are_valid():
    SamplingConfig(temperature=0, top_k=1, top_p=1, min_p=1, guidance=0, batch_size=1, candidates=1, keep=1, seed=-1)
    SamplingConfig(rerank="mixture", rerank_weights=RerankWeights(0, 0, -1), memory="0.5")


@pytest.mark.parametrize(("settings", "kept"), [({}, 8), ({"candidates": 4}, 4), ({"candidates": 4, "keep": 2}, 2)])
def test_number_kept_follows_candidates_unless_it_is_set(settings, kept):
    config = SamplingConfig(**settings)
    assert config.num_kept == SamplingDefaults().resolve(config, has_clip=True).keep == kept
    assert with_overrides(SamplingConfig(), settings).num_kept == kept


def test_memory_is_in_gigabytes():
    assert memory_limit("auto") is None
    assert memory_limit("1.5") == 1_500_000_000


@pytest.mark.parametrize(("guidance", "guided"), [(None, False), (1.0, False), (0.0, True), (2.0, True)])
def test_guidance_of_one_is_none(guidance, guided):
    assert DecodingConfig(guidance=guidance).guided == guided


def test_evaluation_has_its_own_sampling_settings_and_keeps_all_candidates():
    given = {"seed": 3, "temperature": 0.8, "top_p": 0.9, "guidance": 2.0, "batch_size": 7}
    given |= {"rerank": "mixture", "rerank_weights": RerankWeights(1, 2, 3), "rerank_references": ["a"]}
    assert EvaluateConfig(**given).sampling(512) == SamplingConfig(candidates=512, keep=512, **given)


# --- misspelt settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "right"),
    [("temprature", "temperature"), ("candidate", "candidates"), ("topk", "top_k"), ("canvass", "canvas")],
)
def test_misspelt_setting_suggests_the_closest_name(checkpoints, typed, right):
    dalle = DALLE.load(checkpoints)
    sentence = f"unknown sampling setting {typed}; did you mean {right}"
    with pytest.raises(TypeError, match=sentence):
        dalle.generate("a red circle", **{typed: 1})
    with pytest.raises(TypeError, match=sentence):
        dalle.generate_many(["a red circle"], **{typed: 1})


def test_unknown_setting_lists_all_names():
    with pytest.raises(
        TypeError, match="unknown sampling setting xyz; choose one of temperature, .* memory, candidate_offset"
    ):
        with_overrides(SamplingConfig(), {"xyz": 1}, ["candidate_offset"])


def test_replaced_settings_are_validated():
    config = SamplingConfig(candidates=4, keep=2, seed=5)
    warmer = with_overrides(config, {"temperature": 0.5})
    assert warmer == SamplingConfig(candidates=4, keep=2, seed=5, temperature=0.5)
    with pytest.raises(ValueError, match="keep=5 of candidates=4"):
        with_overrides(config, {"keep": 5})


def test_settings_as_keywords_or_object_give_the_same_images(checkpoints):
    dalle, config = DALLE.load(checkpoints), SamplingConfig(candidates=4, keep=2, seed=5, temperature=0.5)
    by_name = dalle.generate("a red circle", candidates=4, keep=2, seed=5, temperature=0.5)
    mixed = dalle.generate("a red circle", SamplingConfig(candidates=4, keep=2, seed=5), temperature=0.5)
    (result,) = dalle.stream(["a red circle"], config)
    assert result.tokens.equal(by_name.tokens)
    assert mixed.tokens.equal(by_name.tokens)


# --- each setting is declared once -------------------------------------------------------------------------------


def dataclasses_of(folder: str) -> Iterator[type]:
    """Return every dataclass defined in a package of this repository."""
    for module in pkgutil.walk_packages([str(ROOT / folder)], f"dalle.{folder}."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.name:
                yield value


def kinds(annotation: Any) -> set[Any]:
    """Return the types that a field may have, without None."""
    return {*get_args(annotation)} - {NoneType} if isinstance(annotation, UnionType) else {annotation}


def restated(config: type) -> list[str]:
    """Return settings that a dataclass declares although another does. An inherited one may get another default."""
    found = []
    for name, annotation in vars(config).get("__annotations__", {}).items():
        owner = OWNERS.get(name, config)
        if owner is not config and kinds(annotation) == kinds(owner.__annotations__[name]):
            defaults = [
                next(setting.default for setting in fields(of) if setting.name == name) for of in (owner, config)
            ]
            if not issubclass(config, owner) or defaults[0] == defaults[1]:
                found.append(name)
    return found


def test_every_sampling_setting_is_declared_in_one_dataclass():
    every = {config for folder in ("sampling", "evaluation") for config in dataclasses_of(folder)}
    assert {DecodingConfig, RerankConfig, SamplingConfig, SampleCommandConfig, EvaluateConfig} <= every
    # a checkpoint's defaults of three settings, which are used where a config leaves them at None
    every.remove(SamplingDefaults)
    assert {config.__qualname__: restated(config) for config in every if restated(config)} == {}


@pytest.mark.parametrize("name", OWNERS)
def test_redeclared_setting_is_found(name):
    assert restated(make_dataclass("Again", [(name, OWNERS[name].__annotations__[name])])) == [name]


def test_inherited_setting_may_only_change_its_default():
    same, other = (
        make_dataclass(
            "Heir", [("memory", str, field(default=default, kw_only=True))], bases=(SamplingConfig,), frozen=True
        )
        for default in ("auto", "8")
    )
    assert (restated(same), restated(other)) == (["memory"], [])


def test_no_function_has_many_sampling_arguments():
    found = {}
    for path in [*ROOT.glob("**/*.py"), *ROOT.parent.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                taken = {argument.arg for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]}
                if len(taken & OWNERS.keys()) > MOST:
                    found[f"{path.name}: {node.name}"] = sorted(taken & OWNERS.keys())
    assert found == {}


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), float("-inf")])
def test_weights_of_scores_must_be_finite(weight):
    with pytest.raises(ValueError, match=r"rerank_weights.image_likelihood=.* must be a finite number"):
        RerankWeights(image_likelihood=weight)
