"""Restricted unpickling: tensors in files of torch.save are read exactly, and no code in them is executed."""

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
from dalle.pretrained.restricted_unpickler import OpaqueObject, read_torch_file

FILE_FORMATS = pytest.mark.parametrize("archive", [True, False], ids=["zip archive", "legacy format"])


def is_torch_class(name):
    return name.startswith("torch.nn.modules.")


def save(content, path, archive=True):
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    return path


def network():
    torch.manual_seed(0)
    inner = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=nn.Conv2d(4, 2, 1, bias=False)))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.25), inner)


def assert_same_tensors(actual, expected):
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert actual[name].equal(tensor), name


# --- tensors and numbers -----------------------------------------------------------------------------------


@FILE_FORMATS
def test_a_module_is_read_as_its_state_dict(tmp_path, archive):
    module = network()
    saved = read_torch_file(save(module, tmp_path / "file", archive), is_torch_class)
    assert_same_tensors(saved.tensors, module.state_dict())
    assert saved.numbers["1.eps"] == 0.25


@FILE_FORMATS
def test_a_state_dict_is_read_unchanged(tmp_path, archive):
    state = network().state_dict()
    assert_same_tensors(read_torch_file(save(state, tmp_path / "file", archive), is_torch_class).tensors, state)


@FILE_FORMATS
def test_views_share_their_storage(tmp_path, archive):
    whole = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    state = {"whole": whole, "part": whole[1, :, 1:3].T, "last": whole[1, 2, 3], "half": whole.half()}
    tensors = read_torch_file(save(state, tmp_path / "file", archive), is_torch_class).tensors
    assert_same_tensors(tensors, state)
    tensors["whole"][1, 2, 3] = -1
    assert tensors["last"] == -1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32], ids=str)
def test_other_dtypes_are_read(tmp_path, dtype):
    state = {"x": torch.tensor([[1, -2], [3, 0]]).to(dtype)}
    assert_same_tensors(read_torch_file(save(state, tmp_path / "file"), is_torch_class).tensors, state)


# --- code is not executed ----------------------------------------------------------------------------------


class Calls:
    """Object whose pickle calls `function(*arguments)` when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


MALICIOUS = {  # by their names in a pickle of protocol 2, which are Python 2's
    "posix.system": lambda mark: Calls(os.system, f"touch {mark}"),
    "commands.Popen": lambda mark: Calls(subprocess.Popen, ["touch", str(mark)]),
    "__builtin__.eval": lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"),
    "__builtin__.getattr": lambda mark: Calls(getattr, Calls(__import__, "os"), "system"),
    "torch.serialization.load": lambda mark: Calls(torch.load, str(mark)),
}


@pytest.mark.parametrize("place", ["alone", "in a module", "in a state dict"])
@pytest.mark.parametrize("name", MALICIOUS)
@FILE_FORMATS
def test_a_malicious_file_is_rejected_without_executing_it(tmp_path, archive, name, place):
    mark = tmp_path / "mark"
    content = MALICIOUS[name](mark)
    if place == "in a module":
        module = network()
        module.extra = content
        content = module
    elif place == "in a state dict":
        content = {**network().state_dict(), "extra": content}
    path = save(content, tmp_path / "file", archive)
    with pytest.raises(
        CheckpointError, match=f"file was rejected before any of its code was run: it refers to {name}, "
    ):
        read_torch_file(path, is_torch_class)
    assert not mark.exists()


def test_the_malicious_files_of_these_tests_execute_code_when_unpickled(tmp_path):
    mark = tmp_path / "mark"
    path = save(MALICIOUS["posix.system"](mark), tmp_path / "file")
    torch.load(path, weights_only=False)
    assert mark.exists()


@FILE_FORMATS
def test_a_class_that_is_not_allowed_is_named(tmp_path, archive):
    path = save(network(), tmp_path / "file", archive)
    with pytest.raises(CheckpointError, match=r"refers to torch\.nn\.modules\.batchnorm\.BatchNorm2d, which is not"):
        read_torch_file(path, lambda name: is_torch_class(name) and "batchnorm" not in name)


def test_a_file_cannot_change_how_later_files_are_read(tmp_path):
    """A pickle can set the state of any object, so also that of the class which replaces allowed classes."""
    expected, before = b"ctorch.nn.modules.linear\nIdentity\n", dict(vars(OpaqueObject))
    for state in (b"}U\x01aI1\ns", b"N}U\x0c__setstate__ctorch.nn.modules.linear\nIdentity\ns\x86"):
        path = tmp_path / "file"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + expected + state + b"b.")
        with pytest.raises(CheckpointError, match="damaged"):
            read_torch_file(path, is_torch_class)
    assert dict(vars(OpaqueObject)) == before


# --- damaged and other files -------------------------------------------------------------------------------


@FILE_FORMATS
def test_a_truncated_file_is_reported_as_damaged(tmp_path, archive):
    whole = save(network(), tmp_path / "whole", archive).read_bytes()
    path = tmp_path / "cut"
    for length in range(4, len(whole) - 1, len(whole) // 50):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut is truncated or damaged .*: download it again"):
            read_torch_file(path, is_torch_class)


def test_a_modified_number_in_a_zip_archive_is_detected(tmp_path):
    path = save({"x": torch.full((64,), 2.5)}, tmp_path / "file")
    path.write_bytes(path.read_bytes().replace(torch.tensor(2.5).numpy().tobytes(), b"\0\0\0\0", 1))
    with pytest.raises(CheckpointError, match="CRC"):
        read_torch_file(path, is_torch_class)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (7,), (1,)), (1, (6,), (1,)), (0, (2, 2), (5, 1)), (5, (3,), (-1,)), (0, (2**40,), (0,))],
)
def test_a_tensor_that_exceeds_its_storage_is_rejected(tmp_path, offset, shape, strides):
    storage = torch.arange(6.0)._typed_storage()
    tensor = Calls(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, OrderedDict())
    with pytest.raises(CheckpointError, match="exceeds its storage of 6 numbers"):
        read_torch_file(save({"x": tensor}, tmp_path / "file"), is_torch_class)


def test_a_legacy_file_whose_storage_has_another_length_is_rejected(tmp_path):
    path = save({"x": torch.arange(6.0)}, tmp_path / "file", archive=False)
    lengths = [number.to_bytes(8, "little") for number in (6, 5)]
    path.write_bytes(path.read_bytes().replace(*lengths))
    with pytest.raises(CheckpointError, match="has 5 numbers, but its descriptor says 6"):
        read_torch_file(path, is_torch_class)


def test_a_storage_shorter_than_its_descriptor_is_rejected(tmp_path):
    whole, path = save({"x": torch.arange(6.0)}, tmp_path / "whole"), tmp_path / "file"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name)[: 20 if name.endswith("/data/0") else None])
    with pytest.raises(CheckpointError, match="storage 0 has 20 of 24 bytes"):
        read_torch_file(path, is_torch_class)


def zipped(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "file was not written by torch.save: it is empty"),
        (b"<!DOCTYPE html>", r"file was not written by torch.save: it begins with b'<!DO'"),
        (pickle.dumps({"x": 1}), "file is a pickle, but was not written by torch.save"),
        (zipped("photo.png"), "file is a zip archive, but was not written by torch.save: it has no data.pkl"),
    ],
)
def test_other_kinds_of_files_are_named(tmp_path, content, sentence):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=sentence):
        read_torch_file(tmp_path / "file", is_torch_class)


def test_a_missing_file_and_a_folder_are_reported(tmp_path):
    with pytest.raises(CheckpointError, match="there is no file .*nowhere"):
        read_torch_file(tmp_path / "nowhere", is_torch_class)
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_torch_file(tmp_path, is_torch_class)
