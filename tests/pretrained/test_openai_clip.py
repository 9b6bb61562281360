"""OpenAI CLIP archives and state dicts: read without executing them, outputs equal to the published models."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from openai_archive import State, halved, save_archive, save_state
from reference_clips import CAPTIONS, VOCABULARY, huggingface_model, noise, openai_state_dict, write_merges
from reference_resnet import BLOCKS, resnet_features, resnet_state_dict
from transformers import CLIPModel

from dalle import DALLE
from dalle.checkpoint import CheckpointError
from dalle.models.clip.model import CLIP

CLOSE = {"atol": 1e-4, "rtol": 0}

# torch would like us to leave TorchScript, which is what OpenAI published
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def same_draws() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def reference() -> CLIPModel:
    return huggingface_model({"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2})


@pytest.fixture(scope="module")
def vit(reference) -> State:
    return openai_state_dict(reference)


@pytest.fixture(scope="module")
def resnet(vit) -> State:
    return resnet_state_dict(vit)


@pytest.fixture
def merges(tmp_path) -> Path:
    return write_merges(tmp_path / "bpe_simple_vocab_16e6.txt.gz")


# --- the same numbers ------------------------------------------------------------------------------------------


@torch.no_grad()
def assert_parity(clip: CLIP, reference: CLIPModel) -> None:
    pixels, ids = torch.rand(3, 3, 32, 32), torch.randint(VOCABULARY, (4, 40))
    ids[:, 11] = VOCABULARY - 1
    theirs = reference(input_ids=ids, pixel_values=(pixels - clip.pixel_mean) / clip.pixel_std)
    pictures, captions, scale = clip(pixels, ids)
    torch.testing.assert_close(pictures, theirs.image_embeds, **CLOSE)
    torch.testing.assert_close(captions, theirs.text_embeds, **CLOSE)
    torch.testing.assert_close(scale * pictures @ captions.T, theirs.logits_per_image, **CLOSE)


def test_vit_state_dict_matches_transformers(vit, reference, tmp_path):
    clip = CLIP.from_openai(save_state(vit, tmp_path / "vit.pt"))
    assert not clip.training
    assert_parity(clip, reference)


def test_vit_archive_matches_half_precision_weights(vit, reference, tmp_path):
    clip = CLIP.from_openai(save_archive(vit, tmp_path / "vit.pt"))
    assert {parameter.dtype for parameter in clip.parameters()} == {torch.float32}
    same = CLIP.from_openai(save_state(halved(vit), tmp_path / "state.pt"))
    for name, tensor in same.state_dict().items():
        assert clip.state_dict()[name].equal(tensor), name
    rounded = CLIPModel(reference.config).eval()
    rounded.load_state_dict(reference.half().state_dict())
    reference.float()
    assert_parity(clip, rounded)


@pytest.mark.parametrize("save", [save_state, save_archive])
@torch.no_grad()
def test_resnet_matches_published_architecture(resnet, vit, save, tmp_path):
    clip = CLIP.from_openai(save(resnet, tmp_path / "rn.pt"))
    expected = halved(resnet) if save is save_archive else resnet
    pixels = F.interpolate(torch.rand(3, 3, 4, 4), 64)  # noise would look the same to all of it
    features = resnet_features(expected, (pixels - clip.pixel_mean) / clip.pixel_std, heads=4)
    torch.testing.assert_close(clip.encode_image(pixels), F.normalize(features, dim=-1), **CLOSE)
    assert (features[0] - features[1]).abs().max() > 0.1
    beside = CLIP.from_openai(save(vit, tmp_path / "vit.pt"))
    ids = torch.randint(VOCABULARY, (4, 40))
    assert clip.encode_text(ids).equal(beside.encode_text(ids))


def test_resnet_batch_counters_are_optional(resnet, tmp_path):
    fewer = {name: tensor for name, tensor in resnet.items() if not name.endswith("num_batches_tracked")}
    clip, same = (CLIP.from_openai(save_state(state, tmp_path / "rn.pt")) for state in (fewer, resnet))
    assert clip.encode_image(torch.ones(1, 3, 64, 64)).equal(same.encode_image(torch.ones(1, 3, 64, 64)))


def test_sizes_are_inferred_from_tensors(vit, resnet, tmp_path):
    config = CLIP.from_openai(save_state(vit, tmp_path / "vit.pt")).config
    assert (config.image_size, config.patch, config.image_width, config.image_depth, config.image_heads) == (
        32,
        8,
        64,
        2,
        1,
    )
    assert (config.text_width, config.text_depth, config.text_heads, config.text_positions) == (128, 2, 2, 40)
    assert (config.embedding, config.text_vocabulary) == (24, VOCABULARY)
    config = CLIP.from_openai(save_state(resnet, tmp_path / "rn.pt")).config
    assert (config.image_encoder, config.image_size, config.image_width) == ("resnet", 64, 8)
    assert (config.image_blocks, config.image_heads) == (BLOCKS, 4)


def test_captions_end_at_the_largest_id(vit, merges, tmp_path):
    clip = CLIP.from_openai(save_state(vit, tmp_path / "vit.pt"), merges)
    start, end = VOCABULARY - 2, VOCABULARY - 1
    (ids,) = clip.tokenize(["the cat's &amp;"]).tolist()
    assert ids[:6] == [start, 513, 515, 522, 256 + 5, end]
    assert ids[6:] == [0] * 34


def test_centre_crop_matches_torchvision(vit, tmp_path):
    clip = CLIP.from_openai(save_state(vit, tmp_path / "vit.pt"))
    for width in range(32, 44):
        image = noise(width, 32)
        left = int(round((width - 32) / 2.0))  # torchvision's center_crop
        expected = image.crop((left, 0, left + 32, 32))
        assert (clip.preprocess([image])[0] * 255).round().byte().movedim(0, -1).numpy().tobytes() == expected.tobytes()
    # torchvision's Resize cuts off the fraction of the longer side: 32 * 50 / 37 = 43.2
    resized = noise(50, 37).resize((43, 32), resample=3).crop((6, 0, 38, 32))
    assert (clip.preprocess([noise(50, 37)])[0] * 255).round().byte().movedim(
        0, -1
    ).numpy().tobytes() == resized.tobytes()


# --- from the weights to ranked pictures -----------------------------------------------------------------------


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_imported_clip_reranks_images_of_another_size(tower, request, checkpoints, merges, tmp_path, prepare):
    save_archive(request.getfixturevalue(tower), tmp_path / "published.pt")
    status, printed = prepare("import=openai-clip", "weights=published.pt", f"merges={merges.name}", "out=mine")
    assert status == 0, printed
    dalle = DALLE.load(checkpoints, clip="mine")
    direct = CLIP.from_openai("published.pt", merges)
    result = dalle.generate("three green triangles", candidates=6, keep=6)
    assert result.images[0].size == (8, 8)
    scores = direct.score(result.images, ["three green triangles"])[:, 0].tolist()
    assert result.scores == pytest.approx(scores, abs=1e-6)
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1]


def test_hugging_face_folder_is_imported_by_its_own_name(reference, prepare, tmp_path):
    reference.save_pretrained(tmp_path / "published")
    status, printed = prepare("import=huggingface-clip", "folder=published", "out=mine")
    assert status == 2
    sentence = "published has none of tokenizer.json, vocab.json, merges.txt; give tokenizer=<folder>"
    assert printed.splitlines()[-1] == sentence
    assert not (tmp_path / "mine").exists()
    write_merges(tmp_path / "merges.txt")
    status, printed = prepare("import=huggingface-clip", "folder=published", "tokenizer=merges.txt", "out=mine")
    assert status == 0, printed
    assert CLIP.load("mine").score([noise(9, 9)], CAPTIONS).shape == (1, 4)


# --- what is no CLIP -------------------------------------------------------------------------------------------


def refused(weights: Path, merges: Path | None = None) -> str:
    with pytest.raises(ValueError) as error:
        CLIP.from_openai(weights, merges)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_code_of_an_archive_is_never_executed(vit, tmp_path):
    whole, gutted = save_archive(vit, tmp_path / "whole.pt"), tmp_path / "gutted.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(gutted, "w") as target:
        for entry in source.infolist():
            spoilt = "/code/" in entry.filename or entry.filename.endswith("constants.pkl")
            target.writestr(entry.filename, b"no program" if spoilt else source.read(entry))
    assert CLIP.from_openai(gutted).encode_image(torch.ones(1, 3, 32, 32)).shape == (1, 24)


def test_archive_with_a_function_call_raises(vit, tmp_path):
    whole, evil = save_archive(vit, tmp_path / "whole.pt"), tmp_path / "evil.pt"
    call = b"cposix\nmkdir\n(X\x05\x00\x00\x00taken" + b"tR."
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(evil, "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, call if entry.filename.endswith("/data.pkl") else source.read(entry))
    assert "evil.pt was rejected before any of its code was run: it refers to posix.mkdir" in refused(evil)
    assert not os.path.exists("taken")


def test_other_files_raise(vit, tmp_path):
    assert "there is no file" in refused(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("a text")
    assert "text.pt was not written by torch.save: it begins with b'a te'" in refused(tmp_path / "text.pt")
    save_state({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    sentence = refused(tmp_path / "other.pt")
    assert "other.pt is not one of OpenAI's CLIPs: it has neither visual.proj" in sentence
    for save in (save_state, save_archive):
        content = save(vit, tmp_path / "cut.pt").read_bytes()
        (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
        assert "cut.pt is truncated or damaged" in refused(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("text_projection", None, "it lacks the tensor text_projection"),
        ("text_projection", (128, 23), "image.projection.weight is (24, 64) in the file, (23, 64) in the model"),
        ("ln_final.bias", None, "lacks the tensor text.norm_out.bias, which the model has"),
        ("visual.positional_embedding", (18, 64), "should have 1 and a square number of positions, but has 18"),
        ("visual.positional_embedding", (18,), "should have 2 dimensions but is (18,)"),
        ("visual.conv1.weight", (60, 3, 8, 8), "the image encoder is 60 wide, not a multiple of the heads' 64"),
        ("visual.ln_pre.weight", (65,), "image.norm_in.weight is (65,) in the file, (64,) in the model"),
        ("visual.head", (3,), "holds the tensor visual.head, which the model does not have"),
    ],
)
def test_mismatched_tensors_raise(vit, name, shape, sentence, tmp_path):
    state = {key: tensor for key, tensor in vit.items() if key != name}
    if shape is not None:
        state[name] = torch.zeros(shape)
    found = refused(save_state(state, tmp_path / "vit.pt"))
    assert "vit.pt" in found
    assert sentence in found


def test_mismatched_merges_raise(vit, merges, tmp_path):
    weights = save_state(vit, tmp_path / "vit.pt")
    assert "there is no" in refused(weights, tmp_path / "missing.gz")
    larger = {**vit, "token_embedding.weight": torch.zeros(600, 128)}
    assert "has 15 merges, but a vocabulary of 600 needs 86" in refused(save_state(larger, tmp_path / "l.pt"), merges)
    CLIP.from_openai(weights, merges).tokenizer.save(tmp_path / "tokenizer.json")
    assert "vocabulary of 600 ends with them" in refused(tmp_path / "l.pt", tmp_path / "tokenizer.json")


def test_failed_import_leaves_no_output(vit, merges, tmp_path, prepare):
    content = save_archive(vit, tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[:-1000])
    before = sorted(os.listdir(tmp_path))
    status, printed = prepare("import=openai-clip", "weights=cut.pt", f"merges={merges.name}", "out=mine")
    assert status == 2
    assert "cut.pt is truncated or damaged" in printed
    assert printed.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == before


def test_errors_are_checkpoint_errors(tmp_path):
    with pytest.raises(CheckpointError):
        CLIP.from_openai(tmp_path / "missing.pt")
