"""Whether ``--this-machine`` reads this machine right: its rows beside those of psutil.

    python -m benchmarks.machine [SECONDS]

Half of the time idle, half under a load that is started here. Rows per second, and what the
counters rose by between the first and the last row, next to what psutil says they rose by.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil

from live.machine import MachineSource

JIFFIES = os.sysconf("SC_CLK_TCK")


def busy(until: float) -> None:
    """Processor, disk and processes, until a time."""
    with tempfile.NamedTemporaryFile() as file:
        while time.monotonic() < until:
            sum(i * i for i in range(200_000))
            file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)


def theirs() -> dict[str, float]:
    cpu, stats, net = psutil.cpu_times(), psutil.cpu_stats(), psutil.net_io_counters(pernic=True)
    return {
        "cpu_user_jiffies": (cpu.user + cpu.nice) * JIFFIES,
        "cpu_system_jiffies": cpu.system * JIFFIES,
        "cpu_idle_jiffies": cpu.idle * JIFFIES,
        "ctxt_switches": stats.ctx_switches,
        "interrupts": stats.interrupts,
        "net_rx_bytes": sum(each.bytes_recv for name, each in net.items() if name != "lo"),
        "mem_available_bytes": psutil.virtual_memory().available,
        "load_1m": psutil.getloadavg()[0],
    }


def measured(seconds: float) -> None:
    machine = MachineSource()
    before = theirs()
    began = time.monotonic()
    rows = []
    while time.monotonic() - began < seconds:
        rows += [json.loads(line) for name, line in machine.read() if name == "guest"]
    took, after = time.monotonic() - began, theirs()
    machine.close()
    print(f"  {len(rows) / took:.3f} rows per second, {machine.missed} periods without a row")
    print(f"  {'field':<22}{'rows':>16}{'psutil':>16}")
    for name in before:
        level = name in ("mem_available_bytes", "load_1m")
        ours = rows[-1].get(name, float("nan")) - (0 if level else rows[0].get(name, 0))
        print(f"  {name:<22}{ours:>16,.6g}{after[name] - (0 if level else before[name]):>16,.6g}")


def main() -> None:
    seconds = float(sys.argv[1]) if sys.argv[1:] else 120.0
    kernel = Path("/proc/version").read_text(encoding="utf-8").split("#")[0].strip()
    print(f"idle, {seconds / 2:.0f} s, {kernel}")
    measured(seconds / 2)
    print(f"under load, {seconds / 2:.0f} s")
    until = time.monotonic() + seconds / 2 + 1
    load = [multiprocessing.Process(target=busy, args=(until,)) for _ in range(2)]
    for process in load:
        process.start()
    measured(seconds / 2)
    for process in load:
        process.join()


if __name__ == "__main__":
    main()
