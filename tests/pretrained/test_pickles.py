"""Files of torch.save are read as data: what comes out is exact, and whatever else they ask for is refused."""

import io
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from dalle.checkpoint import CheckpointError
from dalle.pretrained.pickles import Record, read_saved

CONTAINERS = pytest.mark.parametrize("archive", [True, False], ids=["zip archive", "row of pickles"])


def is_torchs(name):
    return name.startswith("torch.nn.modules.")


def save(content, path, archive=True):
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    return path


def network():
    torch.manual_seed(0)
    inner = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=nn.Conv2d(4, 2, 1, bias=False)))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.25), inner)


def same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].equal(tensor), name


# --- what comes out --------------------------------------------------------------------------------------------


@CONTAINERS
def test_a_module_comes_out_as_its_state_dict(tmp_path, archive):
    module = network()
    saved = read_saved(save(module, tmp_path / "file", archive), is_torchs)
    same(saved.tensors, module.state_dict())
    assert saved.numbers["1.eps"] == 0.25


@CONTAINERS
def test_a_state_dict_comes_out_as_it_is(tmp_path, archive):
    state = network().state_dict()
    same(read_saved(save(state, tmp_path / "file", archive), is_torchs).tensors, state)


@CONTAINERS
def test_views_share_what_they_viewed(tmp_path, archive):
    whole = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    state = {"whole": whole, "part": whole[1, :, 1:3].T, "last": whole[1, 2, 3], "half": whole.half()}
    found = read_saved(save(state, tmp_path / "file", archive), is_torchs).tensors
    same(found, state)
    found["whole"][1, 2, 3] = -1
    assert found["last"] == -1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32], ids=str)
def test_other_kinds_of_numbers_are_read(tmp_path, dtype):
    state = {"x": torch.tensor([[1, -2], [3, 0]]).to(dtype)}
    same(read_saved(save(state, tmp_path / "file"), is_torchs).tensors, state)


# --- what is not run -------------------------------------------------------------------------------------------


class Calls:
    """Pickled, it asks for `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


HOSTILE = {  # by their names in a pickle of protocol 2, which are Python 2's
    "posix.system": lambda mark: Calls(os.system, f"touch {mark}"),
    "commands.Popen": lambda mark: Calls(subprocess.Popen, ["touch", str(mark)]),
    "__builtin__.eval": lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"),
    "__builtin__.getattr": lambda mark: Calls(getattr, Calls(__import__, "os"), "system"),
    "torch.serialization.load": lambda mark: Calls(torch.load, str(mark)),
}


@pytest.mark.parametrize("place", ["alone", "in a module", "in a state dict"])
@pytest.mark.parametrize("name", HOSTILE)
@CONTAINERS
def test_a_hostile_file_is_refused_by_the_name_it_asks_for_and_not_run(tmp_path, archive, name, place):
    mark = tmp_path / "mark"
    content = HOSTILE[name](mark)
    if place == "in a module":
        module = network()
        module.extra = content
        content = module
    elif place == "in a state dict":
        content = {**network().state_dict(), "extra": content}
    path = save(content, tmp_path / "file", archive)
    with pytest.raises(CheckpointError, match=f"file is refused, and nothing in it was run: it asks for {name}, "):
        read_saved(path, is_torchs)
    assert not mark.exists()


def test_the_hostile_files_of_these_tests_do_harm_when_they_are_run(tmp_path):
    mark = tmp_path / "mark"
    path = save(HOSTILE["posix.system"](mark), tmp_path / "file")
    torch.load(path, weights_only=False)
    assert mark.exists()


@CONTAINERS
def test_a_class_that_is_not_expected_is_named(tmp_path, archive):
    path = save(network(), tmp_path / "file", archive)
    with pytest.raises(CheckpointError, match=r"asks for torch\.nn\.modules\.batchnorm\.BatchNorm2d, which has no"):
        read_saved(path, lambda name: is_torchs(name) and "batchnorm" not in name)


def test_a_file_cannot_change_what_later_files_mean(tmp_path):
    """A state may be set on any object, so also on what a name stands for."""
    expected, before = b"ctorch.nn.modules.linear\nIdentity\n", dict(vars(Record))
    for state in (b"}U\x01aI1\ns", b"N}U\x0c__setstate__ctorch.nn.modules.linear\nIdentity\ns\x86"):
        path = tmp_path / "file"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + expected + state + b"b.")
        with pytest.raises(CheckpointError, match="damaged"):
            read_saved(path, is_torchs)
    assert dict(vars(Record)) == before


# --- what is no file of torch.save, or no longer one -----------------------------------------------------------


@CONTAINERS
def test_a_file_cut_short_anywhere_is_said_to_be_damaged(tmp_path, archive):
    whole = save(network(), tmp_path / "whole", archive).read_bytes()
    path = tmp_path / "cut"
    for length in range(4, len(whole) - 1, len(whole) // 50):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut is truncated or damaged .*: download it again"):
            read_saved(path, is_torchs)


def test_an_altered_number_in_an_archive_is_noticed(tmp_path):
    path = save({"x": torch.full((64,), 2.5)}, tmp_path / "file")
    path.write_bytes(path.read_bytes().replace(torch.tensor(2.5).numpy().tobytes(), b"\0\0\0\0", 1))
    with pytest.raises(CheckpointError, match="CRC"):
        read_saved(path, is_torchs)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"), [(0, (7,), (1,)), (1, (6,), (1,)), (0, (2, 2), (5, 1)), (5, (3,), (-1,))]
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path, offset, shape, strides):
    storage = torch.arange(6.0)._typed_storage()
    lie = Calls(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, OrderedDict())
    with pytest.raises(CheckpointError, match="reaches beyond its storage of 6 numbers"):
        read_saved(save({"x": lie}, tmp_path / "file"), is_torchs)


def test_a_row_of_pickles_whose_storage_has_another_length_is_refused(tmp_path):
    path = save({"x": torch.arange(6.0)}, tmp_path / "file", archive=False)
    lengths = [number.to_bytes(8, "little") for number in (6, 5)]
    path.write_bytes(path.read_bytes().replace(*lengths))
    with pytest.raises(CheckpointError, match="has 5 numbers where 6 were announced"):
        read_saved(path, is_torchs)


def test_a_storage_that_is_shorter_than_announced_is_refused(tmp_path):
    whole, path = save({"x": torch.arange(6.0)}, tmp_path / "whole"), tmp_path / "file"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name)[: 20 if name.endswith("/data/0") else None])
    with pytest.raises(CheckpointError, match="storage 0 has 20 of 24 bytes"):
        read_saved(path, is_torchs)


def zipped(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "file is no file of torch.save: it is empty"),
        (b"<!DOCTYPE html>", r"file is no file of torch.save: it begins with b'<!DO'"),
        (pickle.dumps({"x": 1}), "file is a pickle, but not one of torch.save"),
        (zipped("photo.png"), "file is a zip archive, but not one of torch.save: it has no data.pkl"),
    ],
)
def test_other_files_are_told_apart(tmp_path, content, sentence):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=sentence):
        read_saved(tmp_path / "file", is_torchs)


def test_what_is_not_there_or_no_file_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="there is no file .*nowhere"):
        read_saved(tmp_path / "nowhere", is_torchs)
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_saved(tmp_path, is_torchs)
