"""The paper's filters: pictures that are left out for their captions or their shape (Sec. 2.3, App. C).

The paper names them and gives few numbers; those of configs/filters/paper.yaml are ours, but for the shape's.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec

DETECTOR = "py3langid"  # the paper's, cld3, no longer installs
MARGIN = 10.0  # nats; with less, one short English caption in seven would count as another language

# dateutil.parser takes captions such as "may" and "5" for dates
_MONTH = (
    r"(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|nov(ember)?"
    r"|dec(ember)?)\.?"
)
_DAY = r"\d{1,2}(st|nd|rd|th)?"
_WEEKDAY = r"((mon|tues?|wed(nes)?|thu(rs)?|fri|sat(ur)?|sun)(day)?\.?,? )?"
_TIME = r"(,?( at)? \d{1,2}[:.]\d{2}([:.]\d{2})?( ?[ap]\.?m\.?)?)?"
DATE = (
    rf"({_WEEKDAY}(the )?({_DAY} (of )?{_MONTH}|{_MONTH}( {_DAY})?)(,? '?\d{{2,4}})?{_TIME}"
    rf"|\d{{1,4}}[-./:]\d{{1,2}}[-./:]\d{{1,4}}{_TIME}|\d{{4}})"
)


@dataclass
class FiltersConfig:
    """Which records are left out. By itself, none: filters=paper sets what the paper had."""

    min_words: int = 0  # captions of fewer words are left out
    min_characters: int = 0  # and of fewer characters
    languages: list[str] = field(default_factory=list)  # captions in others are left out; [en]: English only
    boilerplate: list[str] = field(default_factory=list)  # regular expressions for whole captions; <date>: any date
    max_aspect_ratio: float = 0.0  # longer side by shorter side; 0: any. 2 keeps [1/2, 2]

    def __post_init__(self) -> None:
        if self.max_aspect_ratio and self.max_aspect_ratio < 1:
            raise ValueError(
                f"filters.max_aspect_ratio={self.max_aspect_ratio} would leave out every picture: it is the longer "
                "side by the shorter one; choose 1 or more, or 0 for no limit"
            )


class CaptionFilter:
    """Tells why a caption is left out.

    Raises ValueError for a pattern that is no regular expression, for a language that the detector does not
    know, and when languages are asked for and no detector is installed.
    """

    def __init__(self, config: FiltersConfig):
        self.config = config
        self.boilerplate = [_compiled(pattern) for pattern in config.boilerplate]
        self.languages = _detector(config.languages) if config.languages else None

    def __call__(self, caption: str) -> str | None:
        """The reason to leave the caption out, or None."""
        if len(caption.split()) < self.config.min_words or len(caption) < self.config.min_characters:
            return "with captions too short"
        bare = caption.strip(" .,!")
        if any(pattern.fullmatch(bare) for pattern in self.boilerplate):
            return "with boilerplate captions"
        if self.languages and not is_in(self.config.languages, self.languages(caption)):
            return "with captions in other languages"
        return None


def too_long(size: tuple[int, int], max_aspect_ratio: float) -> bool:
    """Whether a picture of this width and height is longer, or higher, than the ratio allows."""
    return max(size) > max_aspect_ratio * min(size)


def is_in(languages: list[str], scores: Mapping[str, float]) -> bool:
    """Whether a caption may be in one of these languages, given each language's log-probability.

    What is short is in no language for certain: only one that is `MARGIN` nats more probable than all of
    `languages` speaks against them.
    """
    return max(scores.values()) - max(scores[language] for language in languages) <= MARGIN


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern.replace("<date>", DATE), re.IGNORECASE)
    except re.error as problem:
        raise ValueError(f"filters.boilerplate: {pattern!r} is no regular expression: {problem}") from problem


def _detector(languages: list[str]) -> Callable[[str], Mapping[str, float]]:
    if find_spec(DETECTOR) is None:
        raise ValueError(
            f"filters.languages={languages} needs a language detector: pip install {DETECTOR}, or set "
            "data.filters.languages=[] to keep every language"
        )
    rank = import_module(DETECTOR).rank
    known = {language for language, _ in rank("")}
    if unknown := [language for language in languages if language not in known]:
        raise ValueError(f"filters.languages: {DETECTOR} does not know {unknown}; it knows {', '.join(sorted(known))}")
    return lambda caption: {language: float(score) for language, score in rank(caption)}
