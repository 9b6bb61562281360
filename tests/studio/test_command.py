"""The command `dalle studio`: its settings, and its errors as one sentence."""

import re
import socket
import sys

import pytest

from dalle.cli import main as cli


@pytest.fixture
def studio_command(monkeypatch, capsys, tmp_path):
    """Function that runs `dalle studio` with arguments that end it at once. Returns (exit status, error output)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dalle", "studio", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().err

    return run


def test_a_port_in_use_is_said_in_one_sentence(studio_command):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, errors = studio_command(f"port={port}")
    assert status == 2
    assert re.fullmatch(rf"the studio cannot listen on port={port} .*in use; try another port.*\n", errors)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["checkpoint=nowhere"], "nowhere"),
        (["checkpoint=https://203.0.113.7/model"], "203.0.113.7/model"),  # a folder's name: nothing is fetched
        (["host=0.0.0.0"], "needs a token of yours"),
        (["port=70000"], "port=70000 is not a port"),
        (["queue=0"], "queue=0 must be at least 1"),
        (["max_images=8"], "max_images=8 cannot hold one drawing"),
        (["prot=1"], "did you mean port"),
        (["caption_policy=nothing.txt"], "the caption policy nothing.txt cannot be read"),
        (["host=203.0.113.7", "port=0"], "cannot listen"),
    ],
)
def test_a_wrong_setting_is_said_in_one_sentence(studio_command, monkeypatch, arguments, sentence):
    monkeypatch.delenv("DALLE_STUDIO_TOKEN", raising=False)
    if "203" in arguments[0]:
        monkeypatch.setenv("DALLE_STUDIO_TOKEN", "x" * 32)
    status, errors = studio_command(*arguments)
    assert status == 2
    assert sentence in errors and errors.count("\n") == 1


def test_a_missing_package_is_named_with_its_extra(studio_command, monkeypatch):
    find_spec = cli.import_module("dalle.optional_dependencies").find_spec
    monkeypatch.setattr(
        "dalle.optional_dependencies.find_spec", lambda name: None if name == "uvicorn" else find_spec(name)
    )
    status, errors = studio_command()
    assert (status, "pip install 'dalle[studio]'" in errors) == (2, True)
