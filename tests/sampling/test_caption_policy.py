"""Caption policy: what its rules match, what is logged, and bad files."""

import json

import pytest

from dalle.sampling.caption_policy import CaptionPolicy, CaptionRefused


@pytest.fixture
def policy(tmp_path):
    def read(text: str) -> CaptionPolicy:
        (tmp_path / "policy.txt").write_text(text, encoding="utf-8")
        return CaptionPolicy(tmp_path / "policy.txt", tmp_path / "logs" / "refused.jsonl")

    return read


@pytest.mark.parametrize(
    "caption",
    [
        "a gun",
        "A GUN, 3D render",
        "two guns' and a gun.",
        "a ｇｕｎ",
        "a_gun",
        *(f"a g{hidden}un" for hidden in "\u200b\ufe0f\u034f\u115f\u3164\u00ad\U000e0067"),
    ],
)
def test_a_word_is_found_in_any_case_and_unicode_form(policy, caption):
    with pytest.raises(CaptionRefused):
        policy("gun\n").check(caption)


@pytest.mark.parametrize("caption", ["a gunnel", "two guns", "begun", "a red apple", ""])
def test_a_word_is_not_found_within_another(policy, caption):
    policy("gun\n").check(caption)


def test_phrases_match_across_spaces_and_patterns_match_anywhere(policy):
    rules = policy("hate   symbol\tno hate symbols\n/guns?/\tno weapons\n")
    with pytest.raises(CaptionRefused, match=r"no hate symbols .*line 1: hate   symbol"):
        rules.check("a  Hate symbol")
    with pytest.raises(CaptionRefused, match=r"no weapons .*line 2: /guns\?/"):
        rules.check("begun")
    rules.check("a symbol of hate")


@pytest.mark.parametrize(
    ("rule", "caption"),
    [
        ("straße", "eine STRASSE"),
        ("/straße/", "eine straße"),
        ("/ﬁre/", "a ﬁre"),
        ("/Cafe\u0301/", "a café"),
        ("/İstanbul/", "İstanbul"),
        ("/(?-i:USA)/", "the USA"),
    ],
)
def test_rules_have_the_unicode_form_of_captions(policy, rule, caption):
    with pytest.raises(CaptionRefused):
        policy(f"{rule}\n").check(caption)


def test_a_case_sensitive_pattern_stays_so(policy):
    policy("/(?-i:USA)/\n").check("a usable umbrella")


def test_the_command_draws_nothing_for_a_refused_caption(checkpoints, run_command, tmp_path):
    (tmp_path / "policy.txt").write_text("  # weapons\ngun\tno weapons\n")
    options = [f"checkpoint={checkpoints}", "candidates=1", "keep=1", f"caption_policy={tmp_path / 'policy.txt'}"]
    status, printed = run_command("sample", *options, "captions=[a red circle,a gun]", "out=drawn")
    assert status == 2 and "no weapons" in printed
    assert not (tmp_path / "drawn").exists()
    assert len((tmp_path / "outputs" / "refused.jsonl").read_text().splitlines()) == 1
    status, printed = run_command("sample", *options, "caption=a red circle", "out=drawn")
    assert status == 0, printed


def test_a_refusal_is_logged_with_its_reason(policy):
    rules = policy("# weapons\n\ngun\tno weapons\n")
    for caption in ("a gun", "an apple", "a gun"):
        try:
            rules.check(caption)
        except CaptionRefused:
            continue
    entries = [json.loads(line) for line in rules.log.read_text().splitlines()]
    assert [(entry["caption"], entry["line"], entry["reason"]) for entry in entries] == [("a gun", 3, "no weapons")] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rules"),
        ("# only a comment\n", "has no rules"),
        ("/(/\n", r"line 1: /\(/ is not a regular expression"),
        ("gun\n/a*/\n", r"line 2: /a\*/ would refuse every caption"),
        ("\tno reason without a rule\n", "line 1: an empty pattern would refuse every caption"),
    ],
)
def test_a_bad_policy_is_refused_with_its_line(policy, text, message):
    with pytest.raises(ValueError, match=message):
        policy(text)


def test_a_missing_policy_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing.txt cannot be read"):
        CaptionPolicy(tmp_path / "nothing.txt")
