import pytest

from dalle.sampling.settings import SampleConfig, captions_to_draw


def test_captions_come_from_whichever_option_gives_them(tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffa red circle\r\n\n  two, blue squares \n# three\n", encoding="utf-8")
    from_file = SampleConfig(captions_file=str(tmp_path / "prompts.txt"))
    assert captions_to_draw(from_file) == ["a red circle", "two, blue squares", "# three"]
    assert captions_to_draw(SampleConfig(caption="a red circle")) == ["a red circle"]
    assert captions_to_draw(SampleConfig(captions=["one", "two"])) == ["one", "two"]


@pytest.mark.parametrize("given", [{}, {"caption": "one", "captions": ["two"]}, {"caption": "x", "captions_file": "y"}])
def test_none_or_several_of_the_options_are_refused(given):
    with pytest.raises(ValueError, match=r'in one way: caption="a red circle", .*captions_file='):
        captions_to_draw(SampleConfig(**given))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, r"captions in .*prompts.txt cannot be read: No such file"),
        (b"caf\xe9\n", r"captions in .*prompts.txt are not text in UTF-8: .* at byte 3"),
        (b" \n\n", r"prompts.txt holds no captions; write one on each line"),
    ],
)
def test_a_file_without_captions_is_refused(tmp_path, content, problem):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        captions_to_draw(SampleConfig(captions_file=str(path)))
