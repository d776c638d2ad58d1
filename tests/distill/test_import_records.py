"""A pickle builds tensors and plain containers, and runs nothing: each forbidden name is named."""

import codecs
import io
import os
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from original_edm import Persistent, dump
from torch import nn

from distill.importers.edm import import_edm
from distill.importers.failure import ImportFailure
from distill.importers.records import ALLOWED, Record, read_records, weights_of


class Call:
    """Whoever unpickles this calls `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def touch(marker: Path) -> Call:
    return Call(os.system, f"touch {marker}")


def written(path: Path, data: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(data, protocol))
    return path


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that is there once something was run."""
    return tmp_path / "it-was-run"


def test_the_attack_works_where_nothing_is_refused(marker: Path) -> None:
    pickle.loads(pickle.dumps(touch(marker)))
    assert marker.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_would_run_a_command_is_refused_by_name(
    tmp_path: Path, marker: Path, protocol: int
) -> None:
    path = written(tmp_path / "evil.pkl", {"ema": touch(marker)}, protocol)
    with pytest.raises(ImportFailure, match=rf"^{path} is refused: it names {os.name}\.system,"):
        read_records(path)
    assert not marker.exists()


def test_calls_by_any_other_name_are_refused_too(tmp_path: Path, marker: Path) -> None:
    import functools
    import importlib
    import subprocess

    calls = {
        "builtins.eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "builtins.exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "builtins.getattr": Call(getattr, "", "format"),
        "io.open": Call(open, str(marker), "w"),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "importlib.import_module": Call(importlib.import_module, "antigravity"),
        "functools.partial": functools.partial(print, 1),
        "torch.serialization.load": Call(torch.load, str(marker)),
        "pathlib.PosixPath": marker,
    }
    for name, call in calls.items():
        with pytest.raises(ImportFailure, match=f"it names {name}, which is not among the"):
            read_records(written(tmp_path / "evil.pkl", [call]))
    assert not marker.exists()


def test_a_call_deep_inside_is_refused(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Persistent()
    holder.child = Persistent()
    holder.child.payload = OrderedDict(a=[{"b": (1, touch(marker))}])
    path = dump({"ema": holder}, tmp_path / "evil.pkl", monkeypatch)
    with pytest.raises(ImportFailure, match=r"it names posix\.system"):
        read_records(path)
    assert not marker.exists()


def test_a_call_inside_a_tensors_memory_is_refused(tmp_path: Path, marker: Path) -> None:
    inner = io.BytesIO()
    torch.save(touch(marker), inner, _use_new_zipfile_serialization=False)
    call = Call(torch.storage._load_from_bytes, inner.getvalue())
    with pytest.raises(ImportFailure, match="a tensor's memory cannot be read"):
        read_records(written(tmp_path / "evil.pkl", call))
    assert not marker.exists()


def test_a_state_dict_that_would_run_a_command_is_refused_by_name(
    tmp_path: Path, marker: Path
) -> None:
    path = tmp_path / "edm_imagenet64_ema.pt"
    torch.save({"weight": touch(marker)}, path)
    with pytest.raises(ImportFailure, match=rf"^{path} is refused: .*posix\.system"):
        import_edm(path, tmp_path / "out")
    path.write_bytes(pickle.dumps(touch(marker)))
    with pytest.raises(ImportFailure, match=rf"^{path} is refused: "):
        import_edm(path, tmp_path / "out")
    assert not marker.exists()


def test_the_source_in_a_persistent_object_remains_text(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Persistent, "SOURCE", f"open({str(marker)!r}, 'w').close()")
    holder = Persistent()
    holder.register_buffer("table", torch.arange(3))
    record = read_records(dump(holder, tmp_path / "holder.pkl", monkeypatch))
    assert isinstance(record, Record)
    assert record.kind == "Persistent"
    assert weights_of(record)["table"].tolist() == [0, 1, 2]
    assert not marker.exists()


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def by_hand(module: str, name: str, *, state: bytes = b"") -> bytes:
    """A pickle of protocol 4 that looks a name up, and sets `state` on what is found."""
    text = b"".join(pickle.SHORT_BINUNICODE + bytes([len(t)]) + t.encode() for t in (module, name))
    return pickle.PROTO + b"\4" + text + pickle.STACK_GLOBAL + state + pickle.STOP


def test_a_path_through_a_harmless_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(by_hand("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__"))
    with pytest.raises(ImportFailure, match=r"_reconstruct_persistent_obj\.__globals__, which is"):
        read_records(path)


@pytest.mark.parametrize(("module", "name"), list(ALLOWED))
def test_nothing_that_builds_can_be_changed_by_a_pickle(
    tmp_path: Path, module: str, name: str
) -> None:
    before = {key: dict(getattr(found, "__dict__", {})) for key, found in ALLOWED.items()}
    change = pickle.EMPTY_DICT + pickle.SHORT_BINUNICODE + b"\5build" + pickle.NONE + pickle.SETITEM
    attributes = pickle.NONE + change + pickle.TUPLE2
    for state in (change, attributes):
        path = tmp_path / "evil.pkl"
        path.write_bytes(by_hand(module, name, state=state + pickle.BUILD))
        pickletools.dis(path.read_bytes(), io.StringIO())  # it is a well-formed pickle
        with pytest.raises(ImportFailure):
            read_records(path)
    after = {key: dict(getattr(found, "__dict__", {})) for key, found in ALLOWED.items()}
    assert after == before


def test_tensors_containers_and_numbers_are_what_they_were(tmp_path: Path) -> None:
    shared = torch.arange(12.0)
    data = {
        "view": shared.view(3, 4).T[1:],
        "half": torch.ones(2, dtype=torch.float16),
        "empty": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.tensor([1.5])),
        "plain": [1, 2.5, "text", None, True, {1, 2}, (3,), OrderedDict(a=1)],
        "numbers": [np.float64(0.25), np.int64(-3), np.float32(0.5), np.bool_(True)],
    }
    for protocol in (2, 4):
        found = read_records(written(tmp_path / "data.pkl", data, protocol))
        for name in ("view", "half", "empty", "parameter"):
            assert torch.equal(found[name], data[name].detach())
        assert found["plain"] == data["plain"]
        assert found["numbers"] == [0.25, -3, 0.5, True]


def test_numbers_of_an_older_numpy_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pkl"
    plain = pickle.dumps(np.float64(0.25), 2)
    path.write_bytes(plain.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_records(path) == 0.25


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, (3, 4), (4, 2)), "of shape .3, 4. reaches beyond its 12 numbers"),
        ((9, (4,), (1,)), "of shape .4. reaches beyond its 12 numbers"),
        ((-1, (4,), (1,)), "shape or place is .-1,., not whole numbers"),
        ((0, (2.0,), (1,)), "shape or place is .2.0,., not whole numbers"),
        ((0, (2, 2), (1,)), "is not a pickle that can be read"),
    ],
)
def test_a_tensor_stays_inside_its_memory(
    tmp_path: Path, arguments: tuple[object, ...], sentence: str
) -> None:
    memory = torch.arange(12.0).__reduce_ex__(2)[1][0]
    call = Call(torch._utils._rebuild_tensor_v2, memory, *arguments, False, OrderedDict())
    with pytest.raises(ImportFailure, match=sentence):
        read_records(written(tmp_path / "odd.pkl", call))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (Call(torch._utils._rebuild_tensor_v2, 1, 0, (1,), (1,)), "a tensor has no memory"),
        (Call(torch._utils._rebuild_parameter, 1, True, None), "a parameter is int, not a tensor"),
        (Call(torch.storage._load_from_bytes, "x"), "a tensor's memory is str, not bytes"),
        (Call(torch.storage._load_from_bytes, saved(3)), "a tensor's memory holds int"),
        (Call(np.dtype, "O"), "a number's type is 'O'; allowed are f2"),
        (Call(codecs.encode, "x", "rot13"), "bytes are spelt as str in 'rot13'"),
        (Call(codecs.encode, "\u1234", "latin1"), "bytes are spelt wrongly: 'latin-1' codec"),
        (np.zeros(1, ">f8").dtype, "a number's byte order is '>'; allowed is '<'"),
        (Call(np._core.multiarray.scalar, np.dtype("f8"), b"12"), "bytes do not fit its type"),
        (Call(np._core.multiarray.scalar, 1.0, b"12"), "a number's bytes are missing"),
    ],
)
def test_objects_that_make_no_sense_are_refused(tmp_path: Path, call: Call, sentence: str) -> None:
    with pytest.raises(ImportFailure, match=sentence):
        read_records(written(tmp_path / "odd.pkl", call))


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04.", b"\x80\x04X\xff\xff\xff\x7f"])
def test_a_file_that_is_no_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "torn.pkl"
    path.write_bytes(content)
    with pytest.raises(ImportFailure, match=f"^{path} is not a pickle that can be read: "):
        read_records(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImportFailure, match=r"none\.pkl cannot be read: No such file"):
        import_edm(tmp_path / "none.pkl", tmp_path / "out")
    with pytest.raises(ImportFailure, match=r"none\.pt does not exist$"):
        import_edm(tmp_path / "none.pt", tmp_path / "out")


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"step": 3}, torch.zeros(2)])
def test_a_checkpoint_that_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(ImportFailure, match=f"^{path} holds .*, not a state dict of tensors$"):
        import_edm(path, tmp_path / "out")
