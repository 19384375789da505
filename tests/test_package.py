"""The package as a whole: what importing it needs, which way imports run, what is public."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import givens

ROOT = Path(givens.__file__).parent
LAYERS = ["manifolds", "optim", "rnn"]


def test_import_needs_no_extra():
    code = """
import sys
for name in ("click", "rich", "matplotlib", "sklearn", "tensorboard", "hypothesis", "pytest"):
    sys.modules[name] = None  # importing it raises ImportError
import givens, givens.rnn, givens.rnn.tasks
print(givens.__version__)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == givens.__version__


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_run_one_way(layer):
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    for path in (ROOT / layer).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                parts = set((node.module or "").split("."))
            elif isinstance(node, ast.Import):
                parts = {part for name in node.names for part in name.name.split(".")}
            else:
                continue
            assert not parts & above, f"{path} imports from {parts & above}"


@pytest.mark.parametrize("name", [f"givens.{layer}" for layer in LAYERS])
def test_public_names_exist_and_are_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert sorted(module.__all__) == sorted(set(module.__all__))
    for public in module.__all__:
        thing = getattr(module, public)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        assert thing.__doc__, public
        if inspect.isclass(thing):
            for attribute, member in vars(thing).items():
                if inspect.isfunction(member) and not attribute.startswith("_"):
                    assert inspect.getdoc(member), f"{public}.{attribute}"
