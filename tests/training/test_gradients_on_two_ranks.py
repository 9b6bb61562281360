"""Gradients of two ranks, averaged or compressed: training as on one rank, restarts and non-finite updates."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from line_stage import EXACT, BlockStage, fit
from saved_state import load_state

from dalle import distributed
from dalle.training.compression import CompressionConfig
from dalle.training.float_formats import FLOAT_1_6_9
from dalle.training.optimizer import OptimizerConfig
from dalle.training.schedules import Schedule
from dalle.training.state import TrainState

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import torchrun  # noqa: E402 (found on the path set above)

BLOCKS = replace(
    EXACT,
    optimizer=OptimizerConfig(Schedule(start=3e-3), eps=1e-3),
    log_every=1,
    validate_every=0,
    preview_every=0,
    save_every=10,
)
COMPRESSED = replace(BLOCKS, compression=CompressionConfig(rank=2, blocks=1))
RUNS = {
    "averaged": BLOCKS,
    "compressed": COMPRESSED,
    "enough": replace(BLOCKS, compression=CompressionConfig(rank=8, blocks=1)),  # gradients of 8 points have no more
    "bfloat16 weights": replace(BLOCKS, precision="auto", parameters="bfloat16"),
    "compressed in 16 bits": replace(BLOCKS, compression=CompressionConfig(rank=2, blocks=1, precision="paper16")),
    "spoilt averaged": replace(BLOCKS, precision="float16", gradient_scaling="resblock", steps=6),
    "spoilt compressed": replace(COMPRESSED, precision="float16", gradient_scaling="resblock", steps=6),
    "spoilt compressed in 16 bits": replace(
        BLOCKS,
        compression=CompressionConfig(rank=2, blocks=1, precision="paper16"),
        precision="float16",
        gradient_scaling="resblock",
        steps=6,
    ),
    "spoilt under one scale": replace(COMPRESSED, precision="float16", steps=6),
}

# compressed, with each kind of state that a run resumes from
STATES = {
    "compressed": COMPRESSED,
    "warm": replace(BLOCKS, compression=CompressionConfig(rank=2, blocks=1, basis="warm")),
    "in 16 bits": RUNS["compressed in 16 bits"],
}

RANK = """
import json, sys
from pathlib import Path
from dalle import distributed
from test_gradients_on_two_ranks import flat, runs_of_blocks

distributed.init_process_group("cpu")
folder = Path(sys.argv[1])
runs = {name: flat(stage).tolist() for name, stage in runs_of_blocks(folder).items()}
(folder / f"rank{distributed.get_rank()}.json").write_text(json.dumps(runs))
distributed.destroy_process_group()
"""


class Spoilt(BlockStage):
    """Stage with an infinite loss in the fourth update, on the last rank only."""

    def loss(self, model, batch, step, generator):
        loss, metrics = super().loss(model, batch, step, generator)
        bad = step == 3 and distributed.get_rank() == distributed.get_world_size() - 1
        return (loss * torch.inf if bad else loss), metrics


def runs_of_blocks(folder):
    """Run everything in RUNS, and the compressed ones of STATES without saving, saved often, and interrupted."""
    kinds = {name: Spoilt if name.startswith("spoilt") else BlockStage for name in RUNS}
    stages = {name: fit(folder / name, config, kinds[name](config)) for name, config in RUNS.items()}
    for name, config in STATES.items():
        unsaved, often = replace(config, save_every=0), replace(config, save_every=3, async_save=True)
        first = replace(unsaved, steps=7)
        fit(folder / f"{name} interrupted", first, BlockStage(first))
        for kind, variant in (("unsaved", unsaved), ("saved", often), ("interrupted", unsaved)):
            stages[f"{name} {kind}"] = fit(folder / f"{name} {kind}", variant, BlockStage(variant))
    return stages


def flat(stage):
    return torch.cat([parameter.detach().flatten() for parameter in stage.model.parameters()])


def lines(folder):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if line["split"] == "train"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Return the folder of all runs, and the final weights of each run on either rank."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "rank.py").write_text(RANK)
    torchrun(2, folder / "rank.py", folder, search=(Path(__file__).parent,))
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", [*RUNS, *(f"{name} interrupted" for name in STATES)])
def test_ranks_keep_the_same_weights(two_ranks, name):
    first, second = (runs[name] for runs in two_ranks[1])
    assert first == second
    assert torch.tensor(first).isfinite().all()


@pytest.mark.parametrize("name", ["averaged", "compressed"])
def test_two_ranks_train_blocks_like_one_with_and_without_compression(two_ranks, tmp_path, name):
    alone = fit(tmp_path, RUNS[name], BlockStage(RUNS[name]))
    torch.testing.assert_close(torch.tensor(two_ranks[1][0][name]), flat(alone), atol=1e-4, rtol=1e-3)


def test_compressed_training_converges_like_averaged_training(two_ranks):
    folder, (runs, _) = two_ranks
    averaged, compressed = lines(folder / "averaged"), lines(folder / "compressed")
    narrow, half = lines(folder / "compressed in 16 bits"), lines(folder / "bfloat16 weights")
    for losses in (averaged, compressed, narrow, half):
        assert losses[-1]["loss"] < losses[0]["loss"] / 5
    assert compressed[0]["gradient_norm"] < averaged[0]["gradient_norm"]  # some of it is kept for later
    assert runs["averaged"] != runs["compressed"]


def test_compression_of_sufficient_rank_matches_averaging(two_ranks):
    first = two_ranks[1][0]
    torch.testing.assert_close(torch.tensor(first["enough"]), torch.tensor(first["averaged"]), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["saved", "interrupted"])
@pytest.mark.parametrize("name", STATES)
def test_compressed_run_of_two_ranks_resumes_bitwise(two_ranks, name, kind):
    folder, (runs, _) = two_ranks
    assert runs[f"{name} {kind}"] == runs[f"{name} unsaved"]
    (_, other, _), (_, once, _) = (load_state(folder / f"{name} {state}") for state in (kind, "unsaved"))
    assert other.keys() == once.keys() and all(tensor.equal(once[key]) for key, tensor in other.items())
    losses = [[line["loss"] for line in lines(folder / f"{name} {state}")] for state in (kind, "unsaved")]
    assert losses[0] == losses[1] and len(losses[0]) == 20


@pytest.mark.parametrize("name", STATES)
def test_compressed_run_of_two_ranks_resumes_on_one(two_ranks, name):
    folder = two_ranks[0] / f"{name} interrupted"
    _, tensors, _ = load_state(folder) or pytest.fail("no state")
    state = TrainState(BlockStage(STATES[name]).model, STATES[name], torch.device("cpu"))
    state.restore(folder)
    assert "; the sum of 2 saved error buffers is divided among 1" in state.reducer.message
    for matrix in state.reducer._matrices:
        first, second = (tensors[f"reducer.error_{rank}.{matrix.name}"] for rank in range(2))
        assert not first.equal(second)  # else this test could not see that ranks exchange them
        if name == "in 16 bits":
            first, second = FLOAT_1_6_9.decode(first), FLOAT_1_6_9.decode(second)
            assert matrix.error.equal(FLOAT_1_6_9.round(first + second))
        else:
            assert matrix.error.equal(first + second)


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("spoilt")])
def test_nonfinite_update_on_one_rank_is_skipped_by_all(two_ranks, name):
    skipped = [line["skipped"] for line in lines(two_ranks[0] / name)]
    assert skipped[3] == skipped[2] + 1
    assert skipped[5] == skipped[3]


def test_gradient_scale_is_the_same_on_all_ranks(two_ranks):
    written = lines(two_ranks[0] / "spoilt under one scale")
    assert written[4]["lowest_scale"] == pytest.approx(2.0 ** (16 - written[3]["skipped"]), rel=0.01)  # a mean of both
