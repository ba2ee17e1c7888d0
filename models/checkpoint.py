"""Checkpoints: a JSON header that says what the model eats, and a sidecar with what it learned.

``load_checkpoint`` is the only way in. It refuses a model whose input contract is not the one in
force, whatever the orchestrator let through, and it runs no code from disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import stat
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from features.contract import Contract, contract_of, diff_contracts, golden_digest
from features.files import fingerprint, write_atomically
from features.golden import REWRITE, read_golden
from features.windows import window_views
from models.base import Classifier, NotFittedError
from models.registry import MODELS, Variant, model_config, variant

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from features.registry import Layout

VERSION = 2
SUFFIX = ".ckpt.json"
MAX_HEADER_BYTES = 2**20
MAX_SIDECAR_BYTES = 2**30
MAX_DEPTH = 16
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "version": int,
    "name": str,
    "mode": str,
    "input_kind": str,
    "schema_hash": str,
    "n_classes": int,
    "phases": list,
    "keep_mask": list,
    "standardize": (dict, type(None)),
    "sidecar": object,  # checked by itself
    "sidecar_sha256": str,
    "sidecar_bytes": int,
    "pca_proj": list,
    "golden": dict,
    "config": dict,
    "contract": dict,
    "contract_hash": str,
    "train_meta": dict,
    "artifact_id": str,
}
_GOLDEN_DIGITS = 6
_SIDECAR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message names the file and says what to do."""


class ContractMismatchError(CheckpointError):
    """The live input contract is not the one a checkpoint was trained under."""

    def __init__(self, what: str, differences: list[str], remedy: str):
        self.differences = differences
        listed = "\n".join(f"  - {line}" for line in differences)
        super().__init__(f"{what} was made for another input layout:\n{listed}\n{remedy}")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: its header and the fitted model."""

    header: dict[str, Any]
    model: Classifier

    @property
    def variant(self) -> Variant:
        return variant(self.header["name"], self.header["mode"])

    @property
    def artifact_id(self) -> str:
        return self.header["artifact_id"]

    def predict_episode(
        self, series: NDArray[np.float32], features: NDArray[np.float32], layout: Layout
    ) -> NDArray[np.float32]:
        """Probabilities ``(n_windows, n_classes)`` of the windows of one episode.

        ``series`` is ``(n_bins, n_channels)`` and ``features`` ``(n_windows, n_features)``, over
        every input of the layout; what the mode may not see is left out here.
        """
        summary = self.header["input_kind"] == "summary"
        every = features if summary else window_views(series, layout.window)
        return self.model.predict_proba(every[..., np.array(self.header["keep_mask"], dtype=bool)])


def checkpoint_path(folder: Path, which: Variant) -> Path:
    return folder / f"{which.name}{SUFFIX}"


def save_checkpoint(
    folder: Path,
    which: Variant,
    model: Classifier,
    layout: Layout,
    *,
    pca_proj: NDArray[np.float64],
    train_meta: dict[str, Any],
) -> dict[str, Any]:
    """Write ``<model>_<mode>.ckpt.json`` and its sidecar to ``folder``; returns the header.

    The sidecar carries its hash in its name and is written first, the header last, each by one
    rename: a kill at any moment leaves the old checkpoint or the new one. The golden probabilities
    are those of the model as loading rebuilds it, so what cannot be loaded is not written.

    Raises:
        NotFittedError: the model was never fitted.
        CheckpointError: the sidecar cannot be rebuilt, or the header is too large.
    """
    if model.n_inputs_ is None:
        raise NotFittedError(f"{which.name} is not fitted: nothing to save")
    sidecar = model.to_sidecar()
    digest = hashlib.sha256(sidecar).hexdigest()
    sidecar_name = f"{which.name}.{digest[:12]}{model.sidecar_suffix}"
    input_kind = which.spec.input_kind
    contract = contract_of(layout, input_kind)
    header: dict[str, Any] = {
        "version": VERSION,
        "name": which.model,
        "mode": which.mode,
        "input_kind": input_kind,
        "schema_hash": layout.schema_hash(input_kind),
        "n_classes": len(layout.phases),
        "phases": list(layout.phases),
        "keep_mask": layout.keep_mask(which.mode, input_kind).tolist(),
        "standardize": model.standardize_,
        "sidecar": sidecar_name,
        "sidecar_sha256": digest,
        "sidecar_bytes": len(sidecar),
        "pca_proj": pca_proj.tolist(),
        "config": asdict(model.config),
        "contract": contract.as_header(),
        "contract_hash": contract.hash,
        "train_meta": train_meta,
    }
    rebuilt = Checkpoint(header, _rebuild(header, sidecar, which.name))
    header["golden"] = {
        "sha256": golden_digest(),
        "proba": golden_probabilities(rebuilt, layout),
    }
    header["artifact_id"] = artifact_id(header)
    text = json.dumps(header, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(f"{which.name}: the header has {len(text):,} bytes, over 1 MiB")
    path = checkpoint_path(folder, which)
    write_atomically(folder / sidecar_name, sidecar)
    write_atomically(path, text)
    for stray in folder.glob(f"{which.name}.*"):  # of an earlier training, or a killed one
        if stray.name not in (path.name, sidecar_name):
            stray.unlink()
    return header


def golden_probabilities(checkpoint: Checkpoint, layout: Layout) -> dict[str, Any] | None:
    """What a checkpoint says of the committed golden vectors, by episode, in six decimals.

    None where they were made for other inputs than those of ``layout``.
    """
    golden = read_golden(layout)
    if golden is None:
        logging.getLogger("phasewatch").warning(
            "the golden vectors are of another layout, so checkpoints cannot be verified; %s, "
            "then retrain",
            REWRITE,
        )
        return None
    return {
        episode_id: [
            [round(float(p), _GOLDEN_DIGITS) for p in row]
            for row in checkpoint.predict_episode(frozen.series, frozen.features, layout)
        ]
        for episode_id, frozen in golden.items()
    }


def artifact_id(header: dict[str, Any]) -> str:
    """Hash of a whole header without itself; floats in their shortest round-trip form."""
    rest = {key: value for key, value in header.items() if key != "artifact_id"}
    return hashlib.sha256(b"phasewatch/header/v1\0" + fingerprint(rest).encode()).hexdigest()


def read_header(path: Path) -> dict[str, Any]:
    """Read and check a header; the sidecar is not touched and contracts are not compared.

    Raises:
        CheckpointError: it is absent, a link, too large, no header, or was changed after writing.
    """
    text = _read_file(path, MAX_HEADER_BYTES)
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
        _check_depth(header)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a checkpoint header: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: not a checkpoint header: no JSON object")
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: header version {header.get('version')!r}, this phasewatch reads {VERSION}; "
            "retrain"
        )
    missing = [name for name in _FIELDS if name not in header]
    if missing:
        raise CheckpointError(f"{path}: the header lacks {', '.join(missing)}; retrain")
    if artifact_id(header) != header["artifact_id"]:
        raise CheckpointError(
            f"{path}: the header was changed after it was written (its artifact_id does not fit); "
            "restore the file or retrain"
        )
    for name, kinds in _FIELDS.items():
        if not isinstance(header[name], kinds) or isinstance(header[name], bool):
            raise CheckpointError(f"{path}: {name} is {type(header[name]).__name__}")
    if not (isinstance(header["sidecar"], str) and _SIDECAR_NAME.fullmatch(header["sidecar"])):
        raise CheckpointError(
            f"{path}: sidecar {header['sidecar']!r} is not a file beside the header"
        )
    return header


def load_checkpoint(path: Path, layout: Layout) -> Checkpoint:
    """Load a checkpoint for inputs of ``layout``.

    In this order: header read and checked, sidecar read once and hashed, contracts compared
    section by section, then the hashed bytes parsed and the model rebuilt.

    Raises:
        ContractMismatchError: the layout differs from the one trained on; lists every difference.
        CheckpointError: a file is absent, changed, swapped or not parseable.
    """
    header = read_header(path)
    sidecar = read_sidecar(path, header)
    check_contract(header, layout, str(path))
    return Checkpoint(header, _rebuild(header, sidecar, str(path)))


def read_sidecar(path: Path, header: dict[str, Any]) -> bytes:
    """The sidecar's bytes, if they are those that were trained.

    Raises:
        CheckpointError: it is absent, a link, too large, or has other bytes.
    """
    beside = path.parent / header["sidecar"]
    if not beside.exists():
        raise CheckpointError(
            f"{beside}: the sidecar of {path.name} is not beside it; copy both, or retrain"
        )
    sidecar = _read_file(beside, MAX_SIDECAR_BYTES)
    if len(sidecar) != header["sidecar_bytes"]:
        raise CheckpointError(
            f"{beside}: not the bytes that were trained ({len(sidecar):,} bytes, the header says "
            f"{header['sidecar_bytes']:,}); restore the file or retrain"
        )
    if hashlib.sha256(sidecar).hexdigest() != header["sidecar_sha256"]:
        raise CheckpointError(
            f"{beside}: not the bytes that were trained (sha256 differs from the "
            "header's); restore the file or retrain"
        )
    return sidecar


def _rebuild(header: dict[str, Any], sidecar: bytes, what: str) -> Classifier:
    try:
        config = model_config(header["name"], header["config"])
        model = MODELS[header["name"]].build(config, header["n_classes"], device="cpu")
        model.restore(sidecar, sum(header["keep_mask"]), header["standardize"])
    except Exception as error:
        raise CheckpointError(
            f"{what}: the sidecar has the right hash but cannot be rebuilt "
            f"({type(error).__name__}: {error}); retrain"
        ) from error
    return model


def check_contract(header: dict[str, Any], layout: Layout, what: str) -> None:
    """Refuse a header whose contract is not the live one.

    Raises:
        ContractMismatchError: lists every difference and what to do.
        CheckpointError: see ``contract_differences``.
    """
    differences = contract_differences(header, layout, what)
    if differences:
        raise ContractMismatchError(what, differences, remedy(header))


def remedy(header: dict[str, Any]) -> str:
    """What to do about a checkpoint of another layout."""
    retrain = f"Retrain {header['name']}_{header['mode']}"
    commit, _, dirty = str(header["train_meta"].get("code_commit", "unknown")).partition("-")
    if commit == "unknown":
        return f"{retrain}; the commit that wrote it is not known."
    note = f"{commit[:7]}, which had uncommitted changes" if dirty else commit[:7]
    return f"{retrain}, or check out the registry that wrote it (commit {note})."


def contract_differences(header: dict[str, Any], layout: Layout, what: str) -> list[str]:
    """Every difference between a header's contract and the live one, a line each.

    Raises:
        CheckpointError: the header's sections do not have the hashes it states, or it names no
            known model.
    """
    try:
        which = variant(header["name"], header["mode"])
        trained = Contract({n: section["value"] for n, section in header["contract"].items()})
        stated = {name: section["hash"] for name, section in header["contract"].items()}
        sound = trained.hashes == stated and trained.hash == header["contract_hash"]
        live = contract_of(layout, which.spec.input_kind)
        differences = diff_contracts(trained.sections, live.sections)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{what}: the header's contract is malformed: {error!r}") from error
    if not sound:
        raise CheckpointError(f"{what}: the contract's sections do not have the hashes it states")
    if differences:
        return differences
    if trained.hash != live.hash:  # 1 where True was, say: equal to Python, not in JSON
        return [f"section {n} has another hash" for n in live.hashes if live.hashes[n] != stated[n]]
    expected = {
        "input_kind": which.spec.input_kind,
        "schema_hash": layout.schema_hash(which.spec.input_kind),
        "phases": list(layout.phases),
        "n_classes": len(layout.phases),
        "keep_mask": layout.keep_mask(which.mode, which.spec.input_kind).tolist(),
    }
    return [
        f"{name} was {header[name]}, is {value}"
        for name, value in expected.items()
        if fingerprint(header[name]) != fingerprint(value)
    ]


def _read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file, never through a link."""
    try:
        # without O_NONBLOCK, opening a pipe would wait for its writer
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint file; train it first") from None
    except OSError as error:
        raise CheckpointError(f"{path}: not opened ({error.strerror}; links are refused)") from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise CheckpointError(f"{path}: not a regular file")
    with os.fdopen(handle, "rb") as file:
        content = file.read(min(status.st_size, limit) + 1)
    if len(content) > limit:
        raise CheckpointError(f"{path}: over {limit:,} bytes")
    return content


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice")
    return value


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is not finite")
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        _check_depth(item, depth + 1)
