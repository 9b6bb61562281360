"""The watchdog names the phase in which a run stalls, and the ranks that lag; it stops nothing."""

import time

import pytest
from line_stage import LineConfig, LineStage, fit

from dalle import distributed
from dalle.training.monitor import stall_watchdog
from dalle.training.monitor.stall_watchdog import (
    COMPUTING,
    LOADING,
    SAVING,
    WAITING,
    Position,
    StallWatchdog,
    lagging,
)

SHORT = 0.3 / 60  # minutes
QUIET = {"steps": 4, "validate_every": 0, "preview_every": 0, "save_every": 0}


class Slow(LineStage):
    """A stage that is slow at update 3, or when it saves."""

    def __init__(self, config, where, seconds=1.5):
        super().__init__(config)
        self.where, self.seconds = where, seconds

    def batches(self, start):
        for batch in super().batches(start):
            time.sleep(self.seconds * (self.where == LOADING and batch[0] == 2))
            yield batch

    def loss(self, model, batch, step, generator):
        time.sleep(self.seconds * (self.where == COMPUTING and step == 2))
        return super().loss(model, batch, step, generator)

    def save(self, folder, model, meta):
        time.sleep(self.seconds * (self.where == SAVING))
        super().save(folder, model, meta)


@pytest.mark.parametrize(("where", "step"), [(LOADING, 2), (COMPUTING, 2), (SAVING, 4)])
def test_a_stall_names_the_phase_and_training_goes_on(tmp_path, capsys, where, step):
    config = LineConfig(stall_minutes=SHORT, **QUIET)
    fit(tmp_path, config, Slow(config, where))
    lines = [line for line in capsys.readouterr().err.splitlines() if "no update has finished" in line]
    named = [line for line in lines if f"{where} after update {step}; training is not stopped" in line]
    assert len(named) == 1, lines  # on a busy machine, another phase may also take longer than SHORT
    assert (tmp_path / "state" / "00000004").is_dir()


@pytest.mark.parametrize("minutes", [0.0, 10.0])
def test_nothing_is_said_without_a_stall(tmp_path, capsys, minutes):
    config = LineConfig(stall_minutes=minutes, **QUIET)
    fit(tmp_path, config, Slow(config, LOADING, seconds=0.6))  # twice SHORT
    assert "no update" not in capsys.readouterr().err


def test_ranks_report_their_positions_and_the_first_names_those_behind(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(stall_watchdog, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)
    watchdogs = [StallWatchdog(SHORT, tmp_path, 7, said.append) for _ in range(2)]
    for rank in (1, 0):  # rank 2 hangs without writing anything
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        watchdogs[rank].begin(COMPUTING if rank == 0 else LOADING)
        watchdogs[rank]._write_position()
    assert watchdogs[0]._describe(watchdogs[0].position) == (
        "no update has finished for 0.005 minutes: forward/backward after update 7; "
        "behind: rank 1, loading data after update 7; ahead: forward/backward after update 7; "
        "no answer from rank 2; training is not stopped"
    )


def test_positions_that_a_killed_run_left_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(stall_watchdog, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    killed, resumed = ([StallWatchdog(10.0, tmp_path, step, print) for _ in range(2)] for step in (7, 3))
    for rank in (1, 0):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        killed[rank].begin(LOADING)
        killed[rank]._write_position()
        resumed[rank].start()
    resumed[0]._write_position()  # rank 1 hangs
    found = resumed[0]._positions(resumed[0].position)
    for watchdog in resumed:
        watchdog.stop()
    assert found == {0: Position(3, WAITING)}


def test_a_stall_is_reported_though_no_position_can_be_written_or_read(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(stall_watchdog, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)
    watchdog = StallWatchdog(SHORT, tmp_path, 7, said.append)
    watchdog.folder.write_text("a file where the folder should be")
    watchdog._write_position()
    assert "the position of rank 0 could not be written" in said[0]
    text = "no update has finished for 0.005 minutes: waiting for the other ranks after update 7; all ranks that answer"
    assert watchdog._describe(watchdog.position).startswith(f"{text} are there (rank 0); no answer from ranks 1, 2")
    watchdog._delete_position()
    watchdog.folder.unlink()
    watchdog.folder.mkdir()
    watchdog._file_of(1).touch()  # without its content after a power failure
    assert watchdog._describe(watchdog.position).startswith(f"{text} are there (rank 0); no answer from ranks 1, 2")


def test_ranks_behind_are_those_with_fewer_updates_or_in_an_earlier_phase():
    ahead = Position(12, COMPUTING)
    assert lagging({0: ahead, 1: Position(12, LOADING), 2: ahead}).startswith("behind: rank 1, loading data after")
    assert lagging({0: Position(12, WAITING), 1: Position(11, COMPUTING), 2: Position(12, WAITING)}) == (
        "behind: rank 1, forward/backward after update 11; ahead: waiting for the other ranks after update 12"
    )
    assert lagging({0: ahead, 1: ahead}) == "all ranks that answer are there (ranks 0, 1)"
