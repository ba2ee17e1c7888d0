"""Checkpoints: a JSON header that describes the model's input, and a sidecar with its weights.

``load_checkpoint`` is the only way in. It refuses a model whose input contract is not the one in
force, whatever the orchestrator let through, and it runs no code from disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from config.errors import PhasewatchError
from config.signing import SIGNATURE, Signed, distrust, parse_json, signature_of, signed
from features.code import MODEL_PATH, PATH, Code, code_of
from features.contract import GOLDEN_FILE, Contract, contract_of, diff_contracts, golden_digest
from features.files import fingerprint, read_regular, write_atomically
from features.golden import REWRITE, read_golden
from features.registry import Layout
from features.relative import episode_inputs
from models.base import Classifier, Inputs, NotFittedError
from models.registry import MODELS, Variant, find_variant, model_config
from models.replay import input_differences, once_passed, recorded_code

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
    "sidecar": object,  # checked separately
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
_OPTIONAL: dict[str, type] = {"code": dict}  # earlier headers have none
_GOLDEN_DIGITS = 6
PROBABILITY_TOLERANCE = 1e-4
"""Another order of summation moves a probability by about 1e-6; swapping two channels moves one by
at least 6e-3 (measured on the golden vectors, with convolutions and trees)."""
_SIDECAR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class CheckpointError(PhasewatchError):
    """A checkpoint cannot be used; the message names the file and says what to do."""


class MissingLibraryError(CheckpointError):
    """A checkpoint cannot be rebuilt here: the library of its model is not installed."""


class ContractMismatchError(CheckpointError):
    """The live input contract is not the one a checkpoint was trained under."""

    says: ClassVar[str] = "it was trained for another input layout"

    def __init__(self, place: str, differences: list[str], remedy: str):
        self.differences = differences
        lines = "\n".join(f"  - {line}" for line in differences)
        super().__init__(f"{place}: contract mismatch: {self.says}\n{lines}\n{remedy}")


class CodeChangedError(ContractMismatchError):
    """The code here does not compute the inputs that something was made from."""

    says = "the code here does not compute the same inputs as the code that it was made with"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: its header and the fitted model."""

    header: dict[str, Any]
    model: Classifier

    def __repr__(self) -> str:
        return f"<checkpoint {self.variant.name} {self.artifact_id[:12]}>"

    @property
    def variant(self) -> Variant:
        return find_variant(self.header["name"], self.header["mode"])

    @property
    def artifact_id(self) -> str:
        return self.header["artifact_id"]

    def predict_episode(
        self, series: NDArray[np.float32], features: NDArray[np.float32], layout: Layout
    ) -> NDArray[np.float32]:
        """Probabilities ``(n_windows, n_classes)`` of the windows of one episode.

        ``series`` is ``(n_bins, n_channels)`` and ``features`` ``(n_windows, n_features)``, with
        every input of the layout; inputs that the mode may not see are dropped here.
        """
        return self.model.predict_proba(self.inputs(series, features, layout))

    def explain(self, X: Inputs, layout: Layout) -> NDArray[np.float64]:
        """How much each channel argues for the predicted phase, ``(n_windows, n_channels)``.

        0 for a channel that the mode may not see.

        Args:
            X: the model's inputs of windows.
        """
        channel = layout.channel_of(self.variant.mode, self.variant.spec.input_kind)
        out = np.zeros((len(X), len(layout.channels)))
        found = self.model.contributions(X, channel)
        out[:, : found.shape[1]] = found
        return out

    def inputs(
        self, series: NDArray[np.float32], features: NDArray[np.float32], layout: Layout
    ) -> NDArray[np.float32]:
        """The model's inputs of the windows of one episode; see ``predict_episode``."""
        inputs = episode_inputs(self.variant.spec.input_kind, series, features, layout)
        return inputs[..., np.array(self.header["keep_mask"], dtype=bool)]


def checkpoint_path(folder: Path, variant: Variant) -> Path:
    return folder / f"{variant.name}{SUFFIX}"


# Long, because it puts one header together, field by field.
def save_checkpoint(
    folder: Path,
    variant: Variant,
    model: Classifier,
    layout: Layout,
    *,
    pca_proj: NDArray[np.float64],
    train_meta: dict[str, Any],
) -> dict[str, Any]:
    """Write ``<model>_<mode>.ckpt.json`` and its sidecar to ``folder``; returns the header.

    The sidecar has its hash in its name and is written first, the header last, each by one rename:
    a kill at any moment leaves the old checkpoint or the new one. The golden probabilities are
    those of the model as loading rebuilds it, so what cannot be loaded is not written.

    Raises:
        NotFittedError: the model is not fitted.
        CheckpointError: the sidecar cannot be rebuilt, or the header is too large.
    """
    if model.n_inputs_ is None:
        raise NotFittedError(f"{variant.name} is not fitted; call fit before saving")
    sidecar = model.to_sidecar()
    digest = hashlib.sha256(sidecar).hexdigest()
    sidecar_name = f"{variant.name}.{digest[:12]}{model.sidecar_suffix}"
    input_kind = variant.spec.input_kind
    contract = contract_of(layout, input_kind)
    header: dict[str, Any] = {
        "version": VERSION,
        "name": variant.model,
        "mode": variant.mode,
        "input_kind": input_kind,
        "schema_hash": layout.schema_hash(input_kind),
        "n_classes": len(layout.phases),
        "phases": list(layout.phases),
        "keep_mask": layout.keep_mask(variant.mode, input_kind).tolist(),
        "standardize": model.standardize_,
        "sidecar": sidecar_name,
        "sidecar_sha256": digest,
        "sidecar_bytes": len(sidecar),
        "pca_proj": pca_proj.tolist(),
        "config": asdict(model.config),
        "contract": contract.as_header(),
        "contract_hash": contract.hash,
        "code": recorded_code(_code_of(variant)),
        "train_meta": train_meta,
    }
    rebuilt = Checkpoint(header, _rebuild(header, sidecar, variant.name))
    header["golden"] = {
        "sha256": golden_digest(),
        "proba": golden_probabilities(rebuilt, layout),
    }
    header["artifact_id"] = artifact_id(header)
    if signature := signature_of("checkpoint", header["artifact_id"]):
        header[SIGNATURE] = signature
    text = _header_text(header)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{variant.name}: the header must be at most {MAX_HEADER_BYTES:,} bytes, "
            f"got {len(text):,}; shorten train_meta"
        )
    path = checkpoint_path(folder, variant)
    write_atomically(folder / sidecar_name, sidecar)
    write_atomically(path, text)
    for stray in folder.glob(f"{variant.name}.*"):  # left by an earlier or a killed training
        if stray.name not in (path.name, sidecar_name):
            stray.unlink()
    return header


def golden_probabilities(checkpoint: Checkpoint, layout: Layout) -> dict[str, Any] | None:
    """A checkpoint's probabilities for the golden vectors, by episode, to six decimals.

    None if the vectors were made for other inputs than those of ``layout``.
    """
    golden = read_golden(layout)
    if golden is None:
        logging.getLogger("phasewatch").warning(
            "the golden vectors are for another layout, so checkpoints cannot be verified; %s, "
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


def probability_differences(checkpoint: Checkpoint, layout: Layout, place: str) -> list[str]:
    """How a model scores the golden vectors otherwise than its header says, one line each.

    Raises:
        CheckpointError: the header's probabilities are malformed.
    """
    stored = _stored_probabilities(place, checkpoint.header["golden"])
    if checkpoint.header["golden"]["sha256"] != golden_digest():
        return ["the header's probabilities are for another golden file; retrain"]
    if stored is None:
        return [
            f"no golden probabilities: {GOLDEN_FILE.name} was for another layout when this was "
            f"trained; {REWRITE}, then retrain"
        ]
    scored = golden_probabilities(checkpoint, layout)
    return _compared(stored, scored, layout) if scored else []


def _stored_probabilities(place: str, stored: dict[str, Any]) -> dict[str, Any] | None:
    try:
        if stored["proba"] is None:
            return None
        return {i: np.array(rows, dtype=np.float64) for i, rows in stored["proba"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{place}: golden is malformed: {error!r}; retrain") from error


def _compared(was: dict[str, Any], now: dict[str, Any], layout: Layout) -> list[str]:
    lines = [
        f"{extra}: must be scored at training and now, but one is missing"
        for extra in sorted(was.keys() ^ now.keys())
    ]
    for episode_id in sorted(was.keys() & now.keys()):
        before, after = was[episode_id], np.array(now[episode_id])
        if before.shape != after.shape:
            lines.append(
                f"{episode_id}: shape of probabilities was {before.shape}, is {after.shape}"
            )
            continue
        off = ~(np.abs(after - before) <= PROBABILITY_TOLERANCE)
        lines += [
            f"{episode_id}: window {w}: probability of {layout.phases[c]} was {before[w, c]:.6f}, "
            f"is {after[w, c]:.6f} ({after[w, c] - before[w, c]:+.2g})"
            for w, c in np.argwhere(off)
        ]
    return lines


def artifact_id(header: dict[str, Any]) -> str:
    """Hash of a header, itself and a signature of it left out.

    Floats are in their shortest round-trip form.
    """
    rest = {k: value for k, value in header.items() if k not in ("artifact_id", SIGNATURE)}
    return hashlib.sha256(b"phasewatch/header/v1\0" + fingerprint(rest).encode()).hexdigest()


def read_header(path: Path) -> dict[str, Any]:
    """Read and check a header; the sidecar is not touched and contracts are not compared.

    Raises:
        CheckpointError: it is missing, a symlink, too large, not a header, or was changed later.
    """
    text = _read_file(path, MAX_HEADER_BYTES)
    try:
        header = parse_json(text)
        if not isinstance(header, dict):
            raise ValueError(f"must be a JSON object, got {type(header).__name__}")
        _check_depth(header)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: not a checkpoint header: it {error}; restore the file or retrain"
        ) from error
    if header.get("version") != VERSION:
        found = repr(header["version"]) if "version" in header else "none"
        raise CheckpointError(f"{path}: header version must be {VERSION}, got {found}; retrain")
    missing = [name for name in _FIELDS if name not in header]
    if missing:
        raise CheckpointError(f"{path}: header has no field {', '.join(missing)}; retrain")
    if artifact_id(header) != header["artifact_id"]:
        raise CheckpointError(
            f"{path}: header was changed after it was written (artifact_id does not match); "
            "restore the file or retrain"
        )
    if why := distrust(signed_by(header), required=False):
        raise CheckpointError(f"{path}: {why}; restore the file or retrain")
    optional = {name: kind for name, kind in _OPTIONAL.items() if name in header}
    for name, kinds in (_FIELDS | optional).items():
        if not isinstance(header[name], kinds) or isinstance(header[name], bool):
            raise CheckpointError(
                f"{path}: {name} has the wrong type, got {type(header[name]).__name__}; retrain"
            )
    if not (isinstance(header["sidecar"], str) and _SIDECAR_NAME.fullmatch(header["sidecar"])):
        raise CheckpointError(
            f"{path}: sidecar must be a file name in the same folder, got {header['sidecar']!r}; "
            "retrain"
        )
    return header


def signed_by(header: dict[str, Any]) -> Signed:
    """Who signed a header, and with it the sidecar, whose hash is in it."""
    return signed("checkpoint", header.get("artifact_id"), header.get(SIGNATURE))


def sign_header(path: Path) -> None:
    """Sign a header that no trusted key has signed yet; nothing else in it changes.

    Raises:
        CheckpointError: see ``read_header``.
    """
    header = read_header(path)
    signature = signature_of("checkpoint", header["artifact_id"])
    if signature and signed_by(header).state != "holds":
        write_atomically(path, _header_text(header | {SIGNATURE: signature}))


def _header_text(header: dict[str, Any]) -> bytes:
    return json.dumps(header, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def load_checkpoint(path: Path, layout: Layout) -> Checkpoint:
    """Load a checkpoint for inputs of ``layout``.

    In this order: read and check the header, read the sidecar once and hash it, compare contracts
    section by section, replay the golden vectors if the code is not that of training, then parse
    the hashed bytes and rebuild the model.

    Raises:
        ContractMismatchError: the layout differs from the one trained on, or the code computes
            other inputs; lists every difference.
        MissingLibraryError: the model's library is not installed.
        CheckpointError: a file is missing, changed, swapped or cannot be parsed.
    """
    header = read_header(path)
    sidecar = read_sidecar(path, header)
    check_contract(header, layout, str(path))
    variant = find_variant(header["name"], header["mode"])
    _check_library(variant, str(path))
    recorded, code = header.get("code"), _code_of(variant)
    check_code(recorded, layout, code, str(path), f"retrain {variant.name}")
    checkpoint = Checkpoint(header, _rebuild(header, sidecar, str(path)))
    if code.changes(recorded) and header["golden"].get("proba") is not None:
        identity = [code.as_header(), header["artifact_id"]]
        lines = once_passed(
            identity, lambda: probability_differences(checkpoint, layout, str(path))
        )
        if lines:
            raise CodeChangedError(
                str(path), lines, _undo(code, recorded, f"retrain {variant.name}")
            )
    return checkpoint


def _check_library(variant: Variant, place: str) -> None:
    missing = [name for name in variant.spec.libraries if find_spec(name) is None]
    if missing:
        raise MissingLibraryError(
            f"{place}: {variant.name} needs {' and '.join(missing)}, which is not installed; "
            "install the extra: pip install 'phasewatch[train]'"
        )


def _code_of(variant: Variant) -> Code:
    """The code between an episode and a variant's probabilities."""
    return code_of((*PATH, *MODEL_PATH), variant.spec.libraries)


def read_sidecar(path: Path, header: dict[str, Any]) -> bytes:
    """The sidecar's bytes, if they are the ones that the header was written with.

    Raises:
        CheckpointError: it is missing, a symlink, too large, or has other bytes.
    """
    sidecar_path = path.parent / header["sidecar"]
    if not sidecar_path.exists():
        raise CheckpointError(
            f"{sidecar_path}: sidecar of {path.name} is missing; copy both files, or retrain"
        )
    sidecar = _read_file(sidecar_path, MAX_SIDECAR_BYTES)
    for problem, expected, actual in (
        ("size", header["sidecar_bytes"], len(sidecar)),
        ("sha256", header["sidecar_sha256"], hashlib.sha256(sidecar).hexdigest()),
    ):
        if actual != expected:
            raise CheckpointError(
                f"{sidecar_path}: not the sidecar saved with this header: {problem} must be "
                f"{expected}, got {actual}; restore the file or retrain"
            )
    return sidecar


def _rebuild(header: dict[str, Any], sidecar: bytes, place: str) -> Classifier:
    try:
        config = model_config(header["name"], header["config"])
        model = MODELS[header["name"]].build(config, header["n_classes"], device="cpu")
        model.restore(sidecar, sum(header["keep_mask"]), header["standardize"])
    except MemoryError:  # no fault of the checkpoint
        raise
    except Exception as error:
        raise CheckpointError(
            f"{place}: the sidecar has the right hash but cannot be rebuilt "
            f"({type(error).__name__}: {error}); retrain"
        ) from error
    return model


def check_contract(header: dict[str, Any], layout: Layout, place: str) -> None:
    """Refuse a header whose contract is not the live one.

    Raises:
        ContractMismatchError: lists every difference and what to do.
        CheckpointError: see ``contract_differences``.
    """
    differences = contract_differences(header, layout, place)
    if differences:
        raise ContractMismatchError(place, differences, remedy(header))


def check_code(recorded: object, layout: Layout, code: Code, place: str, otherwise: str) -> None:
    """Refuse what was made by code that computed other inputs than the code here.

    Args:
        recorded: see ``recorded_code``; nothing recorded counts as other code.
        otherwise: what to do if the change is meant.

    Raises:
        CodeChangedError: lists what comes out otherwise, by rule.
    """
    if lines := input_differences(recorded, layout, code):
        raise CodeChangedError(place, lines, _undo(code, recorded, otherwise))


def _undo(code: Code, recorded: object, otherwise: str) -> str:
    changed = ", ".join(code.changes(recorded)) or "the golden vectors"
    return (
        f"Changed since it was made: {changed}. Undo the change or, if it is intended, raise "
        "PREPROCESSING_VERSION in features/contract.py, run python -m features.golden, and "
        f"{otherwise}."
    )


def remedy(header: dict[str, Any]) -> str:
    """What to do about a checkpoint that was trained for another layout."""
    retrain = f"Retrain {header['name']}_{header['mode']}"
    commit, _, dirty = str(header["train_meta"].get("code_commit", "unknown")).partition("-")
    if commit == "unknown":
        return f"{retrain}; the commit that wrote it is unknown."
    note = f"{commit[:7]}, which had uncommitted changes" if dirty else commit[:7]
    return f"{retrain}, or check out the code that trained it (commit {note})."


def contract_differences(header: dict[str, Any], layout: Layout, place: str) -> list[str]:
    """Every difference between a header's contract and the live one, one line each.

    Raises:
        CheckpointError: the sections do not have the stated hashes, or the model is unknown.
    """
    try:
        variant = find_variant(header["name"], header["mode"])
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{place}: {error}; retrain") from error
    try:
        live = contract_of(layout, variant.spec.input_kind)
        if fingerprint([header["contract"], header["contract_hash"]]) == fingerprint(
            [live.as_header(), live.hash]
        ):  # by far the most frequent, and faster than the hash of every section
            return _other_differences(header, layout, variant)
        trained = Contract({n: section["value"] for n, section in header["contract"].items()})
        stated = {name: section["hash"] for name, section in header["contract"].items()}
        sound = trained.hashes == stated and trained.hash == header["contract_hash"]
        differences = diff_contracts(trained.sections, live.sections)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{place}: contract is malformed: {error!r}; retrain") from error
    if not sound:
        raise CheckpointError(
            f"{place}: contract sections do not match their hashes; restore the file or retrain"
        )
    if differences:
        return differences
    if trained.hash != live.hash:  # such as 1 for true: equal in Python, not in JSON
        return [f"section {n} has another hash" for n in live.hashes if live.hashes[n] != stated[n]]
    return _other_differences(header, layout, variant)


def _other_differences(header: dict[str, Any], layout: Layout, variant: Variant) -> list[str]:
    """What is in a header beside the contract and must agree with the layout."""
    expected = {
        "input_kind": variant.spec.input_kind,
        "schema_hash": layout.schema_hash(variant.spec.input_kind),
        "phases": list(layout.phases),
        "n_classes": len(layout.phases),
        "keep_mask": layout.keep_mask(variant.mode, variant.spec.input_kind).tolist(),
    }
    return [
        f"{name} was {header[name]}, is {value}"
        for name, value in expected.items()
        if fingerprint(header[name]) != fingerprint(value)
    ]


def _read_file(path: Path, limit: int) -> bytes:
    try:
        return read_regular(path, limit)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint; train it with phasewatch run") from None
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be opened ({error.strerror}); symlinks are not followed"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; restore the file or retrain") from None


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        if not all(math.isfinite(item) for item in level if isinstance(item, float)):
            raise ValueError("has a number that is not finite")
        level = [
            item
            for parent in level
            if isinstance(parent, dict | list)
            for item in (parent.values() if isinstance(parent, dict) else parent)
        ]
    if level:
        raise ValueError(f"is nested deeper than {MAX_DEPTH} levels")
