import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from dalle.cli.sample_messages import print_decoding, stop_message
from dalle.models.transformer.model import Transformer
from dalle.sampling import decoding_choice, pipeline
from dalle.sampling.batch_size import choose_batch_size, format_bytes
from dalle.sampling.command_config import SampleCommandConfig
from dalle.sampling.image_record import read_record
from dalle.sampling.memory import decoding_memory
from dalle.sampling.output_writer import OutputWriter
from dalle.sampling.parallel_decode import DecodingCount


def test_sample_command_ranks_and_prints_the_output_folder(checkpoints, run_command, tmp_path):
    status, printed = run_command(
        "sample",
        f"checkpoint={checkpoints}",
        'captions=["a red circle","three green triangles, small"]',
        "candidates=5",
        "keep=2",
        "seed=3",
        "out=drawn",
    )
    assert status == 0, printed
    assert "grid      drawn/grid.png" in printed
    assert "three green triangles, small: 2 of 5 kept, best score" in printed
    facts = json.loads((tmp_path / "drawn" / "samples.json").read_text())
    assert [entry["caption"] for entry in facts["captions"]] == ["a red circle", "three green triangles, small"]
    assert set(facts["settings"]["digests"]) == {"dvae", "transformer", "clip"}
    assert facts["settings"]["seed"] == 3
    assert facts["settings"]["precision"] == "float32"  # what `auto` is on a CPU
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 1 + 4


def test_few_candidates_are_all_kept_and_the_number_is_recorded(checkpoints, run_command, tmp_path):
    status, printed = run_command(
        "sample", f"checkpoint={checkpoints}", "caption=a red circle", "candidates=3", "out=drawn"
    )
    assert status == 0, printed
    assert "a red circle: 3 of 3 kept" in printed
    images = sorted((tmp_path / "drawn").glob("a-*.png"))
    assert len(images) == 3
    in_json = json.loads((tmp_path / "drawn" / "samples.json").read_text())["settings"]
    in_image = read_record(images[0])["settings"]
    assert in_json["keep"] == in_image["keep"] == 3


def test_missing_caption_raises_with_advice(checkpoints, run_command):
    status, printed = run_command("sample", f"checkpoint={checkpoints}")
    assert status == 2
    assert 'caption="a red circle"' in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("rank", ["0", "1"])
def test_several_processes_that_sample_the_same_are_refused(checkpoints, run_command, tmp_path, monkeypatch, rank):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", rank), ("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    status, printed = run_command("sample", f"checkpoint={checkpoints}", "caption=a red circle", "out=drawn")
    assert status == 2
    assert "sample.py works in one process, and torchrun started 2, which would all do the same" in printed
    assert "with its own CUDA_VISIBLE_DEVICES and other captions, or another candidate_offset or seed" in printed
    assert not list(tmp_path.iterdir())


def test_missing_checkpoint_is_named(run_command):
    status, printed = run_command("sample", "checkpoint=nowhere", "caption=x")
    assert status == 2
    assert "no checkpoint at nowhere" in printed


@pytest.mark.parametrize(
    ("out", "reason"), [("afile", "afile is a file"), ("afile/x", "no file can be written to afile/x")]
)
def test_an_output_folder_that_cannot_be_written_is_refused_before_sampling(
    checkpoints, run_command, tmp_path, monkeypatch, out, reason
):
    monkeypatch.setattr(pipeline.DALLE, "stream", lambda *_, **__: pytest.fail("sampled"))
    (tmp_path / "afile").write_text("mine")
    status, printed = run_command("sample", f"checkpoint={checkpoints}", "caption=a red circle", f"out={out}")
    assert status == 2
    assert f"{reason}" in printed and "choose another out=" in printed
    assert (tmp_path / "afile").read_text() == "mine"


def test_limited_memory_is_reported_and_sampled_in_chunks(checkpoints, run_command):
    needs = decoding_memory(Transformer.load(checkpoints / "transformer"), recompute_kv=True)
    options = [f"checkpoint={checkpoints}", "caption=a red circle", "candidates=8", "keep=2", "out=drawn"]
    little = (needs.caption + 3.5 * needs.candidate) / 10**9
    status, printed = run_command("sample", *options, f"memory={little}")
    assert status == 0
    assert "3 images fit, so 3 are sampled at a time" in printed
    assert f"cache     {format_bytes(needs.cache)} a candidate; dense {format_bytes(needs.dense)}" in printed
    assert "2 of 8 kept" in printed
    status, printed = run_command("sample", *options, "memory=1e-9")
    assert (status, "sampling one image takes" in printed) == (2, True)


def test_batch_size_is_chosen_once_and_recorded_in_16_bits(checkpoints, run_command, tmp_path, monkeypatch):
    """Less memory is free later, and rounding depends on the batch."""
    chosen = []
    monkeypatch.setattr(
        decoding_choice, "choose_batch_size", lambda *a: chosen.append(choose_batch_size(*a)) or chosen[-1]
    )
    needs = decoding_memory(Transformer.load(checkpoints / "transformer"), recompute_kv=True)
    options = ["caption=a red circle", "candidates=8", "keep=1", "precision=bfloat16", "out=drawn"]
    memory = (needs.caption + 3.5 * needs.candidate) / 10**9
    status, printed = run_command("sample", f"checkpoint={checkpoints}", *options, f"memory={memory}")
    assert status == 0, printed
    (only,) = chosen
    settings = json.loads((tmp_path / "drawn" / "samples.json").read_text())["settings"]
    assert (settings["batch_size"], settings["recompute_kv"]) == (only.images, only.memory.recompute_kv) == (3, True)


def test_speed_counts_images_and_not_their_proposals(capsys):
    print_decoding(DecodingCount(images=50, passes=1000, tokens=4000), images=2, seconds=4.0)
    assert "500 passes per image, 4.0 tokens per pass, 0.50 images/s" in capsys.readouterr().out


def test_sequential_decoding_prints_as_many_passes_as_tokens(checkpoints, run_command):
    """Of batches of one and two images, with 4 x 4 tokens each."""
    options = ["caption=a red circle", "candidates=3", "keep=1", "batch_size=2", "decoding=sequential", "out=drawn"]
    status, printed = run_command("sample", f"checkpoint={checkpoints}", *options)
    assert status == 0, printed
    assert re.search(
        r"^decoding  16 passes per image, 1\.0 tokens per pass, \d+\.\d\d images/s$", printed, re.MULTILINE
    )


def test_images_that_nothing_ranked_are_recorded_so(checkpoints, run_command, tmp_path):
    for part in ("dvae", "transformer"):
        shutil.copytree(checkpoints / part, tmp_path / "parts" / part)
    status, printed = run_command(
        "sample", "checkpoint=parts", "caption=a red circle", "candidates=1", "keep=1", "out=a"
    )
    assert status == 0, printed
    record = read_record(tmp_path / "a" / "a-red-circle-001.png")
    assert record["settings"]["rerank"] == "none"


def test_captions_from_a_file_and_with_commas(checkpoints, run_command, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\nthree green triangles, small\n")
    options = [f"checkpoint={checkpoints}", "candidates=2", "keep=1"]
    status, printed = run_command("sample", *options, "captions_file=prompts.txt", "out=many")
    assert status == 0, printed
    facts = json.loads((tmp_path / "many" / "samples.json").read_text())
    assert [entry["caption"] for entry in facts["captions"]] == ["a red circle", "three green triangles, small"]
    status, printed = run_command("sample", *options, "caption=a red circle, a blue square", "out=one")
    assert status == 0, printed
    assert "a red circle, a blue square: 1 of 2 kept" in printed


def interrupt_once_there_is(pattern: str, folder: Path) -> threading.Thread:
    def wait() -> None:
        while not list(folder.glob(pattern)):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_interrupted_command_keeps_finished_images(checkpoints, run_command, tmp_path):
    thread = interrupt_once_there_is("drawn/001-*.png", tmp_path)
    options = ["captions=[a red circle,one circle,three]", "candidates=60", "keep=2", "batch_size=1", "out=drawn"]
    shutil.copytree(checkpoints / "dvae", tmp_path / "parts" / "dvae")
    shutil.copytree(checkpoints / "transformer", tmp_path / "parts" / "transformer")
    status, printed = run_command("sample", "checkpoint=parts", *options)
    thread.join()
    assert status == 130
    rest = "captions_file=drawn/remaining.txt out=<another folder>"
    assert f"stopped with 1 of 3 captions finished; sample the others with {rest}" in printed
    assert (tmp_path / "drawn" / "remaining.txt").read_text() == "one circle\nthree\n"
    assert "Traceback" not in printed
    facts = json.loads((tmp_path / "drawn" / "samples.json").read_text())
    assert facts["interrupted"]
    drawn = [entry["drawn"] for entry in facts["captions"]]
    assert drawn[0] == 60
    assert 0 <= drawn[1] < 60
    assert drawn[2] == 0
    assert (tmp_path / "drawn" / "grid.png").exists()


def test_rest_of_a_stopped_run_does_not_overwrite_its_images(tmp_path):
    writer = OutputWriter(tmp_path, ["a red circle"], 8, 0, {})
    writer.entries.append({"caption": "a red circle", "drawn": 3, "images": []})
    for out, expected in ((None, "keep=2"), ("drawn", "keep=2 out=<another folder>")):
        message = stop_message(writer, SampleCommandConfig(candidates=8, keep=2, candidate_offset=4, out=out))
        assert message.endswith(f"sample the others with candidate_offset=7 candidates=5 {expected}")


def test_jobs_of_a_sweep_have_folders_of_their_own(checkpoints, run_command, tmp_path):
    options = [f"checkpoint={checkpoints}", "caption=a red circle", "candidates=1", "keep=1"]
    status, printed = run_command("sample", "-m", *options, "out=drawn", "seed=0,1")
    assert status == 0, printed
    records = [read_record(path) for path in tmp_path.glob("drawn/*/a-red-circle-001.png")]
    assert sorted(record["seed"] for record in records) == [0, 1]


def test_words_not_in_training_captions_are_listed(checkpoints, run_command, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints, folder)
    options = [f"checkpoint={folder}", "candidates=1", "keep=1", "out=drawn", "caption=A Red zebra, purple"]
    status, printed = run_command("sample", *options)
    assert (status, "hint" in printed) == (0, False)  # this checkpoint lists no words
    path = folder / "transformer" / "config.json"
    content = json.loads(path.read_text())
    content["meta"]["caption_words"] = ["a", "circle", "red"]
    path.write_text(json.dumps(content))
    status, printed = run_command("sample", *options[:3], "out=again", options[-1])
    assert status == 0
    assert "hint      in none of the training captions that its tokenizer read: purple, zebra" in printed
    status, printed = run_command("sample", *options[:3], "out=misspelled", "caption=a red cirkle")
    assert status == 0
    assert "read: cirkle (nearest known: circle)" in printed


def test_score_that_ranked_is_printed_and_recorded(checkpoint_ranked_by, run_command, tmp_path):
    """The checkpoint's, unless another is set or the checkpoint's cannot score the images."""
    Image.new("RGB", (8, 8), "orange").save(tmp_path / "one.png")
    folder, outpaint = checkpoint_ranked_by("mixture"), ["edit=outpaint", "image=one.png", "edit.right=1"]
    for number, (given, rerank) in enumerate([([], "mixture"), (["rerank=clip"], "clip"), (outpaint, "clip")]):
        out = f"out=drawn{number}"
        options = [f"checkpoint={folder}", "caption=a red circle", "candidates=3", "keep=1", out, *given]
        status, printed = run_command("sample", *options)
        assert status == 0, printed
        assert ("by mixture" in printed) == (rerank == "mixture")
        (image,) = (tmp_path / f"drawn{number}").glob("a-red-circle-*.png")
        assert read_record(image)["settings"]["rerank"] == rerank
