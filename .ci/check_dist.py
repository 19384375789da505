"""Check what `build_dist.py` made: an sdist of all that git tracks, a wheel of exactly the package."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = ("__init__.py", "extras.py", "py.typed", "manifolds/", "optim/", "rnn/")
SETUPTOOLS = ("PKG-INFO", "setup.cfg", "givens.egg-info/")


def check(path: Path, found: set[str], expected: set[str], metadata: set[str]) -> None:
    """Compare the files of an archive, less its metadata, with what it should hold."""
    missing, foreign = expected - found, found - metadata - expected
    if missing or foreign:
        sys.exit(f"{path}: missing {sorted(missing)}, unexpected {sorted(foreign)}")
    print(f"{path}: {len(expected)} files, and {len(metadata)} of metadata")


tracked = set(
    subprocess.run(
        ["git", "ls-files"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
)
(sdist,) = Path(sys.argv[1]).glob("*.tar.gz")
with tarfile.open(sdist) as archive:
    files = {member.name.partition("/")[2] for member in archive if not member.isdir()}
check(sdist, files, tracked, {name for name in files if name.startswith(SETUPTOOLS)})

(wheel,) = Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    files = {name for name in archive.namelist() if not name.endswith("/")}
package = {f"givens/{name}" for name in tracked if name.startswith(PACKAGE)}
check(wheel, files, package, {name for name in files if ".dist-info/" in name})
