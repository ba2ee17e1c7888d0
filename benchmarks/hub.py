"""The hub under load: 100 clients, 50 events a second, on loopback.

    python -m benchmarks.hub [--seconds 120] [--clients 100] [--rate 50]

One client in ten loses its connection every few seconds and comes back with its last id, one client
never reads until the end, and one comes with an id from before a restart. Every client's ids are
held against what was published: what it was not sent must have been announced as a gap. Latency
runs from the event's making to its arrival, on the clients that read.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.lines import recording

HOSTS = 20
MESSAGE = re.compile(
    rb"id: (?P<boot>[0-9a-f]+)-(?P<number>\d+)\ndata: .*?\"at\":(?P<at>[0-9.]+)"
    rb"|event: gap\ndata: .*?\"missed\": (?P<missed>\w+)"
)


@dataclass
class Client:
    """One connection after the other to ``/events``, and all that came."""

    port: int
    reconnects: bool = False
    last: str = ""
    numbers: list[int] = field(default_factory=list)
    missed: int = 0
    restarts: int = 0
    delays_s: list[float] = field(default_factory=list)

    async def follow(self, until: float, random_: random.Random) -> None:
        """Read until then, through as many connections as it takes."""
        while time.monotonic() < until:
            ends = (
                min(until, time.monotonic() + random_.uniform(2, 6)) if self.reconnects else until
            )
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
            await self._read(reader, writer, ends)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            if self.reconnects:
                await asyncio.sleep(random_.uniform(0.1, 2))

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until: float
    ) -> None:
        header = f"Last-Event-ID: {self.last}\r\n" if self.last else ""
        writer.write(f"GET /events HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await reader.readuntil(b"\r\n\r\n")
                while size := int(await reader.readline(), 16):
                    self.take((await reader.readexactly(size + 2))[:-2])

    def take(self, chunk: bytes) -> None:
        now = time.time()
        for message in MESSAGE.finditer(chunk):
            if message["number"]:
                self.numbers.append(int(message["number"]))
                self.last = f"{message['boot'].decode()}-{message['number'].decode()}"
                self.delays_s.append(now - float(message["at"]))
            elif message["missed"] == b"null":
                self.restarts += 1
            else:
                self.missed += int(message["missed"])

    def lost(self) -> int:
        """Of all between the first and the last it has, those neither sent nor announced."""
        span = self.numbers[-1] - self.numbers[0] + 1 if self.numbers else 0
        return span - len(set(self.numbers)) - self.missed


def detection(number: int) -> dict[str, object]:
    """A ``live_detection`` as a scorer sends it."""
    shares = dict.fromkeys(("clean", "armed", "infecting", "infected_running", "dormant"), 0.2)
    return {
        "type": "live_detection", "at": time.time(), "origin": "benchmark",
        "host": f"pi-{number % HOSTS}", "model": "gbt_realistic", "bundle": "0" * 12,
        "session": "s", "window": number // HOSTS, "start": 0.0, "end": 10.0, "source": "live",
        "phase": "clean", "probabilities": shares, "filtered": "clean",
        "filtered_probabilities": shares, "confidence": 0.2, "score": 0.1, "threshold": 0.5,
        "alarm": "none", "unlike": False, "coverage": {"guest": 1.0, "netflow": 1.0},
        "why": [{"channel": f"guest.channel_{n}", "contribution": 0.5} for n in range(3)],
        "latency_ms": 1.0,
    }  # fmt: skip


def publish(port: int, rate: float, seconds: float) -> int:
    """Publish one by one, evenly; returns how many."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    began, sent = time.monotonic(), 0
    while (due := began + sent / rate) < began + seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        connection.request("POST", "/publish", json.dumps(detection(sent)))
        answer = connection.getresponse()
        if json.load(answer) != {"delivered": 1}:
            raise RuntimeError(f"event {sent} was not delivered")
        sent += 1
    return sent


def rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


async def measure(port: int, pid: int, seconds: float, n_clients: int, rate: float) -> None:
    random_ = random.Random(0)
    steady = [Client(port, reconnects=n % 10 == 9) for n in range(n_clients - 2)]
    former = Client(port, last="00000000-1")
    began = time.monotonic()
    stalled = socket.create_connection(("127.0.0.1", port))
    stalled.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    reading = [
        asyncio.create_task(client.follow(began + seconds + 4, random_))
        for client in (*steady, former)
    ]
    await asyncio.sleep(1)
    publishing = asyncio.create_task(asyncio.to_thread(publish, port, rate, seconds))
    memory = []
    while not publishing.done():
        await asyncio.sleep(min(5.0, seconds / 10))
        memory.append(rss_mib(pid))
    sent = await publishing
    await asyncio.gather(*reading)
    late = Client(port)
    reader, writer = await asyncio.open_connection(sock=stalled, limit=1 << 20)
    with suppress(TimeoutError):
        async with asyncio.timeout(3):
            await reader.readuntil(b"\r\n\r\n")
            while size := int(await reader.readline(), 16):
                late.take((await reader.readexactly(size + 2))[:-2])
    writer.close()
    clients = [*steady, former, late]
    delays_ms = 1000 * np.concatenate([c.delays_s for c in steady if not c.reconnects])
    print(f"  {sent} events, {n_clients} clients, {sum(len(c.numbers) for c in clients)} messages; "
          f"{sum(client.missed for client in clients)} announced as missed")  # fmt: skip
    with recording("hub") as out:
        none = {
            "events lost without a word": sum(client.lost() for client in clients),
            "events doubled": sum(len(c.numbers) - len(set(c.numbers)) for c in clients),
            "clients not up to the end": sum(c.numbers[-1:] != [sent] for c in clients),
        }
        for name, n in none.items():
            out.limit(name, n, 0, "", size=n_clients)
        restarts = sum(client.restarts for client in clients)
        out.limit("restarts announced", restarts, 1, "", "all there were", "more", size=n_clients)
        p50, p99 = np.percentile(delays_ms, [50, 99])
        out.alone("latency of an event, median", p50, "ms", size=n_clients)
        out.alone("latency of an event, p99", p99, "ms", size=n_clients)
        middle = memory[len(memory) // 2]
        out.limit(
            "resident memory at the end", memory[-1] / middle, 1.1, "times",
            f"times that halfway, {middle:.0f} MiB", size=n_clients,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rate", type=float, default=50.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = ["hub", "--port", "0", "--artifacts", folder]
        hub = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli.app", *words],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env={k: v for k, v in os.environ.items() if k != "PHASEWATCH_HUB_TOKEN"},
        )  # fmt: skip
        try:
            assert hub.stderr is not None
            port = int(hub.stderr.readline().rpartition(":")[2])
            asyncio.run(
                measure(port, hub.pid, arguments.seconds, arguments.clients, arguments.rate)
            )
        finally:
            hub.terminate()
            hub.wait()


if __name__ == "__main__":
    main()
