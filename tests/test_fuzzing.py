"""What no one would type, and files that no one has written: an error of one line, and no more."""

import contextlib
import importlib.util
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SOAK = Path(__file__).parents[1] / "benchmarks" / "soak" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz():
    """The soak's inputs and what they are tried on."""
    pytest.importorskip("matplotlib")
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("fuzz", SOAK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture(scope="module")
def fuzzer(fuzz, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch, fuzz.short_training():
        patch.chdir(folder)
        yield fuzz.Fuzzer(folder, 0)


@pytest.mark.parametrize(
    ("target", "examples"), [("checkpoint", 300), ("arguments", 60), ("run", 40)]
)
def test_every_failure_is_explained(fuzzer, target, examples):
    @settings(max_examples=examples)
    @given(st.integers(0, 2**32 - 1))
    def explained(seed):
        fuzzer.rng = random.Random(seed)
        fuzzer.fuzz(target)
        assert not fuzzer.failures, fuzzer.failures.pop()

    explained()


def test_a_pickle_that_calls_is_refused_and_not_called(fuzz, fuzzer):
    path = fuzzer.folder / "bad.pt"
    for seed in range(60):
        rng = random.Random(seed)
        data = fuzz.other_zip(rng, fuzzer.good["checkpoint.pt"], fuzzer.marker)
        path.write_bytes(data)
        with contextlib.suppress(fuzz.CheckpointError):
            fuzz.load_checkpoint(path)
        assert not fuzzer.marker.exists()


def test_the_fuzzer_notices_what_gets_through(fuzz, fuzzer, monkeypatch):
    def broken(arguments):
        raise KeyError("oh")

    monkeypatch.setattr(fuzz.cli, "main", broken)
    fuzzer.fuzz("arguments")
    assert "KeyError" in fuzzer.failures.pop()["error"]
