"""Networks of one machine: namespaces joined by a bridge of limited rate, or by lines with a delay.

For root on Linux with iproute2. The kernel limits rates (tc's token bucket); delays are made here, by holding
what goes through tunnel devices, because not every kernel has netem.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from select import select

import click

# Seconds for which a port may send at any rate, after it has rested. With half of it 1 Gbit/s was not
# reached: what TCP hands down at a time, 64 KB, has to fit.
BUCKET = 1e-3


@dataclass(frozen=True)
class Network:
    """How processes are joined: a device of theirs, its rate in bit/s, and a delay in seconds."""

    name: str
    device: str
    rate: float | None = None
    delay: float = 0.0


def obstacles() -> str:
    """Say why no namespaces can be made here; empty if they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "other networks need root"
    if not (shutil.which("ip") and shutil.which("tc")):
        return "other networks need ip and tc, of iproute2"
    if not Path("/dev/net/tun").exists():
        return "delays need /dev/net/tun"
    trial = f"givens-{os.getpid()}-trial"
    made = subprocess.run(
        ["ip", "netns", "add", trial], capture_output=True, text=True, check=False
    )
    subprocess.run(["ip", "netns", "delete", trial], capture_output=True, check=False)
    return "" if made.returncode == 0 else f"no namespace can be made: {made.stderr.strip()}"


@contextmanager
def namespaces(p: int) -> Iterator[list[str]]:
    """Make a network namespace for every process, and one for the bridge that joins them."""
    names = [f"givens-{os.getpid()}-{i}" for i in range(p)]
    hub = f"givens-{os.getpid()}-hub"

    def remove() -> None:
        for name in (*names, hub):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    atexit.register(remove)
    try:
        ip("netns", "add", hub)
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for i, name in enumerate(names):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, *f"link add port type veth peer name port{i} netns {hub}".split())
            ip("-n", hub, "link", "set", f"port{i}", "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"10.0.0.{1 + i}/24", "dev", "port")
            ip("-n", name, "link", "set", "port", "up")
        yield names
    finally:
        remove()
        atexit.unregister(remove)


def ip(*args: str) -> None:
    """Call ip; what it says is the error's text."""
    _call("ip", *args)


def limit(names: list[str], network: Network) -> None:
    """Let every process send no faster than the network's rate."""
    assert network.rate is not None
    largest = 64_000 if network.device == "tunnel" else 3_000  # bytes: two packets
    burst = max(largest, int(network.rate / 8 * BUCKET))
    for name in names:
        _call(
            *("tc", "-n", name, "qdisc", "replace", "dev", network.device, "root", "tbf"),
            *("rate", f"{network.rate:.0f}bit", "burst", str(burst), "latency", "200ms"),
        )


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)}: {done.stderr.strip()}")


def enter(namespace: str) -> None:
    """Move this thread, and those that it will start, to a network namespace."""
    new_network = 0x40000000  # CLONE_NEWNET
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), new_network):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")


@contextmanager
def delay_line(names: list[str], delay: float) -> Iterator[None]:
    """Join the namespaces by tunnel devices; what goes in at one end comes out some seconds later.

    As netem does in kernels that have it.
    """
    line = DelayLine(names, delay)
    line.start()
    if not line.ready.wait(10):
        raise click.ClickException("cannot make the tunnel devices")
    try:
        for i, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.0.1.{1 + i}/24", "dev", "tunnel")
            ip("-n", name, "link", "set", "tunnel", "mtu", "32000", "up")
        yield
    finally:
        line.stopped.set()
        line.join()


class DelayLine(threading.Thread):
    """Passes packets on between tunnel devices."""

    def __init__(self, names: list[str], delay: float) -> None:
        super().__init__(daemon=True)
        self._names, self._delay = names, delay
        self.ready, self.stopped = threading.Event(), threading.Event()

    def run(self) -> None:
        """Make the devices, and pass packets until told to stop; the devices go with the thread."""
        ends = {}
        for i, name in enumerate(self._names):
            enter(name)  # a thread of its own: the others stay where they are
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            plain_ip = 0x1001  # IFF_TUN | IFF_NO_PI
            fcntl.ioctl(end, 0x400454CA, struct.pack("16sH22x", b"tunnel", plain_ip))  # TUNSETIFF
            ends[bytes((10, 0, 1, 1 + i))] = end
        self.ready.set()
        waiting: deque[tuple[float, bytes]] = deque()
        while not self.stopped.is_set():
            due = waiting[0][0] - time.perf_counter() if waiting else 0.2
            readable, _, _ = select(ends.values(), [], [], max(0.0, due))
            for end in readable:
                packet = os.read(end, 2**16)
                waiting.append((time.perf_counter() + self._delay, packet))
            while waiting and waiting[0][0] <= time.perf_counter():
                _, packet = waiting.popleft()
                if packet[0] >> 4 == 4 and packet[16:20] in ends:  # IPv4, and its destination
                    os.write(ends[packet[16:20]], packet)
        for end in ends.values():
            os.close(end)


def transmitted(device: str) -> int:
    """Bytes that a device of this network namespace has sent so far."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == device:
            return int(counters.split()[8])
    raise ValueError(f"there is no network device {device}")
