import contextlib
import os
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st

from givens.manifolds import OrthogonalGroup
from givens.rnn import CheckpointError
from givens.rnn.atomic import atomic_write
from givens.rnn.checkpoint import load_checkpoint, plain, save_checkpoint

STATE = {
    "step": 7,
    "model": OrderedDict(weight=torch.arange(12.0).reshape(3, 4).T, count=torch.tensor(2**40)),
    "optimizers": [{"lr": 0.1, "betas": (0.9, 0.99), "name": "x", "none": None, "flag": True}],
}


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and all(map(equal, a, b))
    return a == b and type(a) is type(b)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_saved_is_loaded(tmp_path):
    save_checkpoint(tmp_path / "a.pt", STATE)
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert equal({name: loaded[name] for name in STATE}, STATE)
    assert loaded["model"]["weight"].stride() == STATE["model"]["weight"].stride()
    assert set(content(tmp_path)) == {"a.pt"}


def test_checkpoint_is_read_by_torch_itself(tmp_path):
    save_checkpoint(tmp_path / "a.pt", STATE)
    assert equal(torch.load(tmp_path / "a.pt", weights_only=True)["model"], STATE["model"])


class Tagged(torch.Tensor):
    """Some library's tensor."""


def test_plain_strips_subclasses_and_copies():
    point = ManifoldParameter(torch.eye(3), manifold=OrthogonalGroup())
    copy = plain(
        {
            "w": point,
            "tagged": torch.ones(2).as_subclass(Tagged),
            "lr": np.float64(0.5),
            "milestones": Counter([3, 3]),
        }
    )
    assert type(copy["w"]) is type(copy["tagged"]) is torch.Tensor
    assert not copy["w"].requires_grad
    assert type(copy["lr"]) is float
    assert copy["milestones"][99] == 0  # still a Counter
    with torch.no_grad():
        point.zero_()
    assert torch.equal(copy["w"], torch.eye(3))


def test_plain_names_what_is_not_plain():
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\]\['b'\] is a object"):
        plain({"a": [0, {"b": object()}]})


@given(damage=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_harmless(tmp_path_factory, damage, bit):
    path = tmp_path_factory.mktemp("damage") / "a.pt"
    save_checkpoint(path, STATE)
    data = bytearray(path.read_bytes())
    data[int(damage * len(data))] ^= 1 << bit
    path.write_bytes(data)
    with contextlib.suppress(CheckpointError):
        loaded = load_checkpoint(path)
        assert equal({name: loaded[name] for name in STATE}, STATE)
    assert path.read_bytes() == data


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    data = bytearray(path.read_bytes())
    data[data.index(STATE["model"]["weight"].T.numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_noticed(tmp_path_factory, share):
    path = tmp_path_factory.mktemp("truncated") / "a.pt"
    save_checkpoint(path, STATE)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "there is no checkpoint"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b"hello"), "damaged"),
        (lambda path: torch.save({"model": {}}, path), "not a checkpoint of givens"),
        (lambda path: torch.save([1, 2], path), "not a checkpoint of givens"),
        (lambda path: torch.save(torch.nn.Linear(1, 1), path), "damaged, or not a checkpoint"),
        (lambda path: save_checkpoint(path, {"version": 99}), "version 99; this givens reads 1"),
    ],
)
def test_foreign_files_are_refused(tmp_path, write, message):
    path = tmp_path / "a.pt"
    write(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_atomic_write_replaces(tmp_path):
    path = tmp_path / "file"
    for text in (b"old", b"new"):
        with atomic_write(path) as file:
            file.write(text)
    assert content(tmp_path) == {"file": b"new"}


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_failure_in_the_middle_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half():
        with atomic_write(path) as file:
            file.write(b"half of the new")
            file.flush()
            raise error

    with pytest.raises(error):
        write_half()
    assert content(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_of_the_system_keeps_the_old_checkpoint(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    before = content(tmp_path)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    target = "os.fsync" if failing == "fsync" else "pathlib.Path.replace"
    monkeypatch.setattr(target, fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"step": 8})
    assert content(tmp_path) == before


def test_bytes_are_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    order = []
    path = tmp_path / "a.pt"
    real_fsync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr("os.fsync", lambda fd: order.append("fsync") or real_fsync(fd))
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda a, b: order.append("replace") or real_replace(a, b)
    )
    save_checkpoint(path, STATE)
    assert order[:2] == ["fsync", "replace"]
