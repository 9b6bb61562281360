"""Caption policy: a user's list of words and patterns whose captions are refused, with a reason, and logged."""

import json
import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

LOG = Path("outputs/refused.jsonl")
DEFAULT_REASON = "not allowed by the policy"
WORD_START, WORD_END = r"(?<![^\W_])", r"(?![^\W_])"  # an underscore separates words, unlike in \b
# characters that are not shown: formats and control characters, joiners, fillers and variation selectors
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\U0001bca0-\U0001bca3\U000e0000-\U000e0fff]"
)


class CaptionRefused(ValueError):
    """A caption matches a rule of the caption policy."""


@dataclass(frozen=True)
class Rule:
    """One line of a policy: the pattern to search for, its text in the file, its line number and the reason."""

    pattern: re.Pattern[str]
    text: str
    line: int
    reason: str
    is_expression: bool

    def matches(self, caption: str) -> bool:
        """Return True if the rule matches a caption that `normalise` returned."""
        return self.pattern.search(caption if self.is_expression else caption.casefold()) is not None


class CaptionPolicy:
    """Rules of a text file, one per line: a word, a phrase or a /regular expression/, and after a tab the reason.

    Words and phrases match whole words, in any case and Unicode form. Lines that start with # are comments.
    """

    def __init__(self, path: str | Path, log: Path = LOG):
        """Read the rules. `log` is the JSON Lines file to which refusals are appended.

        Raises ValueError if the file cannot be read, has no rules, or has an invalid regular expression.
        """
        self.path, self.log = Path(path), log
        try:
            lines = self.path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the caption policy {path} cannot be read: {error}") from error
        self.rules = [
            read_rule(line, f"{path}, line {number}", number)
            for number, line in enumerate(lines, start=1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
        if not self.rules:
            raise ValueError(f"the caption policy {path} has no rules; write a word or a /pattern/ per line")

    def check(self, caption: str) -> None:
        """Raise CaptionRefused, and log it, if the caption matches a rule."""
        normal = normalise(caption)
        for rule in self.rules:
            if rule.matches(normal):
                self._log(caption, rule)
                raise CaptionRefused(
                    f"the caption {caption!r} is refused: {rule.reason} ({self.path}, line {rule.line}: {rule.text})"
                )

    def _log(self, caption: str, rule: Rule) -> None:
        entry = {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "caption": caption,
            "policy": str(self.path),
            "line": rule.line,
            "reason": rule.reason,
        }
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def read_rule(line: str, place: str, number: int) -> Rule:
    """Parse a line of a policy. `place` names it in error messages.

    Raises ValueError for an invalid regular expression, or one that matches every caption.
    """
    text, _, reason = (part.strip() for part in line.partition("\t"))
    is_expression = len(text) > 2 and text.startswith("/") and text.endswith("/")
    if is_expression:
        expression = normalise(text[1:-1])
    else:
        words = normalise(text).casefold().split()
        expression = WORD_START + r"[\s_]+".join(map(re.escape, words)) + WORD_END
    try:
        pattern = re.compile(expression, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"{place}: {text} is not a regular expression: {error}") from error
    if not text or pattern.search(""):
        raise ValueError(f"{place}: {text or 'an empty pattern'} would refuse every caption")
    return Rule(pattern, text, number, reason or DEFAULT_REASON, is_expression)


def normalise(text: str) -> str:
    """Return `text` in Unicode's compatibility form (NFKC), without invisible characters."""
    return INVISIBLE.sub("", unicodedata.normalize("NFKC", INVISIBLE.sub("", text)))
