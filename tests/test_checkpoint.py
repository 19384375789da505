import contextlib
import errno
import io
import os
import pickle
import shutil
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from disk import DyingProcess, FullDisk, Killed
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st

from givens.manifolds import OrthogonalGroup
from givens.rnn import CheckpointError
from givens.rnn.atomic import also_name, atomic_write, remove_leftovers
from givens.rnn.checkpoint import (
    FORMAT,
    VERSION,
    load_checkpoint,
    plain,
    previous_checkpoint,
    save_checkpoint,
)

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


def check_noticed_or_harmless(path, data):
    """Let a damaged file either be refused, or hold what was saved."""
    path.write_bytes(data)
    with contextlib.suppress(CheckpointError):
        loaded = load_checkpoint(path)
        assert loaded.keys() == {*STATE, "format", "version"}
        assert equal({name: loaded[name] for name in STATE}, STATE)
        assert loaded["model"]["weight"].stride() == STATE["model"]["weight"].stride()
    assert path.read_bytes() == data


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
    check_noticed_or_harmless(path, data)


def test_a_flipped_bit_in_the_table_of_contents_is_noticed_or_harmless(tmp_path):
    # Zip has no checksum of it, and what is damaged in it can send torch anywhere.
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    good = path.read_bytes()
    end = good.rindex(b"archive/data/0")
    for place in range(8 * good.rindex(b"PK\x01\x02", 0, end), 8 * end):
        data = bytearray(good)
        data[place // 8] ^= 1 << place % 8
        check_noticed_or_harmless(path, data)


@given(place=st.floats(0, 1, exclude_max=True), noise=st.binary(min_size=1, max_size=600))
def test_overwritten_bytes_are_noticed_or_harmless(tmp_path_factory, place, noise):
    path = tmp_path_factory.mktemp("noise") / "a.pt"
    save_checkpoint(path, STATE)
    data = bytearray(path.read_bytes())
    start = int(place * len(data))
    data[start : start + len(noise)] = noise
    check_noticed_or_harmless(path, data)


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


class Exploit:
    """An object whose pickle runs code when it is loaded."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def as_zip(path, value):
    torch.save(value, path)


def as_legacy(path, value):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def as_pickle(path, value):
    path.write_bytes(pickle.dumps(value, protocol=2))


def as_compressed_zip(path, value):
    rewrite(path, value, zipfile.ZIP_DEFLATED)


def as_legacy_in_front_of_a_zip(path, value):
    as_zip(path, {"format": FORMAT, "version": VERSION})
    archive = path.read_bytes()
    as_legacy(path, value)
    path.write_bytes(path.read_bytes() + archive)


def rewrite(path, value, compression):
    """Write what torch.save writes, compressed."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))


@pytest.mark.filterwarnings("default")  # as an error, one would keep the pickle from running
@pytest.mark.parametrize("asked_to", ["0", "1"])
@pytest.mark.parametrize(
    "write",
    [as_zip, as_legacy, as_pickle, as_compressed_zip, as_legacy_in_front_of_a_zip],
)
@pytest.mark.parametrize("place", ["top", "within"])
def test_a_malicious_pickle_does_not_run(tmp_path, monkeypatch, write, place, asked_to):
    path, proof = tmp_path / "a.pt", tmp_path / "proof"
    exploit = Exploit(proof)
    state = {"format": FORMAT, "version": VERSION, "model": {"w": exploit}}
    write(path, exploit if place == "top" else state)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", asked_to)
    with pytest.raises(CheckpointError, match="damaged, or not a checkpoint"):
        load_checkpoint(path)
    assert not proof.exists()


def test_the_malicious_pickle_would_run(tmp_path):
    as_zip(tmp_path / "a.pt", Exploit(tmp_path / "proof"))
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "proof").exists()


def test_a_bomb_is_refused_before_it_is_opened(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    state = {"format": FORMAT, "version": VERSION, "w": torch.zeros(10**6)}
    rewrite(path, state, zipfile.ZIP_STORED)
    assert torch.equal(load_checkpoint(path)["w"], state["w"])
    rewrite(path, state, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *arguments: pytest.fail("opened"))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_the_checkpoint_before_is_kept(tmp_path):
    path = tmp_path / "a.pt"
    written = []
    for step in range(4):
        save_checkpoint(path, {"step": step})
        written.append(path.read_bytes())
        names = {"a.pt": written[-1]} | ({"a.previous.pt": written[-2]} if step else {})
        assert content(tmp_path) == names


def test_the_checkpoint_before_is_not_copied(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    number = path.stat().st_ino
    save_checkpoint(path, STATE)
    assert previous_checkpoint(path).stat().st_ino == number
    assert previous_checkpoint(path).stat().st_nlink == 1


def test_the_checkpoint_before_is_kept_without_hard_links(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("os.link", refuse)
    test_the_checkpoint_before_is_kept(tmp_path)


def test_two_names_of_one_file_leave_no_third(tmp_path):
    # As a process leaves them that is killed between the two renames.
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"new")
    for _ in range(3):
        also_name(path, other)
        assert content(tmp_path) == {"a": b"new", "b": b"new"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: torch.save({}, path),
        lambda path: save_checkpoint(path, {"version": 99}),
    ],
)
def test_errors_name_the_checkpoint_before(tmp_path, damage):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"step": 1})
    save_checkpoint(path, {"step": 2})
    damage(path)
    before = content(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith((f"{path} ", "there is no checkpoint at"))
    assert str(caught.value).endswith(
        f"; the checkpoint before it is {tmp_path / 'a.previous.pt'}: to go on from there, "
        "resume('previous'), or --resume previous"
    )
    assert content(tmp_path) == before


@pytest.mark.parametrize("links", [True, False])
def test_whenever_a_process_dies_there_is_a_good_checkpoint(tmp_path, links):
    path = tmp_path / "a.pt"
    large = torch.randn(100, 100)  # several writes
    dead, operations = True, 0
    while dead:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        for step in (1, 2):
            save_checkpoint(path, {"step": step, "large": large})
        with pytest.MonkeyPatch.context() as patch:
            if not links:
                patch.setattr("os.link", lambda *arguments: (_ for _ in ()).throw(OSError))
            DyingProcess(patch, operations)
            try:
                save_checkpoint(path, {"step": 3, "large": large})
                dead = False
            except Killed:
                operations += 1
        last, previous = (load_checkpoint(each) for each in (path, previous_checkpoint(path)))
        assert last["step"] in (2, 3)
        assert previous["step"] in (last["step"] - 1, last["step"])
        save_checkpoint(path, {"step": 4, "large": large})
        for each in (path, previous_checkpoint(path)):
            remove_leftovers(each)
        assert {name: load_checkpoint(tmp_path / name)["step"] for name in content(tmp_path)} == {
            "a.pt": 4,
            "a.previous.pt": last["step"],
        }
    assert operations > 10


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_full_disk_keeps_both_checkpoints(tmp_path_factory, share):
    folder = tmp_path_factory.mktemp("full")
    path = folder / "a.pt"
    for step in (1, 2):
        save_checkpoint(path, {**STATE, "step": step, "large": torch.randn(50, 50)})
    before = content(folder)
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(patch, int(share * path.stat().st_size))
        with pytest.raises(OSError, match="No space left on device") as caught:
            save_checkpoint(path, {**STATE, "step": 3, "large": torch.randn(50, 50)})
    assert caught.value.errno == errno.ENOSPC
    assert content(folder) == before


def test_leftovers_are_only_those_of_one_file(tmp_path):
    names = [".a.pt.12.tmp", ".a.pt.3456.tmp", ".a.previous.pt.12.tmp", ".a.pt.mine.tmp", "a.pt"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path / "a.pt")
    assert sorted(content(tmp_path)) == sorted(names[2:])


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
