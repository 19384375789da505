"""The tests on every supported Python, with the oldest and with the newest versions of all that givens needs.

``make matrix`` runs all cells. ``pipx run 'nox[uv]' --noxfile .ci/noxfile.py --session 'tests-3.10(oldest)'``
runs one; UV_TORCH_BACKEND=cpu saves it the downloads for CUDA. (In the root it would be part of the package.)
"""

from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"

ROOT = Path(__file__).parents[1]
PYTHONS = nox.project.python_versions(nox.project.load_toml(ROOT / "pyproject.toml"))
VERSIONS = {
    # The lower bounds of pyproject.toml, or the first release after them with a wheel for this Python.
    # Old libraries call what the newer ones beneath them deprecate, and old torch what it deprecates itself.
    "oldest": (
        "lowest-direct",
        *("-W", "default::DeprecationWarning"),
        *("-W", "default:The epoch parameter in `scheduler.step:UserWarning"),
    ),
    "newest": ("highest",),
}


@nox.session(python=PYTHONS)
@nox.parametrize("versions", list(VERSIONS), ids=list(VERSIONS))
def tests(session: nox.Session, versions: str) -> None:
    """Run the tests; what is given after ``--`` goes to pytest."""
    session.chdir(ROOT)
    resolution, *options = VERSIONS[versions]
    wheels = ("--only-binary", ":all:", "--no-binary", "givens")
    session.install("--resolution", resolution, *wheels, "--editable", ".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", *options, *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Look up the pinned versions in the advisory database; fail where one cannot be looked up, too."""
    session.chdir(ROOT)
    session.install("pip-audit")
    session.run(
        "pip-audit", "--strict", "--no-deps", "--disable-pip", "--requirement", "constraints.txt"
    )
