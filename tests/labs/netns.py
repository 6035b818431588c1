"""A client, a firewall and a server in network namespaces of their own: a network that forgets, or goes without a word.

    client ──[wire]── firewall ── server          10.77.1.1 │ 10.77.1.2, 10.77.2.1 │ 10.77.2.2

Sockets in the file system are the same inside and outside, so an agent that was started inside can be asked from
outside. Root only. What a killed run of the tests has left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import math
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.labs import sshd as lab
from tests.labs.servers import process
from tests.needs import need, need_program
from tests.waiting import until

CLIENT, SERVER = "10.77.1.1", "10.77.2.2"  # addresses
_DELAY = Path(__file__).with_name("delay.py")
_NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL = 0x8946
_OFFLOADS = (0x17, 0x19, 0x1F, 0x24, 0x2C)  # checksums, scatter, TSO, GSO, GRO: a bridge in Python sees whole frames
_libc = ctypes.CDLL(None, use_errno=True)

# Established connections pass, and new ones from the client; behind it every address is the firewall's own (NAT).
_RULES = """
table ip transit {
  chain pass {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    ip saddr 10.77.1.0/24 tcp flags & (syn|ack) == syn ct state new accept
  }
  chain behind {
    type nat hook postrouting priority 100;
    ip saddr 10.77.1.0/24 masquerade
  }
}
"""
_CUT = "table ip cut {\n chain everything {\n type filter hook forward priority -10; policy drop;\n }\n}\n"


@dataclass(frozen=True, slots=True)
class Network:
    """Names of the namespaces."""

    client: str
    firewall: str
    server: str

    def cut(self) -> None:
        """Every packet is dropped from now on, and nobody is told."""
        _nft(self.firewall, _CUT)

    def mend(self) -> None:
        """Packets pass again, those of connections that the firewall still knows."""
        _nft(self.firewall, "delete table ip cut\n")

    @contextlib.contextmanager
    def is_cut(self) -> Iterator[None]:
        """Cut for as long as the block."""
        self.cut()
        try:
            yield
        finally:
            self.mend()

    def add_route(self, to: str) -> None:
        """The client learns another way."""
        _inside(self.client, "route", "add", to, "via", "10.77.1.2")

    def forget_after(self, seconds: int) -> None:
        """A connection that is silent for so long is forgotten: its packets are dropped from then on."""
        with entered(self.firewall):
            for name, value in (("tcp_loose", 0), ("tcp_timeout_established", seconds)):
                Path(f"/proc/sys/net/netfilter/nf_conntrack_{name}").write_text(str(value))


@contextlib.contextmanager
def entered(name: str) -> Iterator[None]:
    """The calling thread, and what it starts, in that namespace."""
    with Path("/proc/thread-self/ns/net").open() as own, (_NAMESPACES / name).open() as other:
        _set(other.fileno())
        try:
            yield
        finally:
            _set(own.fileno())


@contextlib.contextmanager
def network(folder: Path, *, delay_s: float = 0.0, up_bytes_s: float = math.inf) -> Iterator[Network]:
    """Three namespaces and what joins them; each direction takes `delay_s` longer. `folder` is for a log.

    up_bytes_s: how much the client can send.
    """
    is_wired = bool(delay_s) or up_bytes_s < math.inf
    need(os.geteuid() == 0, "needs root for network namespaces")
    for program in ("ip", "nft"):
        need_program(program)
    _sweep()
    names = [f"hf-{os.getpid()}-{secrets.token_hex(2)}-{part}" for part in ("client", "wire", "firewall", "server")]
    client, wire, firewall, server = names
    with contextlib.ExitStack() as stack:
        for name in names:
            _ip("netns", "add", name)
            stack.callback(_remove, name)
            _inside(name, "link", "set", "lo", "up")
        if is_wired:
            _join(client, wire, ("c0", "w0"))
            _join(wire, firewall, ("w1", "f0"))
        else:
            _join(client, firewall, ("c0", "f0"))
        _join(firewall, server, ("f1", "s0"))
        addresses = {(client, "c0"): CLIENT, (firewall, "f0"): "10.77.1.2", (firewall, "f1"): "10.77.2.1"}
        for (name, device), address in {**addresses, (server, "s0"): SERVER}.items():
            _inside(name, "address", "add", f"{address}/24", "dev", device)
        _inside(client, "route", "add", "default", "via", "10.77.1.2")
        _inside(server, "route", "add", "default", "via", "10.77.2.1")
        with entered(firewall):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        with entered(client):  # what sends until a queue is full, as most machines do
            Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text("reno")
        _nft(firewall, _RULES)
        if is_wired:
            log = folder / "delay.log"
            with entered(wire):
                argv = [sys.executable, str(_DELAY), "w0", "w1", str(delay_s), str(up_bytes_s)]
                stack.enter_context(process(argv, log))
            until(lambda: "ready" in log.read_text(), what=log.read_text)
        yield Network(client, firewall, server)


@contextlib.contextmanager
def sshd(
    inside: Network, folder: Path, user: str, home: Path, *, options: dict[str, str] | None = None
) -> Iterator[lab.Sshd]:
    """As `sshd.sshd`, in the server's namespace; its `config` leads there from the client's."""
    with contextlib.ExitStack() as stack:
        with entered(inside.server):
            server = stack.enter_context(lab.sshd(folder, user, home, options=options, address=SERVER))
        yield server


def _join(one: str, other: str, devices: tuple[str, str]) -> None:
    here, there = devices
    _ip("link", "add", here, "netns", one, "type", "veth", "peer", "name", there, "netns", other)
    for name, device in ((one, here), (other, there)):
        _inside(name, "link", "set", device, "up")
        with entered(name):
            _without_offloads(device)


def _without_offloads(device: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for offload in _OFFLOADS:
            value = ctypes.create_string_buffer(struct.pack("II", offload, 0))
            fcntl.ioctl(any_socket, _SIOCETHTOOL, struct.pack("16sP", device.encode(), ctypes.addressof(value)))


def _sweep() -> None:
    """Remove the namespaces of test runs that are no more."""
    for name in [path.name for path in _NAMESPACES.glob("hf-*")]:
        if not Path(f"/proc/{name.split('-')[1]}").exists():
            _remove(name)


def _remove(name: str) -> None:
    inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
    for pid in inside.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "del", name)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def _inside(namespace: str, *words: str) -> None:
    """As `_ip`, there. `ip -n` would do, but it mounts things anew, which a root folder that is no mount refuses."""
    with entered(namespace):
        _ip(*words)


def _nft(namespace: str, rules: str) -> None:
    with entered(namespace):
        done = subprocess.run(["nft", "-f", "-"], input=rules, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _set(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
