"""The commands of a device: ``live``, ``check``, ``enrol``. Standard library, NumPy, ONNX Runtime.

``phasewatch live`` is the same program; there, recordings may also be named by id or batch.
"""

from __future__ import annotations

import argparse
import errno
import logging
import math
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from config.errors import PhasewatchError
from config.messages import shortened
from config.paths import expanded
from config.signing import SigningError, parse_json
from episodes.format import META_FILE, SOURCES, is_host_id
from features.files import write_atomically
from live.bundle import (
    Bundle,
    BundleContractError,
    BundleError,
    NotABundleError,
    load_bundle,
    pack_arrays,
    signed_by,
    unpack_arrays,
)
from live.machine import MachineSource
from live.outputs import (
    CommandOutput,
    EventOutput,
    HubOutput,
    LinesOutput,
    MetricsOutput,
    is_hub_address,
)
from live.scorer import Event, LiveScorer
from live.sources import DEPLOYABLE, FolderSource, ReplaySource, RowSource, StdinSource
from live.stream import LiveWindows
from models.base import NotFiniteError

OK, FAILED, USAGE, MISMATCH, INTERRUPTED = 0, 1, 2, 4, 130
NO_HOST = "replay"
"""Host of a recording that names none; an event must name one."""

_FILES = [SOURCES[name].file for name in DEPLOYABLE]

log = logging.getLogger("phasewatch")


class UsageError(PhasewatchError):
    """What was asked for cannot be done; the message says what to do."""


@dataclass(frozen=True)
class RecordedEpisode:
    """Files of one recorded episode."""

    name: str
    host: str
    members: dict[str, bytes]


def main(
    arguments: Sequence[str] | None = None,
    *,
    resolve: Callable[[str], Iterator[RecordedEpisode]] | None = None,
    prog: str = "phasewatch-device",
    complete: Callable[[str], str] = str,
) -> int:
    """Run a command; returns its exit code.

    Args:
        resolve: turns what ``--replay`` names into recordings; by default folders alone.
        complete: gives the commands in a message the options that they need.
    """
    parser = _parser(prog)
    words = list(sys.argv[1:] if arguments is None else arguments)
    for before, word in zip(["", *words], words, strict=False):
        if not word or (word.startswith("--") and word.endswith("=")):
            option = word[:-1] if word else before if before.startswith("--") else "an argument"
            parser.error(f"{option} must not be empty; give a value, or leave it out")
    options = parser.parse_args(words)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        return int(options.run(options, resolve or recordings))
    except (UsageError, NotABundleError) as error:
        return _said(complete(str(error)), USAGE)
    except BundleContractError as error:
        return _said(complete(str(error)), MISMATCH)
    except (BundleError, NotFiniteError, SigningError) as error:
        return _said(complete(str(error)), FAILED)
    except BrokenPipeError:  # the reader of our lines has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return _said(f"{error.filename}: {error.strerror}", USAGE)


def _said(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


# Long, because it lists every option once.
def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Scores a machine while it runs, with a bundle that was made for devices.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    signature = "refuse a bundle unless a key that is trusted here signed it"
    live = commands.add_parser(
        "live",
        help="score rows as they arrive",
        description="Scores rows as they arrive, and prints an event per window.",
        usage=f"{prog} live BUNDLE (--this-machine | --follow DIR | --stdin | "
        "--replay EPISODE ...) [OPTION ...]",
    )
    live.set_defaults(run=run_live)
    live.add_argument("bundle", type=expanded, metavar="BUNDLE", help="folder of the bundle")
    source = live.add_mutually_exclusive_group()  # not required: first say which option is unknown
    source.add_argument(
        "--this-machine", action="store_true", help="score this machine, from its kernel's counters"
    )
    source.add_argument("--follow", type=expanded, metavar="DIR", help="an episode being written")
    source.add_argument("--stdin", action="store_true", help="JSON lines on standard input")
    source.add_argument(
        "--replay",
        nargs="+",
        metavar="EPISODE",
        help="replay recorded episodes; each live event is marked as a replay",
    )
    live.add_argument(
        "--speed", type=float, metavar="N",
        help="speed of a replay: a multiple of real time; 0: as fast as possible (default: 1)",
    )  # fmt: skip
    live.add_argument(
        "--host",
        metavar="NAME",
        help="name of the machine (default: its own; for a replay, host_id in meta.json)",
    )
    live.add_argument("--to", metavar="URL", help="publish live events to this hub, too")
    live.add_argument(
        "--token-file", type=expanded, metavar="FILE",
        help="the hub's token (default: PHASEWATCH_HUB_TOKEN)",
    )  # fmt: skip
    live.add_argument(
        "--on-alarm",
        metavar="COMMAND",
        help="run this when an alarm is raised or cleared, or a source goes silent",
    )
    live.add_argument(
        "--metrics", type=int, metavar="PORT", help="Prometheus text on 127.0.0.1:PORT/metrics"
    )
    live.add_argument(
        "--baseline", type=expanded, metavar="FILE", help="what `enrol` recorded here"
    )
    live.add_argument(
        "--state",
        type=expanded,
        metavar="FILE",
        help="keep the state here, and resume from it; not with --replay",
    )
    live.add_argument("--require-signature", action="store_true", help=signature)
    live.add_argument("--quiet", action="store_true", help="no live events on standard output")

    check = commands.add_parser(
        "check",
        help="verify a bundle on this device, and time it",
        description="Verifies a bundle on this device, and times it.",
    )
    check.set_defaults(run=run_check)
    check.add_argument("bundle", type=expanded, metavar="BUNDLE", help="folder of the bundle")
    check.add_argument("--require-signature", action="store_true", help=signature)

    enrol = commands.add_parser(
        "enrol",
        help="record clean minutes of this machine, as its baseline",
        description="Records clean minutes of this machine, as its baseline for live --baseline.",
    )
    enrol.set_defaults(run=run_enrol)
    enrol.add_argument("bundle", type=expanded, metavar="BUNDLE", help="folder of the bundle")
    enrol.add_argument(
        "--minutes", type=float, default=5.0, metavar="N", help="minutes to record (default: 5)"
    )
    enrol.add_argument("--out", type=expanded, required=True, metavar="FILE", help="file to write")
    return parser


# --- live


def run_live(options: argparse.Namespace, resolve: Any) -> int:
    """Score rows until they end or a signal comes."""
    host = options.host or socket.gethostname().partition(".")[0] or "localhost"
    if not is_host_id(host):
        raise UsageError(
            f"--host must be letters, digits, dots, dashes and underscores, got {host!r}"
        )
    if not (options.this_machine or options.stdin or options.follow or options.replay):
        raise UsageError(
            "name where rows come from: --this-machine, --follow DIR, --stdin or --replay EPISODE"
        )
    if not (options.speed is None or options.speed >= 0):
        raise UsageError(f"--speed must be at least 0, got {options.speed}")
    if options.speed is not None and not options.replay:
        raise UsageError("--speed applies to recordings only: use it with --replay")
    if options.baseline and (options.replay or options.follow):
        raise UsageError("--baseline is for this machine: use it with --this-machine or --stdin")
    if options.state and options.replay:
        raise UsageError("--state cannot be used with --replay")
    if options.state:
        _check_can_write(options.state)
    bundle = load_bundle(options.bundle, require_signature=options.require_signature)
    outputs = _outputs(options)
    stop = _Stop()
    try:
        if options.replay:
            found = [resolve(name) for name in options.replay]  # a wrong name is refused first
            for recording in chain.from_iterable(found):  # each is read when its turn comes
                if stop.wanted:
                    break
                _replay(bundle, recording, options, outputs, stop)
        else:
            _score(bundle, host, options, outputs, stop)
    finally:
        for output in outputs:
            output.close()
    return stop.code or (FAILED if any(output.lost for output in outputs) else OK)


class _Stop:
    """Set by SIGTERM and SIGINT; a second one ends at once."""

    def __init__(self) -> None:
        self.wanted = False
        self.interrupted = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)

    def _set(self, number: int, _: object) -> None:
        if self.wanted:
            raise SystemExit(128 + number)
        self.wanted = True
        self.interrupted = number == signal.SIGINT

    @property
    def code(self) -> int:
        """130 after Ctrl-C, as of every command; SIGTERM is how a service ends."""
        return INTERRUPTED if self.interrupted else OK


def _outputs(options: argparse.Namespace) -> list[EventOutput]:
    outputs: list[EventOutput] = [] if options.quiet else [LinesOutput()]
    if options.to:
        if not is_hub_address(options.to):
            raise UsageError(f"--to must be a URL such as http://127.0.0.1:8447, got {options.to}")
        outputs.append(HubOutput(options.to, _token(options.token_file)))
    if options.on_alarm:
        try:
            words = shlex.split(options.on_alarm)
        except ValueError as error:  # a quote is open
            raise UsageError(f"--on-alarm: {error}: {options.on_alarm}") from None
        if not words or shutil.which(words[0]) is None:
            raise UsageError(f"--on-alarm: no such program: {options.on_alarm}")
        outputs.append(CommandOutput(words))
    if options.metrics is not None:
        try:
            outputs.append(MetricsOutput(options.metrics))
        except (OSError, OverflowError) as error:
            raise UsageError(f"--metrics: port {options.metrics} cannot be used: {error}") from None
    return outputs


def _token(path: Path | None) -> str | None:
    if path is None:
        where, token = "PHASEWATCH_HUB_TOKEN", os.environ.get("PHASEWATCH_HUB_TOKEN", "")
    else:
        try:
            where, token = str(path), path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"{path}: must be a text file with a token") from None
    if not (token.isascii() and token.isprintable()):  # no header can have it
        raise UsageError(f"{where}: the token must be one line of ASCII characters")
    return token or None


def _check_can_write(path: Path) -> None:
    """Notice at the start what would otherwise fail when there is something to write."""
    folder = path.absolute().parent
    if path.is_dir():
        raise UsageError(f"{path}: must be a file, got a folder")
    if not folder.is_dir():
        raise UsageError(f"{path}: folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path}: folder {folder} cannot be written to")


def _replay(
    bundle: Bundle,
    recording: RecordedEpisode,
    options: argparse.Namespace,
    outputs: list[EventOutput],
    stop: _Stop,
) -> None:
    source = ReplaySource(recording.members, 1.0 if options.speed is None else options.speed)
    scorer = LiveScorer(
        bundle,
        options.host or recording.host,
        secrets.token_hex(4),
        origin_ns=source.origin_ns(),
        replay_of=recording.name,
    )
    log.info("replaying %s of %s", recording.name, options.host or recording.host)
    _loop(scorer, source, outputs, stop, None)


def _score(
    bundle: Bundle,
    host: str,
    options: argparse.Namespace,
    outputs: list[EventOutput],
    stop: _Stop,
) -> None:
    source, origin = _source(options)
    _check_filled(bundle, source)
    scorer = LiveScorer(bundle, host, secrets.token_hex(4), origin_ns=origin)
    past = _read_baseline(options.baseline, bundle) if options.baseline else None
    went_on = False
    if options.state and (state := _read_arrays(options.state)):
        if "bundle" not in state:
            raise UsageError(f"{options.state}: not a state file, so it is not overwritten")
        went_on = scorer.resume(state)
        log.info("%s: %s", options.state, "resumed" if went_on else "not used: over ten minutes "
                 "from now, or of another bundle or host")  # fmt: skip
    if went_on and isinstance(source, FolderSource):
        source.go_on_after(scorer.windows.last_lines)
    if past is not None and not went_on:  # the state has the machine's last minute
        scorer.windows.remember(past)
    log.info("scoring %s with %s, bundle %s", host, bundle.variant, bundle.id[:12])
    _loop(scorer, source, outputs, stop, options.state)


def _source(options: argparse.Namespace) -> tuple[RowSource, int | None]:
    if options.stdin:
        return StdinSource(), None
    if options.follow:
        if not options.follow.is_dir():
            raise UsageError(f"{options.follow}: must be an episode's folder; it does not exist")
        folders = _episode_folders(options.follow)
        if folders and options.follow not in folders:
            raise UsageError(
                f"{options.follow}: must be an episode's folder, got one that holds "
                f"{len(folders)} of them: follow one, such as {folders[-1]}"
            )
        if not folders:
            log.info("waiting for %s in %s", " or ".join(_FILES), options.follow)
        follow = FolderSource(options.follow)
        return follow, follow.origin_ns()
    machine = MachineSource()
    if machine.problem:
        log.warning(machine.problem)
    return machine, None


def _check_filled(bundle: Bundle, source: RowSource) -> None:
    """Refuse a source that fills nothing the model sees; say what is missing."""
    names = bundle.layout.channel_names
    seen = [names[i] for i in np.unique(bundle.channel)]
    missing = [name for name in seen if name not in source.channels]
    if len(missing) == len(seen):
        raise UsageError(f"this source fills none of the {len(seen)} channels of {bundle.variant}")
    if missing:
        shown = shortened(missing, ", ", 3)
        log.warning("%d of %d channels are missing here: %s", len(missing), len(seen), shown)


def _loop(
    scorer: LiveScorer,
    source: RowSource,
    outputs: list[EventOutput],
    stop: _Stop,
    state: Path | None,
) -> None:
    metrics = next((output for output in outputs if isinstance(output, MetricsOutput)), None)
    noted = dict(scorer.windows.counts)

    def send(events: Iterator[Event]) -> bool:
        sent = False
        for event in events:
            sent = True
            for output in outputs:
                output.send(event)
        return sent

    saved = True

    def save() -> None:
        nonlocal saved
        if state is None:
            return
        try:
            write_atomically(state, pack_arrays(scorer.state()))
        except OSError as error:
            if saved:
                log.warning("%s: the state cannot be saved: %s", state, error)
            saved = False
        else:
            saved = True

    try:
        while not stop.wanted:
            found = source.read()
            if found is None:
                break
            made = False
            for name, lines in found:
                made |= send(scorer.push(name, lines))
            made |= send(scorer.tick())
            if made:
                noted = _note_counts(scorer, source, metrics, noted)
                save()
        if not stop.wanted:
            send(scorer.close())
        else:
            save()
    finally:
        source.close()
        _note_counts(scorer, source, metrics, noted)
        if isinstance(source, StdinSource) and source.left_out:
            log.warning(
                "lines that are not rows of %s: %d", " or ".join(DEPLOYABLE), source.left_out
            )


def _note_counts(
    scorer: LiveScorer, source: RowSource, metrics: MetricsOutput | None, noted: dict[Any, int]
) -> dict[Any, int]:
    """Say what became of rows that do not count, since it was last said."""
    counts = Counter[str]()
    for found in (scorer.windows.counts, source.lost):
        counts.update(found)
    new = {name: n - noted.get(name, 0) for name, n in counts.items() if n > noted.get(name, 0)}
    if new:
        said = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in new.items())
        log.warning("rows: %s", said)
    if metrics:
        for name, n in counts.items():
            metrics.count(f'rows_not_used_total{{why="{name}"}}', n)
    return counts


def _read_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """Named arrays of a file; None if there is no such file or, with a warning, it holds none."""
    try:
        return unpack_arrays(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s: not used: %s", path, error)
        return None


# --- recordings


def recordings(name: str) -> Iterator[RecordedEpisode]:
    """The episode in a folder of telemetry files, or those in its folders, read one by one.

    Raises:
        UsageError: there is none.
    """
    found = _episode_folders(Path(name))
    if not found:
        raise UsageError(
            f"{name}: must be the folder of an unpacked episode: it has no "
            f"{SOURCES['guest'].file}. Unpack it: tar --zstd -xf EPISODE.tar.zst"
        )
    return map(_recorded, found)


def _recorded(folder: Path) -> RecordedEpisode:
    members = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return RecordedEpisode(folder.resolve().name, _host_of(members), members)


def _episode_folders(folder: Path) -> list[Path]:
    """A folder and those in it, by name, that have telemetry of an episode."""
    folders = (folder, *sorted(folder.glob("*")))
    return [each for each in folders if any((each / name).is_file() for name in _FILES)]


def _host_of(members: Mapping[str, bytes]) -> str:
    """The host that ``meta.json`` names, as for every recording outside a store."""
    try:
        host = parse_json(members[META_FILE])["host_id"]
    except (KeyError, TypeError, ValueError):
        return NO_HOST
    return host if is_host_id(host) else NO_HOST


# --- check and enrol


def run_check(options: argparse.Namespace, _: Any) -> int:
    """Load a bundle, which verifies it, and say what it is and what it costs here."""
    began = time.perf_counter()
    bundle = load_bundle(options.bundle, require_signature=options.require_signature)
    loaded = time.perf_counter() - began
    head = bundle.head
    kept = np.zeros((1, *bundle.input_shape), dtype=np.float32)
    took = []
    for _ in range(50):
        start = time.perf_counter()
        bundle.runtime.proba(kept)
        took.append(1000 * (time.perf_counter() - start))
    lines = [
        f"{bundle.variant}, bundle {bundle.id}",
        f"checkpoint {head['checkpoint_id']}",
        signed_by(head).line,
        f"alarm threshold {bundle.rule.threshold:.3f}",
        *(
            f"macro F1 on recipe {m['recipe']}: {m['value']:.3f}"
            + (f" [{m['low']:.3f}, {m['high']:.3f}]" if m["low"] is not None else "")
            for m in head["metrics"]
            if m["value"] is not None
        ),
        f"verified and loaded in {loaded:.2f} s; a window takes {np.median(took):.2f} ms",
    ]
    print("\n".join(lines))
    return OK


def run_enrol(options: argparse.Namespace, _: Any) -> int:
    """Record clean windows of this machine."""
    bundle = load_bundle(options.bundle)
    window = bundle.layout.window
    n_windows = options.minutes * 60_000 / window.stride_ms
    if not 1 <= n_windows < math.inf:
        raise UsageError(
            f"--minutes must be at least {window.stride_ms / 60_000:.2f}, got {options.minutes}"
        )
    wanted = int(n_windows)
    _check_can_write(options.out)
    machine, windows, stop = MachineSource(), LiveWindows(bundle.layout), _Stop()
    if machine.problem:
        log.warning(machine.problem)
    rows: list[NDArray[np.float32]] = []
    try:
        while len(rows) < wanted and not stop.wanted:
            for name, lines in machine.read():
                for made in windows.push(name, lines):
                    rows.append(made.features)
                    log.info("window %d of %d", len(rows), wanted)
    finally:
        machine.close()
    if not rows:
        log.error("stopped before the first window; nothing is written")
        return stop.code or FAILED
    kept = {"features": np.stack(rows), "contract": np.array(bundle.contract_hash)}
    try:
        write_atomically(options.out, pack_arrays(kept))
    except OSError as error:
        log.error("%s: the baseline cannot be written: %s", options.out, error)
        return FAILED
    log.info("%s: %d windows", options.out, len(rows))
    return OK


def _read_baseline(path: Path, bundle: Bundle) -> NDArray[np.float32]:
    try:
        state = unpack_arrays(path.read_bytes())
    except (OSError, ValueError):
        state = None
    if state is None or not {"features", "contract"} <= state.keys():
        problem = "not a baseline" if path.exists() else "no such file"
        raise UsageError(f"{path}: {problem}. Record one with the command enrol")
    if str(state["contract"]) != bundle.contract_hash:
        raise BundleContractError(str(path), ["it was recorded for another input layout"])
    return state["features"]


def entry() -> NoReturn:
    """The program ``phasewatch-device``."""
    sys.exit(main())
