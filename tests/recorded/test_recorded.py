"""Training, drawing and measuring do what they did: to the bit where the processor computes the same bits.

Elsewhere sums are taken in another order (with AVX2 and with SSE in place of AVX512 losses were 5e-7 apart, and one of
67 metrics was another). Then losses, validation and metrics stay within a thousandth, shares of captions within two
captions of eight, and three quarters of the tokens are the same: one that falls otherwise changes those after it.
"""

import json

import pytest
from recording import FILE, STEPS, record

from dalle.stages import STAGES

RECORDED = json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def now():
    return record()


@pytest.fixture(scope="module")
def same_bits(now) -> bool:
    return now["processor"] == RECORDED["processor"]


@pytest.mark.parametrize("stage", STAGES)
def test_losses_match_recording(now, same_bits, stage):
    found, expected = now["losses"][stage], RECORDED["losses"][stage]
    assert len(found) == STEPS
    assert found == (expected if same_bits else pytest.approx(expected, rel=1e-3))


@pytest.mark.parametrize("stage", STAGES)
def test_validation_matches_recording(now, same_bits, stage):
    found, expected = now["validation"][stage], RECORDED["validation"][stage]
    assert found == (expected if same_bits else pytest.approx(expected, rel=1e-3, abs=1e-3))


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoint_tensors_match_recording(now, stage):
    assert now["tensors"][stage] == RECORDED["tensors"][stage]


@pytest.mark.parametrize("kind", ["tokens", "guided_tokens"])
def test_tokens_match_recording(now, same_bits, kind):
    found, expected = now[kind], RECORDED[kind]
    if same_bits:
        assert found == expected
    pairs = [pair for rows in zip(found, expected, strict=True) for pair in zip(*rows, strict=True)]
    assert sum(one == other for one, other in pairs) >= 0.75 * len(pairs)


def test_metrics_match_recording(now, same_bits):
    found, expected = now["metrics"], RECORDED["metrics"]
    if same_bits:
        assert found == expected
    shares = {name for name in expected if name.startswith(("judge_", "retrieval_"))}
    assert {name: found[name] for name in shares} == pytest.approx({name: expected[name] for name in shares}, abs=0.26)
    others = expected.keys() - shares
    assert {name: found[name] for name in others} == pytest.approx(
        {name: expected[name] for name in others}, 1e-3, 1e-3
    )
