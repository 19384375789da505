"""Distributed tests: a function run by several processes that talk to each other by gloo."""

import multiprocessing
import signal
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available())
    or "forkserver" not in multiprocessing.get_all_start_methods(),
    reason="needs torch.distributed with gloo, and a forkserver",
)

_PRELOADED = [
    "pytest",
    "hypothesis",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint.state_dict",
    "givens.optim.distributed",
]


def run(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Call ``function(rank, *args)`` in every process of a new group, and return all results.

    The function is one of a module, tests included; its arguments and results can be pickled. An
    exception in one process ends them all, and is raised here with that process's traceback.
    """
    # Imported once for all tests, instead of for seconds by every process.
    multiprocessing.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _work, (world_size, folder, function, args), world_size, start_method="forkserver"
        )
        return [
            torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(world_size)
        ]


def _work(
    rank: int, world_size: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    try:
        torch.save(function(rank, *args), Path(folder, f"{rank}.pt"))
    finally:
        # For gloo's threads, which need the interpreter to let go of the last tensors: torch 2.6 waits for
        # them without giving it away.
        time.sleep(0.05)
        dist.destroy_process_group()


def launch(
    function: Callable[..., Any], world_size: int, *args: Any, max_restarts: int = 0
) -> None:
    """Call ``function(*args)`` in every process, as torchrun does: in its environment, with restarts."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    multiprocessing.set_forkserver_preload(_PRELOADED)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        monitor_interval=0.1,
        start_method="forkserver",
    )
    # The launcher leaves its own handlers behind.
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in signals}
    with pytest.MonkeyPatch.context() as patch:
        # Otherwise restarted processes find the addresses of those that died (pytorch issue 135712).
        patch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        try:
            elastic_launch(config, function)(*args)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
