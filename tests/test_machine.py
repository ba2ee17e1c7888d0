"""This machine's kernel and packets, as rows of the lab's collectors."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from episodes.format import SOURCES
from episodes.jsonl import parse_rows
from features.registry import CHANNELS, LAYOUT
from live import cli
from live.bundle import load_bundle
from live.cli import FAILED, OK, USAGE, _read_baseline, main
from live.machine import PERIOD_S, KernelReader, MachineSource, PacketReader, parse_packet
from live.scorer import LiveScorer
from live.sources import ALL_CHANNELS

PROC = {
    "stat": "cpu  10 2 30 400 5 0 7 0 0 0\ncpu0 1 1 1 1 1 1 1\nintr 1234 5 6 7\nctxt 99\n"
    "processes 42\nprocs_running 3\nprocs_blocked 1\nsoftirq 5 1 2\n",
    "meminfo": "MemTotal: 1000 kB\nMemAvailable:     600 kB\nAnonPages:  70 kB\n",
    "vmstat": "nr_free 1\npgfault 555\npgmajfault 5\n",
    "loadavg": "0.25 0.50 0.75 1/100 999\n",
    "net/dev": "Inter-|   Receive\n face |bytes\n    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n"
    "  eth0: 100 1 0 0 0 0 0 0 200 2 0 0 0 0 0 0\n wlan0:11 1 0 0 0 0 0 0 22 2 0 0 0 0 0 0\n",
    "diskstats": " 8 0 sda 1 0 50 0 1 0 60 0 0 0 0\n 8 1 sda1 1 0 50 0 1 0 60 0 0 0 0\n"
    " 7 0 loop0 1 0 70 0 1 0 80 0 0 0 0\n",
    "net/snmp": "Tcp: RtoAlgorithm ActiveOpens PassiveOpens\nTcp: 1 77 8\n",
}
EXPECTED = {
    "cpu_user_jiffies": 12, "cpu_system_jiffies": 30, "cpu_idle_jiffies": 400,
    "cpu_iowait_jiffies": 5, "cpu_softirq_jiffies": 7, "ctxt_switches": 99, "interrupts": 1234,
    "forks": 42, "procs_running": 3, "procs_blocked": 1, "mem_available_bytes": 614_400,
    "anon_bytes": 71_680, "page_faults": 555, "load_1m": 0.25, "net_rx_bytes": 111,
    "net_tx_bytes": 222, "disk_read_sectors": 50, "disk_write_sectors": 60,
    "tcp_active_opens": 77,
}  # fmt: skip


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    for name, content in PROC.items():
        path = tmp_path / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for disk in ("sda", "loop0", "dm-0"):
        (tmp_path / "sys" / "block" / disk).mkdir(parents=True)
    return tmp_path


def test_every_field_of_the_guest_is_read(proc: Path) -> None:
    reader = KernelReader(proc / "proc", proc / "sys")
    assert reader.fields() == EXPECTED
    assert {f"guest.{name}" for name in EXPECTED} == {
        channel.name for channel in CHANNELS if channel.source == "guest"
    }
    reader.close()


def test_files_are_read_whole_when_the_kernel_gives_them_in_parts(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda handle, _, at: pread(handle, 20, at))
    assert KernelReader(proc / "proc", proc / "sys").fields() == EXPECTED


def test_a_kernel_that_counts_no_single_interrupts_gives_their_total(proc: Path) -> None:
    stat = (proc / "proc" / "stat").read_text().splitlines()
    lines = ["intr 1234" if line.startswith("intr") else line for line in stat]
    (proc / "proc" / "stat").write_text("\n".join(lines) + "\n")
    assert KernelReader(proc / "proc", proc / "sys").fields() == EXPECTED


@pytest.mark.parametrize("gone", PROC)
def test_a_file_that_is_not_there_takes_its_fields_along(proc: Path, gone: str) -> None:
    (proc / "proc" / gone).unlink()
    found = KernelReader(proc / "proc", proc / "sys").fields()
    assert found.items() < EXPECTED.items()


@pytest.mark.parametrize("gone", PROC)
def test_a_file_of_another_form_takes_its_fields_along(proc: Path, gone: str) -> None:
    (proc / "proc" / gone).write_text("no such thing\n" * 3)
    found = KernelReader(proc / "proc", proc / "sys").fields()
    assert found.items() < EXPECTED.items()


def test_what_is_read_here_is_a_row_of_the_guest_agent() -> None:
    machine = MachineSource()
    rows = [row for _ in range(4) for row in machine.read()]
    channels = machine.channels
    machine.close()
    guest = parse_rows(
        b"\n".join(line for name, line in rows if name == "guest"),
        LAYOUT.fields["guest"], SOURCES["guest"].tag,
    )  # fmt: skip
    assert len(guest) == 4
    assert guest.problems == ()
    assert np.all(np.diff(guest.t_wall_ns) > 50_000_000)
    assert channels <= ALL_CHANNELS
    assert len([name for name in channels if name.startswith("guest.")]) >= 15
    running = LAYOUT.fields["guest"].index(("procs_running",))
    assert np.all(guest.values[:, running] >= 1)


# --- packets


def ipv4(protocol: int, payload: bytes, *, length: int, fragment: int = 0) -> bytes:
    return struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, length, 1, fragment, 64, protocol, 0,
        bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]),
    ) + payload  # fmt: skip


def tcp(flags: int, ports: tuple[int, int] = (40_000, 443)) -> bytes:
    return struct.pack("!HHIIBBHHH", *ports, 1, 1, 0x50, flags, 1, 1, 0)


def test_a_tcp_packet() -> None:
    packet = parse_packet(ipv4(6, tcp(0x12), length=60))
    assert packet is not None
    assert (packet.n_bytes, packet.protocol, packet.flags) == (60, 6, 0x12)
    assert (packet.source_port, packet.destination_port) == (40_000, 443)
    assert packet.destination == bytes([10, 0, 0, 2])


def test_a_later_fragment_has_no_ports() -> None:
    packet = parse_packet(ipv4(17, struct.pack("!HHHH", 1, 2, 3, 4), length=48, fragment=100))
    assert packet is not None
    assert (packet.source_port, packet.destination_port, packet.n_bytes) == (0, 0, 48)


def test_an_ipv6_packet() -> None:
    head = struct.pack("!IHBB16s16s", 6 << 28, 20, 6, 64, b"\1" * 16, b"\2" * 16)
    packet = parse_packet(head + tcp(0x02))
    assert packet is not None
    assert (packet.n_bytes, packet.flags, packet.destination) == (60, 2, b"\2" * 16)


@pytest.mark.parametrize("content", [b"", b"\x45", b"\x00" * 40, b"\x60" * 30, bytes(range(60))])
def test_what_is_no_packet_is_none(content: bytes) -> None:
    assert parse_packet(content) is None


def test_a_bucket_counts_what_leaves_and_what_arrives() -> None:
    class Wire:
        """A raw socket that has these packets."""

        def __init__(self, packets: list[tuple[bytes, tuple[object, ...]]]):
            self.packets = packets

        def recvfrom(self, _: int) -> tuple[bytes, tuple[object, ...]]:
            if not self.packets:
                raise BlockingIOError
            return self.packets.pop(0)

        def getsockopt(self, *_: int) -> bytes:
            return struct.pack("=II", 5, 2)

    out, arriving, loop = ("eth0", 0, 4), ("eth0", 0, 0), ("lo", 0, 4)
    back = struct.pack("!HHIIBBHHH", 443, 40_000, 1, 1, 0x50, 0x14, 1, 1, 0)
    answer = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 44, 1, 0, 64, 6, 0, bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1])
    )
    reader = PacketReader.__new__(PacketReader)
    reader._flows, reader.dropped = {}, 0
    reader._socket = Wire(  # type: ignore[assignment]
        [
            (ipv4(6, tcp(0x02), length=60), out), (answer + back, arriving),
            (ipv4(6, tcp(0x11), length=52), out), (ipv4(6, tcp(0x02), length=60), loop),
            (ipv4(6, tcp(0x02, (40_001, 80)), length=60), out),
        ]
    )  # fmt: skip
    assert reader.bucket() == {
        "packets_out": 3, "packets_in": 1, "bytes_out": 172, "bytes_in": 44, "syn_out": 2,
        "rst_in": 1, "fin": 1, "distinct_dst_ips": 1, "distinct_dst_ports": 2, "new_flows": 2,
    }  # fmt: skip
    assert reader.bucket() is None
    assert reader.dropped == 4


def test_without_the_right_scoring_goes_on_without_netflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", refuse)
    machine = MachineSource()
    assert machine.problem
    assert not any(name.startswith("netflow.") for name in machine.channels)
    assert [name for name, _ in machine.read()] == ["guest"]
    machine.close()


def test_what_a_busy_machine_loses_is_counted() -> None:
    machine = MachineSource()
    machine._due -= 3.5 * PERIOD_S
    machine.read()
    if machine._packets:
        machine._packets.dropped += 7
    assert machine.lost["missed"] >= 3
    assert machine.lost["packets_dropped"] == (7 if machine._packets else 0)
    machine.close()


def test_no_packet_is_no_traffic() -> None:
    """A source that is there and says nothing is not a source that is missing."""
    machine = MachineSource()
    if machine.problem:
        pytest.skip("no right to open a raw socket")
    first = dict(machine.read())
    machine.close()
    assert json.loads(first["netflow"])["packets_out"] >= 0


def test_enrolled_minutes_are_the_past_of_a_machine(
    bundled: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, out = bundled("knn"), tmp_path / "baseline.npz"
    began = time.monotonic()
    assert main(["enrol", str(folder), "--minutes", "0.09", "--out", str(out)]) == OK
    assert time.monotonic() - began > 10  # a window is ten seconds
    bundle = load_bundle(folder)
    scorer = LiveScorer(bundle, "pi", "s")
    scorer.windows.remember(_read_baseline(out, bundle))
    assert scorer.windows.past == 1


@pytest.mark.parametrize("minutes", ["0", "-1", "0.01", "inf", "nan"])
def test_minutes_that_cannot_be_recorded_are_a_usage_error(
    bundled: Callable[[str], Path], tmp_path: Path, minutes: str
) -> None:
    words = ["enrol", str(bundled("knn")), "--out", str(tmp_path / "x.npz")]
    assert main([*words, "--minutes", minutes]) == USAGE


@pytest.mark.parametrize("out", [".", "nowhere/baseline.npz", "file/baseline.npz"])
def test_a_baseline_that_cannot_be_written_is_noticed_at_the_start(
    bundled: Callable[[str], Path], tmp_path: Path, out: str
) -> None:
    (tmp_path / "file").touch()
    words = ["enrol", str(bundled("knn")), "--out", str(tmp_path / out)]
    began = time.monotonic()
    assert main(words) == USAGE
    assert time.monotonic() - began < 10


def test_a_baseline_that_cannot_be_written_in_the_end_is_a_failure(
    bundled: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "write_atomically", full)
    words = ["enrol", str(bundled("knn")), "--minutes", "0.09", "--out", str(tmp_path / "x.npz")]
    assert main(words) == FAILED
