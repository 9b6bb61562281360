"""The paper's filters: leave out images by caption or by aspect ratio (Sec. 2.3, App. C).

The paper lists the filters but few numbers. The numbers in configs/filters/paper.yaml are ours, except the aspect
ratio.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec

DETECTOR = "py3langid"  # the paper's, cld3, no longer installs
MARGIN = 10.0  # nats; with a smaller margin, one in seven short English captions would be rejected

# dateutil.parser is not used: it parses captions such as "5" and "10 am" as dates
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
    """Filters of the records. The defaults keep all records; filters=paper sets the paper's filters."""

    min_words: int = 0  # leave out captions with fewer words
    min_characters: int = 0  # leave out captions with fewer characters
    languages: list[str] = field(default_factory=list)  # keep only captions in these; []: any; [en]: English
    boilerplate: list[str] = field(default_factory=list)  # regular expressions of whole captions; <date>: any date
    max_aspect_ratio: float = 0.0  # longer side / shorter side; 2 keeps [1/2, 2]; 0: no limit

    def __post_init__(self) -> None:
        if self.max_aspect_ratio and self.max_aspect_ratio < 1:
            raise ValueError(
                f"filters.max_aspect_ratio={self.max_aspect_ratio} would leave out every image: it is the longer "
                "side divided by the shorter one; choose 1 or more, or 0 for no limit"
            )


class CaptionFilter:
    """Callable that takes a caption and returns the reason to leave it out, or None to keep it.

    Raises ValueError for an invalid regular expression, for a language that the detector does not support, and if
    languages are set but no detector is installed.
    """

    def __init__(self, config: FiltersConfig):
        self.config = config
        self.boilerplate = [_compile_pattern(pattern) for pattern in config.boilerplate]
        self.detect_languages = _detector(config.languages) if config.languages else None

    def __call__(self, caption: str) -> str | None:
        """Return the reason to leave out the caption, or None to keep it."""
        if len(caption.split()) < self.config.min_words or len(caption) < self.config.min_characters:
            return "with captions too short"
        stripped = caption.strip(" .,!")
        if any(pattern.fullmatch(stripped) for pattern in self.boilerplate):
            return "with boilerplate captions"
        if self.detect_languages and not may_be_in(self.config.languages, self.detect_languages(caption)):
            return "with captions in other languages"
        return None


def exceeds_aspect_ratio(size: tuple[int, int], max_aspect_ratio: float) -> bool:
    """Return True if an image of `size` (width, height) exceeds the aspect ratio in either direction."""
    return max(size) > max_aspect_ratio * min(size)


def may_be_in(languages: list[str], scores: Mapping[str, float]) -> bool:
    """Return True if a caption may be in one of `languages`, given the log-probability of each language.

    Detection is uncertain for short captions. A caption is rejected only if another language is more probable than
    all of `languages` by more than `MARGIN` nats.
    """
    return max(scores.values()) - max(scores[language] for language in languages) <= MARGIN


def _compile_pattern(pattern: str) -> re.Pattern[str]:
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
    supported = {language for language, _ in rank("")}
    if unknown := [language for language in languages if language not in supported]:
        raise ValueError(
            f"filters.languages: {DETECTOR} does not know {unknown}; it knows {', '.join(sorted(supported))}"
        )
    return lambda caption: {language: float(score) for language, score in rank(caption)}
