import pytest

from dalle.sampling.command_config import SampleCommandConfig, check_unused_settings, requested_captions


def test_captions_from_each_option(tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffa red circle\r\n\n  two, blue squares \n# three\n", encoding="utf-8")
    from_file = SampleCommandConfig(captions_file=str(tmp_path / "prompts.txt"))
    assert requested_captions(from_file) == ["a red circle", "two, blue squares", "# three"]
    assert requested_captions(SampleCommandConfig(caption="a red circle")) == ["a red circle"]
    assert requested_captions(SampleCommandConfig(captions=["one", "two"])) == ["one", "two"]


@pytest.mark.parametrize("given", [{}, {"caption": "one", "captions": ["two"]}, {"caption": "x", "captions_file": "y"}])
def test_none_or_several_caption_options_raise(given):
    with pytest.raises(ValueError, match=r'in exactly one way: caption="a red circle", .*captions_file='):
        requested_captions(SampleCommandConfig(**given))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, r"captions in .*prompts.txt cannot be read: No such file"),
        (b"caf\xe9\n", r"captions in .*prompts.txt are not UTF-8 text: .* at byte 3"),
        (b" \n\n", r"prompts.txt has no captions; write one per line"),
    ],
)
def test_file_without_captions_raises(tmp_path, content, problem):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        requested_captions(SampleCommandConfig(captions_file=str(path)))


@pytest.mark.parametrize("offset", [-1, 2**63])
def test_candidate_offset_out_of_range_raises(offset):
    SampleCommandConfig(candidate_offset=2**62)
    with pytest.raises(ValueError, match=f"candidate_offset={offset} is out of range; use 0 to {2**62}"):
        SampleCommandConfig(candidate_offset=offset)


@pytest.mark.parametrize(
    ("unused", "used"),
    [
        ({"attention_layer": 2}, {"attention": True}),
        ({"decoder_steps": 4}, {"decoder": "folder"}),
        ({"rerank_references": ["a"]}, {"rerank": "caption_likelihood"}),
        ({"memory": "8", "batch_size": 4}, {"batch_size": None}),
    ],
)
def test_settings_without_effect_raise(unused, used):
    check_unused_settings(SampleCommandConfig())
    check_unused_settings(SampleCommandConfig(**(unused | used)))
    with pytest.raises(ValueError, match=f"{next(iter(unused))}=.* (needs|has no effect)"):
        check_unused_settings(SampleCommandConfig(**unused))
