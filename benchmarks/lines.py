"""What the benchmarks write down: lines of ours beside a peer or a limit, and points of curves.

A benchmark opens a recording under its own name, and adds what it measures::

    with recording("growth") as out:
        out.limit("second ingest, CPU against the first", 1.1, 1.25, "times", "the issue's limit")
        out.point("ingest", episodes, "episodes", seconds, "CPU s an episode", series="archives")

``against`` times ours and a peer in turn and adds their line; ``limit``, ``line`` (a peer) and
``alone`` (neither) add figures that were measured otherwise; ``point`` adds one (size, cost) of a
curve, and a plot has the points of one curve as one line for each ``series``. Each line is printed
when it is added. What was not measured is not added, so it is neither printed nor drawn.

At the end, unless it fails, ``artifacts/bench/latest.json`` has the benchmark's new lines and
points in place of its old ones, and those of other benchmarks unchanged. ``bench.html`` beside it
is redrawn. ``python -m benchmarks.lines`` only redraws it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import platform
import resource
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal, TypeVar

import jinja2
from pydantic import Field, ValidationError

from evaluation.documents import Model
from evaluation.templating import TEMPLATES
from features.files import write_atomically
from stages.checkpoints import code_commit
from stages.workspace import workspace_from_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Work = Callable[[], object]

T = TypeVar("T")
ROUNDS = 5
TURN_S = 0.2  # at least so long is each turn of a way
LIBRARIES = (
    "numpy", "numba", "scipy", "polars", "pyarrow", "torch", "xgboost", "scikit-learn", "dagster",
)  # fmt: skip
"""Of these the versions are always written; a benchmark names its peers."""


class Line(Model):
    """One figure of ours: beside that of a peer, beside a limit, or alone."""

    name: str
    ours: float
    other: float | None = None
    other_is: str = ""
    unit: str
    better: Literal["more", "less"]
    ratio: float | None = None
    """How many times better ours is: below 1, the peer wins or the limit is missed."""
    is_limit: bool = False
    rounds: int = 1
    """How many rounds the ratio is the median of."""
    size: float | None = None
    """Of what was measured, if other sizes give other figures."""


class Point(Model):
    """What a size costs: one point of a curve. Axes are logarithmic."""

    curve: str
    series: str
    size: float = Field(gt=0)
    size_is: str
    cost: float = Field(gt=0)
    unit: str


class Benchmark(Model):
    """What one benchmark measured when it last ran to its end."""

    made: str
    commit: str
    cpus: int
    load: float
    """Load average of the last minute when it began; over the number of cores, others worked."""
    seconds: float
    versions: dict[str, str]
    lines: list[Line]
    points: list[Point]


class Bench(Model):
    """``latest.json``."""

    format: Literal[1] = 1
    benchmarks: Mapping[str, Benchmark] = {}


def bench_folder() -> Path:
    return workspace_from_environment().artifacts_path / "bench"


def read_bench() -> Bench:
    """What is written, or an empty document.

    Raises:
        ValueError: the file is not such a document.
    """
    file = bench_folder() / "latest.json"
    if not file.exists():
        return Bench()
    try:
        return Bench.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"{file} must be what benchmarks write, got: {error}. Delete it, and measure again"
        ) from error


def installed(peer: str) -> bool:
    """Whether a peer's module can be imported: one that cannot is left out."""
    return importlib.util.find_spec(peer) is not None


# --- measuring


def processor_s() -> float:
    """Processor seconds of this process, all its threads, and the children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def paired(ways: Mapping[str, Work], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Processor seconds of a call of each way, in each round.

    Every round takes all ways in turn, each round from another one on, so that what else the
    machine does meets all of them. Each way is called once before, so that nothing is compiled in
    a round, and in a turn as often as ``TURN_S`` takes.
    """
    names = list(ways)
    for work in ways.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            calls, began = 0, processor_s()
            while (spent := processor_s() - began) < TURN_S or not calls:
                ways[name]()
                calls += 1
            seconds[name].append(spent / calls)
    return seconds


def alternated(
    ways: Mapping[str, Callable[[T], object]], items: Sequence[T], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Processor seconds an item of each way, in each round; every item meets all ways in turn.

    In a loop of its own, a short way would find its memory in the cache, which it does not where
    it is one step of many.
    """
    for way in ways.values():
        way(items[0])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        spent, turns = dict.fromkeys(ways, 0.0), 0
        while sum(spent.values()) < TURN_S or not turns:
            turns += 1
            for item in items:
                for name, way in ways.items():
                    began = time.process_time()
                    way(item)
                    spent[name] += time.process_time() - began
        for name in ways:
            seconds[name].append(spent[name] / (turns * len(items)))
    return seconds


class Recording:
    """Lines and points of one benchmark, while it runs."""

    def __init__(self, name: str, libraries: tuple[str, ...] = ()):
        self.name = name
        self.libraries = LIBRARIES + libraries
        self.lines: list[Line] = []
        self.points: list[Point] = []
        self.began = time.perf_counter()
        self.load = os.getloadavg()[0]

    def add(self, line: Line) -> None:
        self.lines.append(line)
        print(told(line), flush=True)

    def against(
        self,
        name: str,
        ours: Work,
        peers: Mapping[str, Work],
        amount: float,
        unit: str,
        rounds: int = ROUNDS,
        fewer: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """Time ours and the peers in turn; add a line for each peer.

        Args:
            amount: of ``unit`` in one call; the figures are ``unit`` per processor second.
            fewer: amounts of peers that are too slow for all of it.

        Returns:
            The median processor seconds of a call; ours is under the empty name.
        """
        seconds = paired({"": ours, **peers}, rounds)
        middle = {way: median(each) for way, each in seconds.items()}
        for peer in peers:
            did = (fewer or {}).get(peer, amount)
            ratios = [
                (b / did) / (a / amount) for a, b in zip(seconds[""], seconds[peer], strict=True)
            ]
            self.add(
                Line(
                    name=name, ours=amount / middle[""], other=did / middle[peer],
                    other_is=peer, unit=f"{unit}/CPU s", better="more", ratio=median(ratios),
                    rounds=rounds,
                )
            )  # fmt: skip
        return middle

    def line(
        self,
        name: str,
        ours: float,
        other: float,
        unit: str,
        other_is: str,
        better: Literal["more", "less"] = "less",
        *,
        size: float | None = None,
    ) -> None:
        """Add figures that were measured once."""
        self._add(name, ours, other, unit, other_is, better, size, is_limit=False)

    def limit(
        self,
        name: str,
        ours: float,
        limit: float,
        unit: str,
        limit_is: str = "limit",
        better: Literal["more", "less"] = "less",
        *,
        size: float | None = None,
    ) -> None:
        """Add a figure that is to be at most ``limit``, or at least, where more is better."""
        self._add(name, ours, limit, unit, limit_is, better, size, is_limit=True)

    def alone(
        self,
        name: str,
        ours: float,
        unit: str,
        better: Literal["more", "less"] = "less",
        *,
        size: float | None = None,
    ) -> None:
        """Add a figure that has neither peer nor limit."""
        self.add(Line(name=name, ours=ours, unit=unit, better=better, size=size))

    def _add(
        self,
        name: str,
        ours: float,
        other: float,
        unit: str,
        other_is: str,
        better: Literal["more", "less"],
        size: float | None,
        *,
        is_limit: bool,
    ) -> None:
        good, bad = (ours, other) if better == "more" else (other, ours)
        ratio = good / max(bad, 1e-12) if good else float(bad == 0)
        self.add(
            Line(
                name=name, ours=ours, other=other, other_is=other_is, unit=unit, better=better,
                ratio=min(ratio, 1e6), is_limit=is_limit, size=size,
            )
        )  # fmt: skip

    def point(
        self, curve: str, size: float, size_is: str, cost: float, unit: str, series: str = "ours"
    ) -> None:
        """Add a point of a curve: what a size costs, both positive."""
        self.points.append(
            Point(curve=curve, series=series, size=size, size_is=size_is, cost=cost, unit=unit)
        )
        print(f"  {curve}, {series}: {figure(size)} {size_is}: {figure(cost)} {unit}", flush=True)

    def benchmark(self) -> Benchmark:
        versions = {"python": platform.python_version()}
        for library in self.libraries:
            try:
                versions[library] = importlib.metadata.version(library)
            except importlib.metadata.PackageNotFoundError:
                continue
        return Benchmark(
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            commit=code_commit(),
            cpus=len(os.sched_getaffinity(0)),
            load=self.load,
            seconds=time.perf_counter() - self.began,
            versions=versions,
            lines=self.lines,
            points=self.points,
        )


@contextmanager
def recording(name: str, *libraries: str) -> Iterator[Recording]:
    """Add lines and points; they are written when the block ends, and not if it fails.

    Args:
        libraries: distributions of peers, whose versions are to be written.
    """
    read_bench()  # fails before anything is measured if figures cannot be added to the file
    out = Recording(name, libraries)
    print(f"\n{name}")
    yield out
    bench = read_bench()
    write(bench.model_copy(update={"benchmarks": {**bench.benchmarks, name: out.benchmark()}}))


# --- writing


def write(bench: Bench) -> None:
    folder = bench_folder()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "latest.json", bench.model_dump_json(indent=1).encode())
    write_atomically(folder / "bench.html", page(bench).encode())


def figure(value: float) -> str:
    """Three digits, or a whole number with its thousands."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def told(line: Line) -> str:
    """A line as it is printed."""
    size = "" if line.size is None else f" [{figure(line.size)}]"
    if line.other is None or line.ratio is None:
        return f"  {line.name + size:<54}ours {figure(line.ours):>9}  {line.unit:>16}"
    kind = f"{'limit' if line.is_limit else 'peer'} {figure(line.other)}"
    return (
        f"  {line.name + size:<54}ours {figure(line.ours):>9}  {kind:>15} {line.unit:<16}"
        f"{line.ratio:>8.2f}x  {line.other_is}"
    )


# --- the page

WIDE, HIGH, LEFT, BOTTOM, TOP = 430, 250, 54, 34, 12
SERIES_COLOURS = 5


class Tick(Model):
    at: float
    label: str


class Curve(Model):
    """A curve's plot, in the units of its picture."""

    name: str
    size_is: str
    unit: str
    x: list[Tick]
    y: list[Tick]
    series: dict[str, list[tuple[float, float, str]]]
    """Places of the points, and what each says."""


def ticks(low: float, high: float) -> list[float]:
    """Powers of ten around the values; also 2 and 5 times these where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    if last - first > 2:
        return [10.0**n for n in range(first, last + 1)]
    fine = [m * 10.0**n for n in range(first, last) for m in (1, 2, 5)] + [10.0**last]
    below = [n for n, value in enumerate(fine) if value <= low][-1:] or [0]
    above = [n for n, value in enumerate(fine) if value >= high][:1] or [len(fine) - 1]
    return fine[below[0] : max(above[0], below[0] + 1) + 1]


def curves(bench: Bench) -> list[Curve]:
    """The plots: all points of one name, axes logarithmic."""
    by_name: dict[str, list[Point]] = {}
    for benchmark in bench.benchmarks.values():
        for point in benchmark.points:
            by_name.setdefault(point.curve, []).append(point)
    found = []
    for name, points in by_name.items():
        sizes, costs = ([getattr(p, what) for p in points] for what in ("size", "cost"))
        low = min(costs)
        x, y = ticks(min(sizes), max(sizes)), ticks(low, max(*costs, 5 * low))  # noise stays small

        def across(value: float, x: list[float] = x) -> float:
            share = math.log(value / x[0]) / math.log(x[-1] / x[0])
            return round(LEFT + share * (WIDE - LEFT - 12), 1)

        def up(value: float, y: list[float] = y) -> float:
            share = math.log(value / y[0]) / math.log(y[-1] / y[0])
            return round(HIGH - BOTTOM - share * (HIGH - BOTTOM - TOP), 1)

        series: dict[str, list[tuple[float, float, str]]] = {}
        for p in sorted(points, key=lambda p: p.size):
            says = f"{p.series}: {figure(p.size)} {p.size_is}, {figure(p.cost)} {p.unit}"
            series.setdefault(p.series, []).append((across(p.size), up(p.cost), says))
        found.append(
            Curve(
                name=name, size_is=points[0].size_is, unit=points[0].unit, series=series,
                x=[Tick(at=across(v), label=figure(v)) for v in x],
                y=[Tick(at=up(v), label=figure(v)) for v in y],
            )
        )  # fmt: skip
    return found


def page(bench: Bench) -> str:
    """The page: one file without a script or anything from elsewhere."""
    folders = [Path(__file__).parent, TEMPLATES]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["figure"] = figure
    return environment.get_template("bench.html.j2").render(
        bench=bench, curves=curves(bench), wide=WIDE, high=HIGH, left=LEFT,
        bottom=HIGH - BOTTOM, n_colours=SERIES_COLOURS,
    )  # fmt: skip


if __name__ == "__main__":
    write(read_bench())
