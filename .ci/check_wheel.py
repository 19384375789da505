"""Check that a wheel holds exactly the package: every module that git tracks, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import PurePosixPath

PACKAGES = ("manifolds", "optim", "rnn")

tracked = subprocess.run(
    ["git", "ls-files", "--", "__init__.py", "extras.py", "py.typed", *PACKAGES],
    check=True,
    capture_output=True,
    text=True,
).stdout.splitlines()
expected = {f"givens/{name}" for name in tracked}
with zipfile.ZipFile(sys.argv[1]) as wheel:
    names = {name for name in wheel.namelist() if not name.endswith("/")}
metadata = {name for name in names if PurePosixPath(name).parts[0].endswith(".dist-info")}
missing, foreign = expected - (names - metadata), (names - metadata) - expected
if missing or foreign:
    sys.exit(f"{sys.argv[1]}: missing {sorted(missing)}, not of the package {sorted(foreign)}")
print(f"{sys.argv[1]}: {len(expected)} files of the package, {len(metadata)} of metadata")
