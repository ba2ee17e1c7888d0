"""This machine as a source: its kernel's counters ten times per second, and its packets.

The rows are those of the lab's collectors (``docs/data-format.md``): cumulative counters as the
kernel has them, and per 100 ms the packets that left and arrived. Nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from episodes.format import SOURCES

PERIOD_S = 0.1
_MAX_PACKETS = 2_000  # read per row; more are left to the next, so a flood cannot stop the rows
_FLOWS = 4096  # connections remembered, the oldest forgotten first
_PSEUDO_DISK = re.compile(r"(loop|ram|zram|dm-|md|sr|fd)\d*")
_ETH_P_ALL = 0x0003
_SOL_PACKET, _PACKET_STATISTICS, _OUTGOING = 263, 6, 4
_SYN, _ACK, _RST, _FIN = 0x02, 0x10, 0x04, 0x01
_BUCKET = (
    "packets_out", "packets_in", "bytes_out", "bytes_in", "syn_out", "rst_in", "fin",
    "distinct_dst_ips", "distinct_dst_ports", "new_flows",
)  # fmt: skip


class KernelReader:
    """Reads the fields of the guest agent from ``/proc``; a file that is not there gives none.

    Args:
        proc: where procfs is mounted.
    """

    def __init__(self, proc: Path = Path("/proc"), sys: Path = Path("/sys")):
        self._parsers: list[tuple[int, Callable[[bytes], dict[str, float]]]] = []
        self._disks = _whole_disks(sys / "block")
        for name, parse in (
            ("stat", _stat),
            ("meminfo", _meminfo),
            ("vmstat", _vmstat),
            ("loadavg", _loadavg),
            ("net/dev", _net_dev),
            ("diskstats", self._diskstats),
            ("net/snmp", _snmp),
        ):
            try:
                self._parsers.append((os.open(proc / name, os.O_RDONLY | os.O_CLOEXEC), parse))
            except OSError:
                continue

    def fields(self) -> dict[str, float]:
        """Every field that this kernel gives, now."""
        found: dict[str, float] = {}
        for handle, parse in self._parsers:
            try:
                found |= parse(_whole(handle))
            except (OSError, ValueError, IndexError):
                continue  # the field is missing in this row
        return found

    def close(self) -> None:
        for handle, _ in self._parsers:
            os.close(handle)

    def _diskstats(self, content: bytes) -> dict[str, float]:
        lines = [line.split() for line in content.decode().splitlines()]
        disks = [parts for parts in lines if len(parts) > 9 and parts[2] in self._disks]
        if not disks:
            return {}
        return {
            "disk_read_sectors": sum(int(parts[5]) for parts in disks),
            "disk_write_sectors": sum(int(parts[9]) for parts in disks),
        }


def _whole(handle: int) -> bytes:
    """All of a file in ``/proc``, of which one read gives about 4 KiB at most."""
    content = b""
    while part := os.pread(handle, 65_536, len(content)):
        content += part
    return content


def _whole_disks(block: Path) -> set[str]:
    """Names of disks, without partitions and without disks made of disks."""
    try:
        names = {path.name for path in block.iterdir()}
    except OSError:
        return set()
    return {name for name in names if not _PSEUDO_DISK.match(name)}


def _stat(content: bytes) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in content.split(b"\n"):
        name, _, rest = line.partition(b" ")
        if name == b"cpu":
            user, nice, system, idle, iowait, _, softirq = map(int, rest.split()[:7])
            found |= {
                "cpu_user_jiffies": user + nice,
                "cpu_system_jiffies": system,
                "cpu_idle_jiffies": idle,
                "cpu_iowait_jiffies": iowait,
                "cpu_softirq_jiffies": softirq,
            }
        elif name == b"intr":
            found["interrupts"] = int(rest.partition(b" ")[0])
        elif name in (b"ctxt", b"processes", b"procs_running", b"procs_blocked"):
            key = {b"ctxt": "ctxt_switches", b"processes": "forks"}.get(name) or name.decode()
            found[key] = int(rest)
    return found


_KIB = {b"MemAvailable": "mem_available_bytes", b"AnonPages": "anon_bytes"}


def _meminfo(content: bytes) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in content.split(b"\n"):
        name, _, rest = line.partition(b":")
        if name in _KIB:
            found[_KIB[name]] = 1024 * int(rest.split()[0])
    return found


_PGFAULT = re.compile(rb"^pgfault (\d+)", re.MULTILINE)


def _vmstat(content: bytes) -> dict[str, float]:
    found = _PGFAULT.search(content)
    return {"page_faults": int(found[1])} if found else {}


def _loadavg(content: bytes) -> dict[str, float]:
    return {"load_1m": float(content.split()[0])}


def _net_dev(content: bytes) -> dict[str, float]:
    lines = [line.partition(b":") for line in content.split(b"\n")[2:]]
    cards = [rest.split() for name, _, rest in lines if rest and name.strip() != b"lo"]
    if not lines or not any(rest for _, _, rest in lines):
        return {}
    return {
        "net_rx_bytes": sum(int(parts[0]) for parts in cards),
        "net_tx_bytes": sum(int(parts[8]) for parts in cards),
    }


def _snmp(content: bytes) -> dict[str, float]:
    names, values = [line.split() for line in content.split(b"\n") if line.startswith(b"Tcp:")]
    return {"tcp_active_opens": int(values[names.index(b"ActiveOpens")])}


class PacketReader:
    """Counts this machine's packets between two calls of ``bucket``.

    Raises:
        OSError: no right to open a raw socket (CAP_NET_RAW), or this system has none.
    """

    def __init__(self) -> None:
        if not hasattr(socket, "AF_PACKET"):
            raise OSError("raw sockets need Linux")
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        self._socket.setblocking(False)
        self._flows: dict[tuple[object, ...], None] = {}
        self.dropped = 0  # packets that the kernel dropped because they were not read in time

    def close(self) -> None:
        self._socket.close()

    def bucket(self) -> dict[str, int] | None:
        """What passed since the last call; None: no packet."""
        counts = dict.fromkeys(_BUCKET, 0)
        addresses: set[bytes] = set()
        ports: set[int] = set()
        for _ in range(_MAX_PACKETS):
            try:
                # headers only: a payload is never read
                content, about = self._socket.recvfrom(128)
            except OSError:  # there is none now, or an interface went away
                break
            if about[0] != "lo" and (packet := parse_packet(content)):
                self._count(packet, about[2] == _OUTGOING, counts, addresses, ports)
        self._note_dropped()
        counts["distinct_dst_ips"], counts["distinct_dst_ports"] = len(addresses), len(ports)
        return counts if counts["packets_out"] or counts["packets_in"] else None

    def _count(
        self,
        packet: Packet,
        outgoing: bool,
        counts: dict[str, int],
        addresses: set[bytes],
        ports: set[int],
    ) -> None:
        way = "out" if outgoing else "in"
        counts[f"packets_{way}"] += 1
        counts[f"bytes_{way}"] += packet.n_bytes
        counts["fin"] += bool(packet.flags & _FIN)
        ends = (packet.source, packet.source_port), (packet.destination, packet.destination_port)
        if outgoing:
            addresses.add(packet.destination)
            if packet.destination_port:
                ports.add(packet.destination_port)
            counts["syn_out"] += packet.flags & (_SYN | _ACK) == _SYN
        else:
            counts["rst_in"] += bool(packet.flags & _RST)
        flow = (packet.protocol, *(ends if outgoing else ends[::-1]))
        if flow not in self._flows:
            counts["new_flows"] += 1
            self._flows[flow] = None
            if len(self._flows) > _FLOWS:
                del self._flows[next(iter(self._flows))]

    def _note_dropped(self) -> None:
        try:
            statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        except OSError:
            return
        self.dropped += struct.unpack("=II", statistics)[1]


class Packet:
    """The header of one IP packet."""

    __slots__ = (
        "destination", "destination_port", "flags", "n_bytes", "protocol", "source", "source_port"
    )  # fmt: skip

    def __init__(self, protocol: int, n_bytes: int, source: bytes, destination: bytes):
        self.protocol, self.n_bytes = protocol, n_bytes
        self.source, self.destination = source, destination
        self.source_port = self.destination_port = self.flags = 0


def parse_packet(content: bytes) -> Packet | None:
    """A packet from its first bytes, at its IP header; None: it is not IP."""
    if len(content) < 20:
        return None
    if content[0] >> 4 == 4:
        head = 4 * (content[0] & 15)
        packet = Packet(content[9], int.from_bytes(content[2:4]), content[12:16], content[16:20])
        first = int.from_bytes(content[6:8]) & 0x1FFF == 0  # later fragments have no ports
    elif content[0] >> 4 == 6 and len(content) >= 40:
        head, first = 40, True
        packet = Packet(
            content[6], 40 + int.from_bytes(content[4:6]), content[8:24], content[24:40]
        )
    else:
        return None
    if first and packet.protocol in (6, 17) and len(content) >= head + 4:
        packet.source_port = int.from_bytes(content[head : head + 2])
        packet.destination_port = int.from_bytes(content[head + 2 : head + 4])
        if packet.protocol == 6 and len(content) >= head + 14:
            packet.flags = content[head + 13]
    return packet


def row(
    source: str, wall_ns: int, mono_ns: int, fields: dict[str, float] | dict[str, int]
) -> bytes:
    """One line of telemetry."""
    envelope = {
        "t_mono_ns": mono_ns,
        "t_wall_ns": wall_ns,
        "source": SOURCES[source].tag,
        "available_in_deployment": True,
    }
    return json.dumps(envelope | fields, separators=(",", ":")).encode()


class MachineSource:
    """Rows of this machine, one ``PERIOD_S`` after the other."""

    def __init__(self) -> None:
        self._kernel = KernelReader()
        self.problem: str | None = None  # why there are no packets
        try:
            self._packets: PacketReader | None = PacketReader()
        except OSError as error:
            self._packets = None
            self.problem = f"no netflow: a raw socket needs CAP_NET_RAW ({error.strerror or error})"
        self._due = time.monotonic()
        self._bucket_began = time.time_ns(), time.monotonic_ns()
        self.rows = 0
        self.missed = 0  # periods without a row, because this process was not scheduled

    @property
    def channels(self) -> frozenset[str]:
        """Names of the channels that have values here."""
        names = {"guest": set(self._kernel.fields()), "netflow": set()}
        if self._packets:
            names["netflow"] = set(_BUCKET)
        return frozenset(f"{source}.{name}" for source in names for name in names[source])

    @property
    def lost(self) -> dict[str, int]:
        dropped = self._packets.dropped if self._packets else 0
        return {"missed": self.missed, "packets_dropped": dropped}

    def read(self) -> list[tuple[str, bytes]]:
        """The next rows, when they are due."""
        now = time.monotonic()
        if now < self._due:
            time.sleep(self._due - now)
        behind = int((time.monotonic() - self._due) / PERIOD_S)
        self.missed += behind
        self._due += PERIOD_S * (1 + behind)
        wall, mono = time.time_ns(), time.monotonic_ns()
        rows = [("guest", row("guest", wall, mono, self._kernel.fields()))]
        self.rows += 1
        if self._packets:
            bucket = self._packets.bucket()
            if bucket is None and self.rows == 1:
                bucket = dict.fromkeys(_BUCKET, 0)  # no packet is no traffic, not no netflow
            if bucket:
                rows.append(("netflow", row("netflow", *self._bucket_began, bucket)))
            self._bucket_began = wall, mono
        return rows

    def close(self) -> None:
        self._kernel.close()
        if self._packets:
            self._packets.close()
