"""Arguments as users type them: paths that Hydra's grammar cannot read, ~, lists, and options with dashes."""

import pytest


@pytest.mark.parametrize(
    "path",
    ["outputs/démo", "photo (1).png", "a=b", "it's", "a#b;c&d!", "[draft] 1", "Straße.png", "a\\b", "${x} (1)", 'a"b'],
)
def test_paths_are_read_as_typed(command, path):
    argument = f'image="{path}"' if path.startswith("[") else f"image={path}"  # a value in brackets is a list
    (composed,), status, _ = command("caption=a", argument, f"checkpoint={path.strip('[]')}", name="sample")
    assert status == 0
    assert (composed.image, composed.checkpoint) == (path, path.strip("[]"))
    if "," not in path and not path.startswith("["):
        calls, _, _ = command("-m", "caption=a", f"image={path}", "seed=1,2", name="sample")
        assert [(call.image, call.seed) for call in calls] == [(path, 1), (path, 2)]


def test_values_that_hydra_reads_keep_their_types(command):
    (composed,), _, _ = command("captions=[a b,c]", "top_p=.5", "keep=2", "clip=null", "image='12'", name="sample")
    assert (composed.captions, composed.top_p, composed.keep) == (["a b", "c"], 0.5, 2)
    assert (composed.clip, composed.image) == (None, "12")


def test_the_home_folder_is_found_in_every_shell(command, tmp_path, monkeypatch):
    """Shells other than bash pass on a ~ after =."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (composed,), _, _ = command("captions_file=~/a.txt", "out=~/b", "caption=~/c", name="sample")
    assert (composed.captions_file, composed.out) == (f"{tmp_path}/a.txt", f"{tmp_path}/b")
    assert composed.caption == "~/c"
    calls, _, _ = command("-m", "caption=a", "out=~/b", "seed=1,2", name="sample")
    assert [call.out for call in calls] == [f"{tmp_path}/b"] * 2
    (composed,), _, _ = command("runs=~/é,~/b (2),c=d", "out=~/x.md", name="report")
    assert composed.runs == [f"{tmp_path}/é", f"{tmp_path}/b (2)", "c=d"]
    (composed,), _, _ = command("data.path=~/a, b", "data=folder")
    assert composed.data.path == f"{tmp_path}/a, b"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["runs=[a,é]", "out=x.md"],
            "cannot read runs=[a,é]: a value with commas, brackets or letters such as é needs",
        ),
        (["out=x.md", "é=1"], "cannot read é=1: "),
        (["-m", "out=é,b", "device=cpu"], "cannot read out=é,b: a value with commas, brackets or letters such as é"),
    ],
)
def test_the_argument_that_cannot_be_read_is_named(command, arguments, sentence):
    calls, status, error = command(*arguments, name="report")
    assert (calls, status) == ([], 2)
    assert error.startswith(sentence)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("sample", ["--caption", "a red apple"], "--caption is not an option: write caption=...; --help lists"),
        ("sample", ["--top-k=5"], "--top-k is not an option: write top_k=...; --help lists the settings\n"),
        ("train", ["--steps", "5"], "--steps is not an option: there is no setting steps; did you mean stage.steps"),
        ("train", ["-x"], "-x is not an option: there is no setting x; --help lists the settings\n"),
    ],
)
def test_an_option_with_dashes_is_answered_with_the_setting(command, name, arguments, sentence):
    calls, status, error = command(*arguments, name=name)
    assert (calls, status) == ([], 2)
    assert error.startswith(sentence)
    assert error.count("\n") == 1


def test_options_of_hydra_are_accepted(command, capsys):
    assert command("--cfg", "job")[:2] == ([], 0)
    assert [call.seed for call in command("--multirun", "seed=1,2")[0]] == [1, 2]


def test_help_of_a_sweep_shows_its_first_values(run_command):
    for arguments in (["-m", "--help", "run=kl,b"], ["run=kl,b", "stage=clip,dvae", "--help"]):
        status, printed = run_command("train", *arguments)
        assert (status, "run=kl " in printed) == (0, True), printed
