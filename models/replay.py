"""Whether the code here computes the inputs that the code computed which trained a checkpoint.

Where its digest differs, the golden episodes and the golden scalings are replayed, once for each
digest. Nothing of the contract is read here, and libraries may have other versions, as on a device:
what counts is what comes out.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from config.paths import cache_folder
from episodes.jit import COMPILES
from features import golden
from features.code import PATH, Code, code_of, outdated
from features.contract import GOLDEN_FILE, contract_hashes, file_digest
from features.files import fingerprint, write_atomically
from models import scaling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from features.registry import Layout

SCALING_FILE = GOLDEN_FILE.with_name("scaling.xz")
_TOLERANCE = 1e-5  # of a scaled value, about 1; of constants relative to their size


# --- what a checkpoint records, and what is asked of it


@cache
def _episodes(digest: str) -> dict[str, str]:  # noqa: ARG001, of the file
    return {name: episode.digest for name, episode in golden.read_rules().episodes.items()}


def recorded_code(code: Code) -> dict[str, Any]:
    """The code here and the golden vectors that it was held to, as a header keeps them."""
    rules = file_digest(golden.RULES_FILE)
    return code.as_header() | {
        "golden": {
            "rules": rules,
            "scaling": file_digest(SCALING_FILE),
            "episodes": _episodes(rules),
        }
    }


def input_differences(
    recorded: object,
    layout: Layout,
    code: Code,
    replay: Callable[[Layout], list[str]] | None = None,
) -> list[str]:
    """Why inputs computed here are not those of the recorded code, one line each; empty: they are.

    Args:
        recorded: what ``recorded_code`` gave at training; anything else counts as other code.
        code: the code here, of the same modules.
        replay: replays the golden vectors; ``differences``, unless another is given.
    """
    if not code.changes(recorded):
        return []
    if old := outdated(code.modules):
        return old
    inputs = code_of(PATH) if replay is None else code
    identity = [inputs.as_header(), contract_hashes(layout)]
    replayed = once_passed(identity, lambda: (replay or differences)(layout))
    return [*_rewritten(recorded), *replayed]


def _rewritten(recorded: object) -> list[str]:
    """Golden vectors that are not those of training: other code may have been fitted to them."""
    held = recorded.get("golden") if isinstance(recorded, dict) else None
    if not isinstance(held, dict):
        return []
    lines = []
    if held.get("rules") != file_digest(golden.RULES_FILE):
        was, now = held.get("episodes"), _episodes(file_digest(golden.RULES_FILE))
        lines += [
            f"golden episode {name} is gone or was rewritten since"
            for name, digest in (was if isinstance(was, dict) else {}).items()
            if now.get(name) != digest
        ]
    if held.get("scaling") != file_digest(SCALING_FILE):
        lines.append("the golden scalings were rewritten since")
    return lines


_passed: set[str] = set()


def once_passed(identity: object, replay: Callable[[], list[str]]) -> list[str]:
    """A replay's differences; that there were none is kept, so that it is done once.

    Args:
        identity: of everything that decides the outcome, beside the golden vectors.
    """
    vectors = [file_digest(path) for path in (GOLDEN_FILE, golden.RULES_FILE, SCALING_FILE)]
    compiled = COMPILES and os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
    key = fingerprint([identity, vectors, compiled])
    kept = cache_folder() / "golden" / key
    with suppress(OSError):
        if key in _passed or kept.read_bytes() == key.encode():
            _passed.add(key)
            return []
    lines = replay()
    if not lines:
        _passed.add(key)
        with suppress(OSError):  # it is replayed again next time
            write_atomically(kept, key.encode())
    return lines


def other_layout(layout: Layout) -> bool:
    """Whether the golden vectors are for another layout, so that nothing can be replayed."""
    return bool(golden.read_rules().other_layout(layout))


def differences(layout: Layout) -> list[str]:
    """How the golden vectors come out otherwise here, one line each; empty if they do not.

    First what the short episodes show, with the rule that each exercises, then the recorded ones,
    then scaling.
    """
    return [
        *(found := golden.rule_differences(layout)),
        *([] if found else golden.shard_differences(layout)),
        *golden.differences(layout),
        *scaling_differences(),
    ]


# --- golden scalings


def scaling_differences() -> list[str]:
    """How scaling differs from the committed one, one line for each step."""
    try:
        head, arrays = golden.unpacked(SCALING_FILE)
    except (OSError, ValueError, KeyError) as error:
        return [f"{SCALING_FILE.name} cannot be read: {error}"]
    lines, steps = [], _steps(arrays)
    for name, rule in head["steps"].items():
        try:
            now = steps[name]()
        except Exception as error:  # code that was changed may fail in any way
            lines.append(f"scaling, {name}: {rule}: {type(error).__name__}: {error}")
            continue
        was = arrays[f"out/{name}"]
        if was.shape != now.shape:
            lines.append(f"scaling, {name}: {rule}: shape was {was.shape}, is {now.shape}")
        else:
            off = ~(np.abs(now - was) <= _TOLERANCE * np.maximum(np.abs(was), 1.0))
            off &= ~(np.isnan(was) & np.isnan(now))
            if off.any():
                at = int(np.argmax(off))
                lines.append(
                    f"scaling, {name}: {rule}: {np.count_nonzero(off)} of {off.size} values, "
                    f"number {at} was {was.flat[at]:.7g}, is {now.flat[at]:.7g}"
                )
    return lines


_RULES = {
    "logarithm": "a value becomes sign(x) log(1 + |x|)",
    "mean": "the training mean is subtracted",
    "std": "it is divided by the training deviation",
    "missing": "a missing value becomes 0 after scaling",
    "limit": "scaled values are clipped",
    "blocks": "mean and deviation of blocks of bins are taken before the logarithm",
    "last block": "a last block that is cut off is used as it is",
    "missing in blocks": "missing values are left out of a block",
    "pieces": "an input becomes one column per interval: 0 below it, 1 above it, linear within",
    "steps": "an interval without width is a step",
    "missing in pieces": "a missing value becomes 0 after scaling",
    "fitted mean": "mean over the training values present",
    "fitted deviation": "deviation over the training values present",
    "constant": "a constant input is not amplified",
    "fitted blocks": "mean and deviation over the blocks of training",
    "fitted pieces": "intervals hold equally many training values each",
    "fitted pieces' mean": "mean of each interval's column over training",
    "typical": "a typical input is the median where the scaling has it",
    "shapes": "how many inputs a scaling takes, and columns it gives",
    "axes": "principal axes of the scaled training inputs",
    "axes of windows": "windows of a tensor enter the axes by their means",
}
"""Step of scaling -> what it does."""

_LIMIT, _BINS, _PIECES = 2.5, 10, 6


# Long, because every step of scaling is listed here.
def _steps(x: dict[str, NDArray[Any]]) -> dict[str, Callable[[], NDArray[Any]]]:
    """Each step on committed inputs: ``plain (n, n_inputs)``, ``some`` with values missing,
    ``tensor (n, n_timepoints, n_inputs)``, and constants that are not fitted here.
    """
    plain, some, tensor = x["in/plain"], x["in/some"], x["in/tensor"]
    n, n_channels = plain.shape[1], tensor.shape[2]

    def signed(mean: Any, std: Any, *, bins: int = 1, limit: float | None = None) -> dict[str, Any]:
        wide = n if bins == 1 else 2 * n_channels
        return {
            "transform": "signed_log1p", "block_bins": bins, "limit": limit,
            "mean": np.broadcast_to(mean, wide).tolist(),
            "std": np.broadcast_to(std, wide).tolist(),
        }  # fmt: skip

    neutral = signed(0.0, 1.0)
    pieces = {
        "transform": "piecewise_linear", "edges": x["in/edges"].tolist(),
        "mean": x["in/piece means"].tolist(),
    }  # fmt: skip
    flat = {**pieces, "edges": np.repeat(x["in/edges"][:, 2:3], _PIECES + 1, axis=1).tolist()}
    blocks = signed(0.0, 1.0, bins=_BINS)
    short, whole = tensor[:, : _BINS + 3], tensor[:, : 2 * _BINS]
    filled = np.nan_to_num(whole)
    fits: dict[str, Callable[[], dict[str, Any]]] = {
        "plain": lambda: scaling.fit_scaling(some, limit=_LIMIT),
        "blocks": lambda: scaling.fit_scaling(tensor, block_bins=_BINS, limit=_LIMIT),
        "pieces": lambda: scaling.fit_piecewise_linear(some, _PIECES),
    }

    def shapes() -> NDArray[Any]:
        each = (neutral, blocks, pieces)
        counts = [(scaling.raw_inputs(s), scaling.scaled_columns(s)) for s in each]
        kept = [(s["block_bins"], s["limit"]) for s in (fits["plain"](), fits["blocks"]())]
        return np.array([*counts, *kept], dtype=np.float64)

    return {
        "logarithm": lambda: scaling.scale(plain, neutral),
        "mean": lambda: scaling.scale(plain, signed(np.arange(n) - 2.5, 1.0)),
        "std": lambda: scaling.scale(plain, signed(0.0, np.arange(n) / 3 + 0.2)),
        "missing": lambda: scaling.scale(some, signed(1.5, 1.0)),
        "limit": lambda: scaling.scale(plain, signed(0.0, 0.5, limit=_LIMIT)),
        "blocks": lambda: scaling.scale(filled, blocks),
        "last block": lambda: scaling.scale(np.nan_to_num(short), blocks),
        "missing in blocks": lambda: scaling.scale(tensor, blocks),
        "pieces": lambda: scaling.scale(plain, pieces),
        "steps": lambda: scaling.scale(plain, flat),
        "missing in pieces": lambda: scaling.scale(some, pieces),
        "fitted mean": lambda: np.array(fits["plain"]()["mean"]),
        "fitted deviation": lambda: np.array(fits["plain"]()["std"])[:-2],
        "constant": lambda: np.array(fits["plain"]()["std"])[-2:],
        "fitted blocks": lambda: np.array([fits["blocks"]()[part] for part in ("mean", "std")]),
        "fitted pieces": lambda: np.array(fits["pieces"]()["edges"]),
        "fitted pieces' mean": lambda: np.array(fits["pieces"]()["mean"]),
        "typical": lambda: np.concatenate(
            [scaling.typical(each) for each in (neutral, blocks, pieces, fits["pieces"]())]
        ),
        "shapes": shapes,
        "axes": lambda: scaling.principal_axes(some),
        "axes of windows": lambda: scaling.principal_axes(tensor),
    }


def _inputs() -> Iterator[tuple[str, NDArray[Any]]]:
    """Values over nine decades, of both signs; the last two inputs are constant and missing."""
    draw = np.random.default_rng(8)
    plain = draw.choice([-1.0, 1.0, 1.0], (40, 9)) * 10.0 ** draw.uniform(-2, 7, (40, 9))
    plain[draw.random(plain.shape) < 0.15] = 0.0
    yield "plain", plain.astype(np.float32)
    some = np.where(draw.random(plain.shape) < 0.2, np.nan, plain)
    some[:, -2], some[:, -1] = 7.25, np.nan
    yield "some", some.astype(np.float32)
    steps = draw.integers(0, 5, (36, 25, 4)) * np.array([1.0, 100.0, -3.0, 1e5])
    steps[draw.random(steps.shape) < 0.1] = np.nan
    steps[3, :10, 1] = np.nan  # a block without any value
    yield "tensor", steps.astype(np.float32)
    edges = np.sort(draw.normal(0.0, 1e3, (9, _PIECES + 1)), axis=1)
    edges[4, 3] = edges[4, 2]
    yield "edges", edges
    yield "piece means", draw.random(9 * _PIECES)


def _write() -> str:
    inputs = {f"in/{name}": values for name, values in _inputs()}
    outputs = {f"out/{name}": step() for name, step in _steps(inputs).items()}
    content = golden.packed({"steps": _RULES}, inputs | outputs)
    write_atomically(SCALING_FILE, content)
    return f"wrote {SCALING_FILE}: {len(outputs)} steps, {len(content):,} bytes"


if __name__ == "__main__":
    print(_write())
