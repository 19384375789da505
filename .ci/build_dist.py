"""Build the sdist, and the wheel from it, out of what git tracks: the same bytes each time.

``python .ci/build_dist.py dist`` puts both into the folder ``dist``. The times in the archives are that of
the last commit, or SOURCE_DATE_EPOCH. setuptools keeps to it in a wheel but not in an sdist, whose headers
are therefore written anew here.
"""

import gzip
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory


def build(*arguments: object) -> None:
    """Run the build frontend, with the build backend that constraints.txt pins."""
    command = [sys.executable, "-m", "build", "--quiet", *map(str, arguments)]
    subprocess.run([*command, "--dependency-constraints-txt", "constraints.txt"], check=True)


def normalize(source: Path, target: Path, time: int) -> None:
    """Copy an sdist with sorted members, one time, one owner and plain permissions."""
    with (
        tarfile.open(source) as old,
        target.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=time) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old, key=lambda member: member.name):
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.mtime = time
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)


def main(folder: Path) -> None:
    """Build both distributions into a folder, which is made if it is missing."""
    os.chdir(Path(__file__).parents[1])
    os.umask(0o022)
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], check=True, capture_output=True, text=True
    ).stdout.strip()
    time = os.environ.setdefault("SOURCE_DATE_EPOCH", commit)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as name:
        scratch = Path(name)
        # Not the checkout itself: setuptools takes in what an older build left there.
        subprocess.run(["git", "checkout-index", "--all", f"--prefix={name}/tree/"], check=True)
        build("--sdist", "--outdir", scratch, scratch / "tree")
        (built,) = scratch.glob("*.tar.gz")
        normalize(built, folder / built.name, int(time))
    build("--wheel", "--outdir", folder, folder / built.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
