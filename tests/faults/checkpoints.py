"""Checkpoints and device models by strangers, with hashes that fit: crafted and altered at random.

Each is loaded, verified and asked in a process of its own. It is refused by name, or it gives
probabilities; it takes neither the process down nor all of its time or memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, get_args

import numpy as np
import safetensors.numpy
from tiny import fitted, save

from faults.apart import Limits, apart
from faults.archives import altered
from faults.table import Bench, Outcome, fault
from features.registry import LAYOUT
from live.bundle import pack_arrays, unpack_arrays
from live.runtime import build_runtime, graph_of, try_net
from models.base import NotFiniteError, RuntimeKind
from models.checkpoint import (
    CheckpointError,
    artifact_id,
    checkpoint_path,
    golden_probabilities,
    load_checkpoint,
)
from models.inspection import verify
from models.registry import MODELS, Variant

LIMITS = Limits(cpu_s=30.0, wall_s=60.0, most_bytes=1_500_000_000)
VARIANTS = [Variant(model, "realistic") for model in MODELS]
N_CLASSES = len(LAYOUT.phases)


def make_checkpoints(folder: Path) -> None:
    """One tiny checkpoint of each model, in a process of its own: no thread may outlive it."""

    def make() -> None:
        for variant in VARIANTS:
            save(folder, variant)
            exported = fitted(variant).exported(LAYOUT.window.n_bins)
            content = exported.content
            packed = content if isinstance(content, bytes) else pack_arrays(content)
            (folder / f"{variant.name}.{exported.kind}").write_bytes(packed)

    ended = apart(make, Limits(cpu_s=300, wall_s=300, most_bytes=10**11))
    assert not ended.bad, ended.bad


@cache
def warm(made: Path) -> None:
    """Load libraries and kernels here, once: every fork has them.

    Trees are left out: XGBoost has threads of its own, and they do not come along into a fork.
    """
    for variant in VARIANTS:
        if "xgboost" in variant.spec.libraries:
            import_module(variant.spec.module)
        else:
            use(checkpoint_path(made, variant))


def use(path: Path) -> str:
    """Load, verify and ask a checkpoint; returns why it was refused, or nothing."""
    try:
        checkpoint = load_checkpoint(path, LAYOUT)
        probabilities = golden_probabilities(checkpoint, LAYOUT)
    except (CheckpointError, NotFiniteError) as error:
        probabilities, refused = None, str(error)
    else:
        refused = ""
        verify(path, LAYOUT, [])
    for rows in (probabilities or {}).values():
        assert np.all(np.isfinite(rows)), "a probability is not finite"
        assert np.allclose(np.sum(rows, axis=1), 1, atol=1e-4), "probabilities do not add up to 1"
    return refused


def outcome(work: Callable[[], str], *, must: bool = False) -> Outcome:
    """What became of the use of something hostile; ``must``: it has to be refused."""
    ended = apart(work, LIMITS)
    if ended.bad:
        return ended.bad
    if must and not ended.result:
        return Outcome("wrong", "must be refused, was used")
    return Outcome("noticed" if ended.result else "harmless", ended.result[:300])


def rewrite(path: Path, header: dict[str, Any], sidecar: bytes | None = None) -> None:
    """Write a header, and a sidecar if it is another, with hashes that fit."""
    if sidecar is not None:
        digest = hashlib.sha256(sidecar).hexdigest()
        name = f"{digest[:12]}{Path(header['sidecar']).suffix}"
        (path.parent / name).write_bytes(sidecar)
        header |= {"sidecar": name, "sidecar_sha256": digest, "sidecar_bytes": len(sidecar)}
    header["artifact_id"] = artifact_id(header)
    path.write_text(json.dumps(header), encoding="utf-8")


def opened(bench: Bench, variant: Variant) -> tuple[Path, dict[str, Any], bytes]:
    """A copy of a checkpoint: path and content of its header, content of its sidecar."""
    made = bench.made("checkpoints", make_checkpoints)
    warm(made)
    header = json.loads(checkpoint_path(made, variant).read_bytes())
    sidecar = (made / header["sidecar"]).read_bytes()
    path = checkpoint_path(bench.folder, variant)
    (bench.folder / header["sidecar"]).write_bytes(sidecar)
    return path, header, sidecar


# --- altered at random

EXTREME: list[Any] = [
    0, -1, 1, 2, 0.5, -0.5, 1e-300, 1e300, -1e300, 10**6, 10**9, 2**31 - 1, 2**31, 2**63, 10**400,
    True, False, None, "", "x", "x" * 10_000, "\ud800", "../../etc/passwd", "0", [], {}, [[]],
    [0], [None], [1e300] * 3, {"a": {}}, list(range(10_000)),
]  # fmt: skip


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with every key of it."""
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            found.append((value, key))
            places(value[key], found)
    return found


@fault("hostile checkpoint: altered header", tries=120, quick=3)
def altered_header(bench: Bench) -> Outcome:
    """A few values of the header are others, of any type and size."""
    random = bench.random
    path, header, _ = opened(bench, random.choice(VARIANTS))
    for _ in range(random.choice((1, 1, 2, 5))):
        inside = random.choice((header, header["config"], header["standardize"] or header))
        chosen = [(place, key) for place, key in places(inside, []) if isinstance(place, dict)]
        place, key = random.choice(random.choice((chosen, places(inside, []))))
        place[key] = random.choice(EXTREME)
    try:
        rewrite(path, header)
    except (ValueError, TypeError, KeyError):
        return Outcome("harmless", "cannot be written")
    return outcome(partial(use, path))


ARRAY = re.compile(rb"\[\$([dDUilL])#L(.{8})", re.DOTALL)
SIZES = {b"d": 4, b"D": 8, b"U": 1, b"i": 1, b"l": 4, b"L": 8}


def with_odd_numbers(content: bytes, random: Random, times: int) -> bytes:
    """Trees with a few numbers set to others of the same size."""
    data = bytearray(content)
    arrays = [
        (match.end(), SIZES[match[1]], count)
        for match in ARRAY.finditer(content)
        if (count := int.from_bytes(match[2], "big"))
    ]
    for _ in range(times):
        begin, size, count = random.choice(arrays)
        at = begin + size * random.randrange(count)
        odd = (0, 1, -1, 2, 3, 127, 10**6, 2**31 - 1, -(2**31), random.randrange(2**31))
        number = random.choice(odd) % 2 ** (8 * size)
        data[at : at + size] = number.to_bytes(size, "big")
    return bytes(data)


def with_odd_arrays(content: bytes, random: Random) -> bytes:
    """Weights of another shape or type, or with values that are no weights."""
    arrays = safetensors.numpy.load(content)
    name = random.choice(sorted(arrays))
    return safetensors.numpy.save(arrays | {name: odd_array(arrays[name], random)})


def odd_array(values: np.ndarray, random: Random) -> np.ndarray:
    changed = values.copy()
    flat = changed.reshape(-1)
    match random.randrange(7):
        case 0 if flat.size and changed.dtype.kind == "f":
            flat[random.randrange(flat.size)] = random.choice((np.nan, np.inf, -np.inf, 3e38))
        case 1 if flat.size and changed.dtype.kind in "iu":
            info = np.iinfo(changed.dtype)
            flat[random.randrange(flat.size)] = random.choice((info.min, info.max, 99))
        case 2:
            return changed[:0]
        case 3:
            return changed.reshape(-1)[: max(1, flat.size // 2)]
        case 4:
            return changed.astype(random.choice((np.float64, np.int8, np.uint8, np.bool_)))
        case 5:
            return np.zeros((2, *changed.shape), dtype=changed.dtype)
        case _:
            return np.concatenate([changed.reshape(-1)] * 2)
    return changed


@fault("hostile checkpoint: altered sidecar", tries=220, quick=4)
def altered_sidecar(bench: Bench) -> Outcome:
    """Bytes, numbers or arrays of the sidecar are others."""
    random = bench.random
    variant = random.choice([VARIANTS[0]] * 4 + VARIANTS)  # trees above all
    path, header, sidecar = opened(bench, variant)
    times = random.choice((1, 1, 2, 10, 100))
    if random.randrange(3) == 0:
        content = altered(sidecar, random, times)
    elif variant.model == "gbt":
        content = with_odd_numbers(sidecar, random, times)
    else:
        content = with_odd_arrays(sidecar, random)
    rewrite(path, header, content)
    return outcome(partial(use, path))


# --- crafted


def setting(name: str, value: Any) -> Callable[[dict[str, Any], bytes], bytes]:
    def change(header: dict[str, Any], sidecar: bytes) -> bytes:
        header["config"][name] = value
        return sidecar

    return change


def constant(name: str, value: Any) -> Callable[[dict[str, Any], bytes], bytes]:
    """One of the numbers of a scaling, or all of it if ``value`` is no number."""

    def change(header: dict[str, Any], sidecar: bytes) -> bytes:
        scaling = header["standardize"]
        if isinstance(value, int | float) and isinstance(scaling[name], list):
            scaling[name][0] = value
        else:
            scaling[name] = value
        return sidecar

    return change


def weights(**changes: np.ndarray) -> Callable[[dict[str, Any], bytes], bytes]:
    return lambda _, sidecar: safetensors.numpy.save(safetensors.numpy.load(sidecar) | changes)


def all_weights(value: float) -> Callable[[dict[str, Any], bytes], bytes]:
    def change(_: dict[str, Any], sidecar: bytes) -> bytes:
        arrays = safetensors.numpy.load(sidecar)
        return safetensors.numpy.save(
            {n: np.full_like(v, value) if v.dtype.kind == "f" else v for n, v in arrays.items()}
        )

    return change


def members(**changes: bytes) -> Callable[[dict[str, Any], bytes], bytes]:
    return weights(**{name: np.frombuffer(each, dtype=np.uint8) for name, each in changes.items()})


def replaced(old: bytes, new: bytes) -> Callable[[dict[str, Any], bytes], bytes]:
    def change(_: dict[str, Any], sidecar: bytes) -> bytes:
        assert old in sidecar
        return sidecar.replace(old, new)

    return change


def text(value: str) -> bytes:
    return b"L" + struct.pack(">q", len(value)) + value.encode()


def stated(key: str, old: str, new: str) -> Callable[[dict[str, Any], bytes], bytes]:
    return replaced(text(key) + b"S" + text(old), text(key) + b"S" + text(new))


def looped(_: dict[str, Any], sidecar: bytes) -> bytes:
    """Every first child is the root: a path without end."""
    at = [match.end() for match in re.finditer(rb"left_children\[\$l#L.{8}", sidecar, re.DOTALL)]
    data = bytearray(sidecar)
    for begin in at:
        data[begin : begin + 4] = bytes(4)
    return bytes(data)


ROWS = np.zeros((3, 8), dtype=np.float32)
CRAFTED: dict[str, tuple[str, Callable[[dict[str, Any], bytes], bytes]]] = {
    **{
        f"{model}: {name} {value:g}": (model, setting(name, value))
        for model, names in {
            "gbt": ("n_threads", "max_depth", "n_rounds", "max_bin"),
            "knn": ("n_neighbors", "max_windows"),
            "mlp": ("depth", "width", "n_threads", "n_pieces"),
            "cnn": ("depth", "width", "kernel", "block_bins"),
            "gru": ("depth", "width"),
            "lstm": ("depth", "width"),
            "transformer": ("depth", "width", "n_heads"),
            "ensemble": ("depth", "trees"),
        }.items()
        for name in names
        for value in (0, -1, 10**6 + 1, 2**62)
    },
    **{
        f"{model}: {name} {str(value)[:20]}": (model, constant(name, value))
        for model, name in (("cnn", "std"), ("knn", "std"), ("gru", "mean"), ("mlp", "mean"))
        for value in (-1.0, 0.0, "x", [], [1.0], None, {}, [[1.0]])
        if name == "std" or not isinstance(value, float)
    },
    "cnn: std as in no training": ("cnn", constant("std", 1e-30)),
    "mlp: edges that fall": ("mlp", constant("edges", [[1.0, 0.0]])),
    "cnn: limit 0": ("cnn", constant("limit", 0)),
    "cnn: no scaling": ("cnn", lambda h, s: h.update(standardize=None) or s),
    "gbt: a scaling": ("gbt", lambda h, s: h.update(standardize={"mean": []}) or s),
    "cnn: transform of another": ("cnn", constant("transform", "piecewise_linear")),
    "cnn: blocks of a billion": ("cnn", constant("block_bins", 10**9)),
    **{f"{m}: weights NaN": (m, all_weights(np.nan)) for m in ("mlp", "cnn", "lstm", "knn")},
    **{f"{m}: weights infinite": (m, all_weights(np.inf)) for m in ("transformer", "gru")},
    "mlp: weights that overflow": ("mlp", all_weights(3e38)),
    "ensemble: no trees": ("ensemble", members(trees=b"")),
    "ensemble: no net": ("ensemble", members(net=b"")),
    "ensemble: one member": ("ensemble", lambda *_: safetensors.numpy.save({"net": ROWS[0]})),
    "ensemble: members no bytes": (
        "ensemble",
        lambda *_: safetensors.numpy.save({"net": ROWS, "trees": ROWS}),
    ),
    "ensemble: transform of another": ("ensemble", constant("transform", "piecewise_linear")),
    "knn: no points": ("knn", weights(points=ROWS[:0], y=np.zeros(0, dtype=np.int64))),
    "knn: a class too many": ("knn", weights(points=ROWS, y=np.full(3, 5))),
    "knn: class -1": ("knn", weights(points=ROWS, y=np.full(3, -1))),
    "knn: classes no integers": ("knn", weights(points=ROWS, y=np.zeros(3))),
    "knn: another array": ("knn", lambda *_: safetensors.numpy.save({"a": ROWS})),
    "gbt: path without end": ("gbt", looped),
    "gbt: another objective": ("gbt", replaced(b"multi:softprob", b"multi:softmax_")),
    "gbt: a line for trees": ("gbt", replaced(text("gbtree"), text("gblinear"))),
    "gbt: dropped trees": ("gbt", replaced(text("gbtree"), text("dart"))),
    "gbt: 2 billion classes": ("gbt", stated("num_class", "5", "2000000000")),
    "gbt: -1 classes": ("gbt", stated("num_class", "5", "-1")),
    "gbt: 2 billion targets": ("gbt", stated("num_target", "1", "2000000000")),
    "gbt: 2 billion parallel trees": ("gbt", stated("num_parallel_tree", "1", "2000000000")),
    "gbt: vectors as leaves": ("gbt", stated("size_leaf_vector", "1", "1000000")),
    "gbt: deleted nodes": ("gbt", stated("num_deleted", "0", "2000000000")),
    "gbt: no bytes": ("gbt", lambda *_: b""),
    "gbt: JSON": ("gbt", lambda *_: b'{"learner": {}}'),
    "gbt: deep": ("gbt", lambda *_: b"{" + (text("a") + b"{") * 100_000),
    "gbt: wide": ("gbt", lambda *_: b"{" + text("a") + b"[#L" + struct.pack(">q", 2**62)),
    "gbt: a text of an EiB": ("gbt", lambda *_: b"{L" + struct.pack(">q", 2**60)),
    "mlp: a header of an EiB": ("mlp", lambda *_: struct.pack("<Q", 2**60) + b"{}"),
    "mlp: a deep header": ("mlp", lambda *_: struct.pack("<Q", 10**6) + b"[" * 10**6),
    "mlp: a tensor outside": (
        "mlp",
        lambda *_: (
            h := b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}',
            struct.pack("<Q", len(h)) + h,
        )[1],
    ),
    "mlp: a tensor of an EiB": (
        "mlp",
        lambda *_: (
            h := b'{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,0]}}',
            struct.pack("<Q", len(h)) + h,
        )[1],
    ),
    "mlp: another net's": ("mlp", lambda *_: safetensors.numpy.save({"a": ROWS})),
}
"""Label -> the model whose checkpoint it is, and what changes its header or gives its sidecar."""


@fault("hostile checkpoint: crafted", tries=len(CRAFTED), quick=6)
def crafted(bench: Bench) -> Outcome:
    """Each of ``CRAFTED`` once: all are refused."""
    label = Random(0).sample(list(CRAFTED), len(CRAFTED))[bench.number]
    model, change = CRAFTED[label]
    path, header, sidecar = opened(bench, Variant(model, "realistic"))
    rewrite(path, header, change(header, sidecar))
    did = outcome(partial(use, path), must=True)
    return Outcome(did.verdict, f"{label}: {did.note}")


# --- models for devices


def run(kind: str, content: bytes, scaling: dict[str, Any] | None, input_kind: str) -> str:
    """Load a device's model and ask it; returns why it was refused, or nothing."""
    n = int(LAYOUT.keep_mask("realistic", input_kind).sum())
    shape = (n,) if input_kind == "summary" else (LAYOUT.window.n_bins, n)
    try:
        loaded = content if kind == "onnx" else unpack_arrays(content)
        if graph := graph_of(kind, loaded):
            try_net(graph, scaling, shape, N_CLASSES)
        runtime = build_runtime(kind, loaded, scaling, N_CLASSES, n)
        runtime.proba(np.random.default_rng(0).lognormal(2, 3, (5, *shape)).astype(np.float32))
    except Exception as error:  # ``load_bundle`` makes one error of all
        return f"{type(error).__name__}: {error}"
    return ""


def device_model(bench: Bench, variant: Variant) -> tuple[str, bytes, dict[str, Any] | None]:
    made = bench.made("checkpoints", make_checkpoints)
    header = json.loads(checkpoint_path(made, variant).read_bytes())
    path = next(p for p in made.glob(f"{variant.name}.*") if p.suffix[1:] in KINDS)
    return path.suffix[1:], path.read_bytes(), header["standardize"]


KINDS = get_args(RuntimeKind)


@fault("hostile device model: arrays", tries=80, quick=3)
def altered_arrays(bench: Bench) -> Outcome:
    """Trees, neighbours or an ensemble with other arrays, or other bytes."""
    random = bench.random
    variant = Variant(random.choice(("gbt", "knn", "knn_semi", "ensemble")), "realistic")
    kind, content, scaling = device_model(bench, variant)
    if random.randrange(2):
        content = altered(content, random, random.choice((1, 3, 30)))
    else:
        arrays = unpack_arrays(content)
        name = random.choice(sorted(arrays))
        content = pack_arrays(arrays | {name: odd_array(arrays[name], random)})
    return outcome(partial(run, kind, content, scaling, variant.spec.input_kind))


@fault("hostile device model: bomb", tries=3, quick=1)
def bomb(bench: Bench) -> Outcome:
    """Arrays that unpack to far more than they are."""
    out = io.BytesIO()
    np.savez_compressed(out, left=np.zeros(10**8, dtype=np.float32))
    arrays = [("trees", None), ("neighbours", {}), ("trees", {})][bench.number]
    return outcome(partial(run, arrays[0], out.getvalue(), arrays[1], "summary"), must=True)


@fault("hostile device model: net", tries=24, quick=1)
def altered_net(bench: Bench) -> Outcome:
    """A graph with other bytes."""
    random = bench.random
    variant = Variant(random.choice(("mlp", "cnn", "gru", "lstm", "transformer")), "realistic")
    kind, content, scaling = device_model(bench, variant)
    content = altered(content, random, random.choice((1, 3, 30)))
    return outcome(partial(run, kind, content, scaling, variant.spec.input_kind))
