"""Transformer: what logits depend on, sizes, initial weights, checkpoints and errors."""

import json
import time

import pytest
import torch
import torch.nn.functional as F
from every_pattern import MODELS
from tiny_transformers import CHANGES, READINGS, example

from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.models.transformer.patterns import image_attend_mask


def joint(model: Transformer, caption: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Return the logits of all positions, padded to one vocabulary: (b, n, v)."""
    text, image_logits = model(caption, image)
    width = max(text.shape[-1], image_logits.shape[-1])
    return torch.cat([F.pad(logits, (0, width - logits.shape[-1])) for logits in (text, image_logits)], dim=1)


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@torch.no_grad()
def test_changing_a_token_does_not_change_earlier_logits(make_transformer, changes):
    model = make_transformer(depth=3, **changes)
    sequence = model.sequence
    caption, image = sequence.pad_captions([[1, 2, 3, 4, 5]]), example(model, batch=1)[1]
    before = joint(model, caption, image)
    for place in range(sequence.caption_limit):
        changed = caption.clone()
        changed[0, place] += 1
        after = joint(model, changed, image)
        assert after[:, : place + 1].equal(before[:, : place + 1])
        assert not after[:, place + 1].equal(before[:, place + 1])
    for cell in range(sequence.image_positions - 1):
        changed = image.clone()
        changed[0, cell] = (changed[0, cell] + 1) % sequence.image_vocabulary
        after, place = joint(model, caption, changed), sequence.text_positions + cell
        assert after[:, : place + 1].equal(before[:, : place + 1])
        assert not after[:, place + 1].equal(before[:, place + 1])


@pytest.mark.parametrize("changes", MODELS, ids=str)
@torch.no_grad()
def test_one_layer_depends_only_on_attended_positions(make_transformer, changes):
    model = make_transformer(depth=1, **changes)
    caption, image = example(model, batch=1)
    before = model(caption, image).image[0]
    (pattern,) = model.patterns.values()
    sees = image_attend_mask(pattern, model.sequence.grid)
    for cell in range(model.sequence.image_positions - 1):
        changed = image.clone()
        changed[0, cell] = (changed[0, cell] + 1) % model.sequence.image_vocabulary
        differs = (model(caption, changed).image[0] != before).any(dim=-1)
        assert differs.equal(sees[:, cell + 1])  # the cell's token is the input of the state after it


@torch.no_grad()
def test_captions_do_not_depend_on_the_batch(make_transformer):
    model = make_transformer()
    caption, image = example(model, batch=5)
    together = model(caption, image)
    for row in range(5):
        alone = model(caption[row : row + 1], image[row : row + 1])
        torch.testing.assert_close(together.text[row], alone.text[0])
        torch.testing.assert_close(together.image[row], alone.image[0])


@torch.no_grad()
def test_learned_pads_matter_only_at_padding_positions(make_transformer):
    model = make_transformer()
    caption, image = example(model, batch=1)
    caption = model.sequence.pad_captions([[1, 2]])  # slots 0 to 2 are taken, the others are pads
    before = joint(model, caption, image)
    for slot in range(model.sequence.text_positions):
        kept = model.embed.pad.weight[slot].clone()
        model.embed.pad.weight[slot] += 1
        same = joint(model, caption, image).equal(before)
        assert same == (slot <= 2)
        model.embed.pad.weight[slot] = kept


@torch.no_grad()
def test_masked_pads_match_a_shorter_caption(make_transformer):
    model, short = make_transformer(pads="masked"), make_transformer(text_positions=3)
    short.load_state_dict(
        {
            name: tensor[:3] if name in ("embed.text_position.weight", "embed.pad.weight") else tensor
            for name, tensor in model.state_dict().items()
        }
    )
    image = example(model, batch=1)[1]
    expected = short(short.sequence.pad_captions([[1, 2]]), image)
    answer = model(model.sequence.pad_captions([[1, 2]]), image)
    torch.testing.assert_close(answer.image, expected.image)
    torch.testing.assert_close(answer.text[:, :3], expected.text)
    model.embed.pad.weight += 1
    assert model(model.sequence.pad_captions([[1, 2]]), image).image.equal(answer.image)


@torch.no_grad()
def test_learned_and_masked_pads_agree_without_padding(make_transformer):
    learned, masked = make_transformer(), make_transformer(pads="masked")
    image = example(learned, batch=1)[1]
    for words, alike in (([1, 2, 3, 4, 5], True), ([1, 2], False)):
        caption = learned.sequence.pad_captions([words])
        assert torch.allclose(learned(caption, image).image, masked(caption, image).image, atol=1e-5) == alike


@torch.no_grad()
def test_separate_softmaxes_change_images_but_not_text(make_transformer):
    joint, separate = make_transformer(), make_transformer(attention_normalisation="separate")
    caption, image = example(joint)
    torch.testing.assert_close(separate(caption, image).text, joint(caption, image).text)
    assert not torch.allclose(separate(caption, image).image, joint(caption, image).image, atol=1e-2)


def test_one_batch_overfits():
    torch.manual_seed(0)
    sizes = TransformerConfig(6, 11, 13, grid=4, width=64, depth=3, heads=2, kernel=3)
    model = Transformer(sizes)
    caption, image = example(model, batch=4)
    targets = model.sequence.text_targets(caption)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        logits = model(caption, image)
        text = F.cross_entropy(logits.text.flatten(0, 1), targets.flatten())
        loss = text / 8 + 7 / 8 * F.cross_entropy(logits.image.flatten(0, 1), image.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    answer = model(caption, image).image
    assert F.cross_entropy(answer.flatten(0, 1), image.flatten()) < 0.05
    assert answer.argmax(-1).equal(image)


def test_untrained_model_has_uniform_probabilities():
    model = Transformer(TransformerConfig(6, 11, 13, grid=4, width=16, depth=2, heads=2))
    caption, image = example(model)
    logits = model(caption, image)
    assert logits.text.shape == (2, 6, 12)
    assert logits.image.shape == (2, 16, 13)
    assert not logits.text.any()
    assert not logits.image.any()


def test_initial_weights_have_the_sparse_transformers_scales():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(256, 500, 500, grid=16, width=256, depth=8, heads=4))
    state = model.state_dict()

    def scale(name: str) -> float:
        return state[name].std().item()

    assert scale("layers.3.attention.branch.qkv.weight") == pytest.approx(0.125 / 16, rel=0.05)
    assert scale("layers.3.attention.branch.out.weight") == pytest.approx(0.125 / 16 / 4, rel=0.05)
    assert scale("layers.3.mlp.branch.expand.weight") == pytest.approx(0.125 / 16, rel=0.05)
    assert scale("layers.3.mlp.branch.out.weight") == pytest.approx(0.125 / 32 / 4, rel=0.05)
    assert scale("embed.text_token.weight") == pytest.approx(0.125 / 16, rel=0.05)
    assert scale("embed.row.weight") == pytest.approx(0.125 / 16 / 2**0.5, rel=0.05)
    assert not any(value.any() for name, value in state.items() if name.endswith("bias"))


def test_paper_model_has_12_billion_parameters():
    begin = time.process_time()
    with torch.device("meta"):
        model = Transformer(TransformerConfig())
    assert time.process_time() - begin < 10
    width = 3968
    layers = 64 * (12 * width**2 + 13 * width)  # weights; biases of 3 + 1 + 4 + 1 widths, two norms of 2
    text = width * (16_385 + 256 + 256) + 16_385 * (width + 1)
    image = width * (8193 + 32 + 32) + 8192 * (width + 1)
    assert sum(p.numel() for p in model.parameters()) == layers + text + image + 2 * width == 12_292_844_929
    assert len(model.layers) == 64


def test_saved_model_gives_the_same_outputs(make_transformer, tmp_path):
    model = make_transformer(patterns=["paper"], activation="gelu")
    model.save(tmp_path, meta={"step": 3})
    loaded = Transformer.load(tmp_path)
    caption, image = example(model)
    assert loaded.config == model.config
    assert not loaded.training
    assert loaded(caption, image).image.equal(model(caption, image).image)


@torch.no_grad()
def test_settings_that_a_checkpoint_lacks_have_their_defaults(make_transformer, tmp_path):
    model = make_transformer()
    model.save(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for name in {name for reading in READINGS for name in reading}:
        del written["model"][name]
    (tmp_path / "config.json").write_text(json.dumps(written))
    caption, image = example(model)
    assert Transformer.load(tmp_path)(caption, image).image.equal(model(caption, image).image)


def test_indivisible_width_raises():
    with pytest.raises(ValueError, match=r"width=16 does not divide into heads=3"):
        Transformer(TransformerConfig(6, 11, 13, grid=4, width=16, depth=1, heads=3))


def test_dropout_acts_on_embeddings_and_branches_in_training_only(make_transformer):
    plain, model = make_transformer(), make_transformer(dropout=0.25)
    caption, image = example(model)
    expected = joint(plain, caption, image)
    assert joint(model, caption, image).equal(expected)
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda _, x, y, name=name: seen.update({name: y / x[0]}))
    torch.manual_seed(0)
    assert not joint(model.train(), caption, image).allclose(expected)
    assert set(seen) == {
        "dropout",
        *(f"layers.{n}.{branch}.dropout" for n in (0, 1) for branch in ("attention", "mlp")),
    }
    for factors in seen.values():  # 704 each: dropped, or divided by the share that is kept
        assert factors.isclose(torch.tensor(0.0)).logical_or(factors.isclose(torch.tensor(4 / 3))).all()
        assert factors.mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_dropout_outside_its_range_raises(dropout):
    with pytest.raises(ValueError, match=f"dropout={dropout} must be at least 0 and below 1"):
        TransformerConfig(dropout=dropout)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"mlp": "moe"}, "unknown mlp 'moe'; choose one of plain, swiglu"),
        ({"mlp": "swiglu", "activation": "relu"}, "unknown activation 'relu'; choose one of quick_gelu, gelu"),
        ({"kernel": 2, "patterns": ["dense"]}, "kernel=2 must be odd"),
        *(
            ({"initial_scale": scale}, f"initial_scale={scale} must be a finite number, at least 0")
            for scale in (-1, float("inf"), float("nan"))
        ),
    ],
    ids=str,
)
def test_settings_are_checked_even_if_no_layer_uses_them(changes, problem):
    with pytest.raises(ValueError, match=problem):
        TransformerConfig(**changes)
