"""Processes that die or hang: the others learn of it, and the run goes on from its last checkpoint."""

import inspect
import multiprocessing
import os
import runpy
import signal
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import launch, needs_gloo

pytestmark = needs_gloo

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples" / "distributed"


@pytest.fixture(scope="module", autouse=True)
def leaves_parameters_out() -> None:
    from torch.distributed.fsdp import fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        pytest.skip("fully_shard takes ignored_params, which the examples need, since torch 2.7")


# Where a process is struck: the number of the restart, its rank, the step, and the signal.
Blow = tuple[int, int, int, signal.Signals]


def train(
    folder: str, blows: tuple[Blow, ...] = (), during: str = "update", seconds: int = 60
) -> None:
    """Run the example of checkpoints, with processes that are struck as they begin an update or a save."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(EXAMPLES))
    import checkpoint

    function = getattr(checkpoint, during)

    def struck(*args: Any) -> Any:
        (step,) = (arg for arg in args if type(arg) is int)
        here = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"]), step
        for *where, blow in blows:
            if here == (*where,):
                os.kill(os.getpid(), blow)
        return function(*args)

    setattr(checkpoint, during, struck)
    checkpoint.TIMEOUT = timedelta(seconds=seconds)
    checkpoint.main(Path(folder))


def result(folder: Path) -> dict[str, Any]:
    """All that the last checkpoint holds, whole."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(folder / "00000030", folder / "whole.pt")
    return torch.load(folder / "whole.pt", weights_only=False)


def assert_same(one: Any, other: Any, **tolerance: float) -> None:
    """To the last bit, unless there is a tolerance."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key], **tolerance)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, **(tolerance or {"rtol": 0, "atol": 0}))
    else:
        assert one == other


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("unbroken")
    launch(train, 2, str(folder))
    return result(folder)


def test_killed_processes_are_started_again_and_end_with_the_same_bits(unbroken, tmp_path):
    blows = ((0, 1, 12, signal.SIGKILL), (1, 0, 19, signal.SIGKILL))
    launch(train, 2, str(tmp_path), blows, max_restarts=2)
    assert_same(result(tmp_path), unbroken)


def test_a_checkpoint_that_was_not_finished_is_not_gone_back_to(unbroken, tmp_path):
    blows = ((0, 1, 20, signal.SIGKILL),)
    launch(train, 2, str(tmp_path), blows, "save", max_restarts=1)
    assert_same(result(tmp_path), unbroken)


@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_processes_goes_on(unbroken, tmp_path, size):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with pytest.raises(ChildFailedError, match="Signal 9"):
        launch(train, 2, str(tmp_path), ((0, 0, 17, signal.SIGKILL),))
    launch(train, size, str(tmp_path))
    assert_same(result(tmp_path), unbroken, rtol=1e-3, atol=1e-5)


def hang(rank: int, port: int, folder: str, pipe: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    try:
        train(folder, ((0, 1, 8, signal.SIGSTOP),), seconds=10)
    except Exception as error:
        pipe.send(str(error))
        os._exit(1)  # as a signal would: nothing waits for the other process


def test_a_process_that_hangs_ends_the_others_within_the_timeout(unbroken, tmp_path):
    """Without torchrun, which gives a process that has stopped half a minute to end."""
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    processes = [
        context.Process(target=hang, args=(rank, store.port, str(tmp_path), sender))
        for rank in (0, 1)
    ]
    with closing(receiver), closing(sender):
        for process in processes:
            process.start()
        processes[0].join()
        processes[1].kill()
        processes[1].join()
        assert processes[0].exitcode == 1
        assert "Timed out waiting 10000ms" in receiver.recv()
    launch(train, 2, str(tmp_path))
    assert_same(result(tmp_path), unbroken)


def run_example(path: str) -> None:
    torch.set_num_threads(1)
    runpy.run_path(path, run_name="__main__")


def test_the_example_of_fsdp_runs():
    before = signal.getsignal(signal.SIGTERM)
    launch(run_example, 2, str(EXAMPLES / "fsdp.py"))
    assert signal.getsignal(signal.SIGTERM) is before  # the launcher has one of its own
