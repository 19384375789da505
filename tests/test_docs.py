"""The pages and docstrings: what they show runs, and what they name exists."""

import ast
import doctest
import importlib
import pkgutil
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

from givens.manifolds import OrthogonalGroup
from givens.optim import GaussSouthwell, GradientView, Matching

ROOT = Path(__file__).parents[1]
# The built site is left out, and what a folder of examples holds beside pages.
FOLDERS = ("", "docs/", "docs/api/", "docs/applications/")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}*.md"))
EXAMPLES = sorted(ROOT.glob("docs/examples/*.py"))
MODULES = [
    module.name
    for layer in ("manifolds", "optim", "rnn")
    for module in pkgutil.walk_packages([str(ROOT / layer)], f"givens.{layer}.")
    if not module.name.endswith(".__main__")
]


def blocks(page, *languages):
    """The code blocks of a page in one of some languages, with the number of their first line."""
    fence = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    text = page.read_text(encoding="utf-8")
    for match in fence.finditer(text):
        if match[1] in languages:
            yield text.count("\n", 0, match.start()) + 2, match[2]


def page_id(path):
    return str(path.relative_to(ROOT))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working folder that looks like the checkout to a page, and takes its output."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield tmp_path
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(blocks(page, "python"))], ids=page_id
)
def test_code_of_a_page_runs(page, checkout):
    names = {"__name__": "page"}
    for line, code in blocks(page, "python"):
        # Empty lines first, so that an error names the line of the page.
        exec(compile("\n" * (line - 1) + code, page, "exec"), names)


@pytest.mark.parametrize("example", EXAMPLES, ids=page_id)
def test_example_runs(example, checkout):
    runpy.run_path(str(example), run_name="__main__")


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name, checkout):
    module = importlib.import_module(name)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(module, optionflags=options).failed == 0


def commands(page):
    for line, text in blocks(page, "console", "bash", "sh", "shell"):
        for offset, command in enumerate(text.splitlines()):
            words = shlex.split(command.removeprefix("$ "), comments=True)
            if words[:1] == ["givens"]:
                yield pytest.param(words[1:], id=f"{page_id(page)}:{line + offset}")


@pytest.mark.parametrize("words", [words for page in PAGES for words in commands(page)])
def test_command_of_a_page_parses(words, monkeypatch):
    from givens.rnn.cli import givens as program

    def unplug(command):
        for part in getattr(command, "commands", {}).values():
            unplug(part)
        monkeypatch.setattr(command, "callback", None)

    unplug(program)
    program.main(words, prog_name="givens", standalone_mode=False)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_names_of_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    # From {role}`label <target>` and {role}`~target`, from `givens.a.b` and from imports in code.
    dotted = set(re.findall(r"[`<~]~?(givens(?:\.\w+)+)", text))
    for name in sorted(dotted):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("name", ["manifolds", "manifolds.testing", "optim", "rnn", "rnn.tasks"])
def test_reference_lists_every_public_name(name):
    pages = ROOT / "docs" / "api"
    page = pages / f"{name.split('.')[-1]}.md"
    page = page if page.exists() else pages / f"{name.split('.')[0]}.md"
    listed = set(
        re.findall(r"^\s*(?:\.\. \w+:: )?([\w.]+)$", page.read_text(encoding="utf-8"), re.M)
    )
    listed = {entry.split(".")[-1] for entry in listed}
    public = set(importlib.import_module(f"givens.{name}").__all__) - {"tasks"}
    assert public <= listed


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page_id(page)} links to {target}"


# The example of a geometry: that it keeps every law is tested with all the others.


def test_the_example_of_a_geometry_is_short():
    source = (ROOT / "docs/examples/positive.py").read_text(encoding="utf-8")
    (geometry,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    lines = source.splitlines()[geometry.lineno - 1 : geometry.end_lineno]
    count = sum(bool(line.strip()) for line in lines)
    assert count < 60
    page = (ROOT / "docs/own-manifold.md").read_text(encoding="utf-8")
    assert f"in {count} lines" in page


def test_the_page_shows_the_message_of_a_broken_law(checkout, capsys):
    page = ROOT / "docs" / "own-manifold.md"
    names = {}
    for _, code in blocks(page, "python"):
        exec(code, names)
    ((_, shown),) = blocks(page, "text")

    def without_figures(text):
        return re.sub(r"\d[-+.\de]*", "#", text)

    assert without_figures(shown) in without_figures(capsys.readouterr().out)


# The example selections, between the extremes that the package has.


@pytest.fixture(scope="module")
def selections():
    return runpy.run_path(str(ROOT / "docs/examples/selections.py"))


def views(batch=()):
    generator = torch.Generator().manual_seed(2)
    manifold = OrthogonalGroup()
    x = manifold.random(*batch, 6, 6, dtype=torch.float64, generator=generator)
    gradient = torch.randn(*batch, 6, 6, dtype=torch.float64, generator=generator)
    return lambda step: GradientView(manifold, x.clone(), gradient, step=step)


def test_alternating_asks_the_thorough_one_every_so_often(selections):
    view = views((5,))
    cheap, thorough = Matching(), Matching("greedy")
    alternating = selections["Alternating"](cheap, thorough, every=3)
    for step in range(7):
        expected = thorough if step % 3 == 0 else cheap
        chosen = alternating.select(view(step)).axes
        assert torch.equal(chosen, expected.select(view(step)).axes)


def test_steepest_of_all_is_gauss_southwell(selections):
    view = views((5,))(0)
    rule = selections["SteepestOf"](sample=view.num_coordinates)
    assert torch.equal(rule.choose(view, 3), GaussSouthwell().choose(view, 3))


def test_steepest_of_a_sample_refuses_more_than_it_looks_at(selections):
    with pytest.raises(ValueError, match="sample at least 3"):
        selections["SteepestOf"](sample=2).choose(views()(0), 3)
