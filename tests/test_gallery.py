"""The gallery of the docs: every script runs, and finds the answer that it states."""

import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from givens.optim import SRCD

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"

# How far `found` may be from `known`, entry by entry, at the end of each script.
TOLERANCES = {
    "plot_alignment": 1e-3,  # radians, kilometres: 1 m in 30 km, where the noise is 10 m
    "plot_antennas": 1e-2,
    "plot_gate_synthesis": 1e-6,
    "plot_ica": 1e-3,
    "plot_low_rank": 1e-3,
    "plot_mean_tensor": 1e-5,
    "plot_nearest_correlation": 1e-3,
    "plot_pca": 1e-6,
    "plot_rotation_averaging": 1e-5,
    "plot_sparse_pca": 1e-9,
    "plot_subspace": 2e-3,
    "plot_symplectic_eigenvalues": 1e-4,
    "plot_tree": 0.1,  # the share by which a distance is off on average; in the Euclidean plane 0.19
}


def test_every_script_has_a_tolerance():
    assert sorted(path.stem for path in GALLERY.glob("*.py")) == sorted(TOLERANCES)


@pytest.fixture
def canvas(tmp_path, monkeypatch):
    """A working folder of its own, a canvas without a screen, and torch's random state as before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    backend, state = plt.get_backend(), torch.get_rng_state()
    plt.switch_backend("Agg")
    with plt.rc_context():
        yield
    plt.close("all")
    plt.switch_backend(backend)
    torch.set_rng_state(state)


def run(name):
    """Run a script, and compare what it finds with what it knows."""
    names = runpy.run_path(str(GALLERY / f"{name}.py"), run_name="__main__")
    found, known = (np.asarray(names[which], dtype=float) for which in ("found", "known"))
    assert found.shape == known.shape
    np.testing.assert_allclose(found, known, rtol=0, atol=TOLERANCES[name])


@pytest.mark.parametrize("name", TOLERANCES)
def test_script_finds_the_known_answer(name, canvas, tmp_path):
    run(name)
    assert len(plt.get_fignums()) == 1
    plt.gcf().savefig(tmp_path / "picture.png")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("name", TOLERANCES)
def test_the_optimizer_finds_it(name, canvas, monkeypatch):
    """The control: from where a script starts, an optimizer that does nothing does not agree."""
    monkeypatch.setattr(SRCD, "step", lambda self: None)
    monkeypatch.setattr(LRScheduler, "step", lambda self: None)
    with pytest.raises((AssertionError, KeyError)):  # a sparse component of four has no place then
        run(name)
