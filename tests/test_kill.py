import json
import subprocess
import sys
from pathlib import Path

import pytest
from disk import DyingProcess, Killed
from test_training import content, make, records, state

SOAK = Path(__file__).parents[1] / "benchmarks" / "soak"


def test_killed_runs_end_as_the_unbroken_one(tmp_path):
    command = [SOAK / "kill.py", "--kills", "5", "--start", "fork", "--output", tmp_path]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "kill.json").read_text())
    assert result["kills"] > 0  # five, unless the run outpaces whoever kills it
    assert all(result["same bits"].values())
    assert result["same bits"].keys() >= {"model", "optimizers", "schedulers", "random", "metrics"}
    assert result["left over"] == []


def test_a_run_killed_at_any_operation_on_the_disk_ends_as_the_unbroken_one(tmp_path):
    make(tmp_path / "whole", checkpoint_every=2).train(3)
    dead, operations = True, 0
    while dead:
        folder = tmp_path / str(operations)
        with pytest.MonkeyPatch.context() as patch:
            DyingProcess(patch, operations)
            try:
                make(folder, checkpoint_every=2).train(3)
                dead = False
            except Killed:
                operations += 1
        trainer = make(folder, checkpoint_every=2)
        if trainer.checkpoint_path.exists():
            trainer.resume()
        trainer.train(3)
        assert state(folder) == state(tmp_path / "whole")
        assert records(folder) == records(tmp_path / "whole")
        assert content(folder).keys() == content(tmp_path / "whole").keys()
    assert operations > 30
