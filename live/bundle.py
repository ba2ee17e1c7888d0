"""A device bundle: one folder with all that scoring a machine needs, and the proof that it works.

``bundle.json`` names every other file with its hash, and has a hash of itself. ``load_bundle`` is
the only way in: it refuses a bundle whose input contract is not the one in force here, whose files
have other hashes, or whose golden rows do not give the recorded probabilities on this device.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from config.errors import PhasewatchError
from config.signing import SIGNATURE, Signed, distrust, keys_folder, parse_json, signed
from features.code import DEVICE_PATH, code_of
from features.contract import Contract, contract_of, diff_contracts
from features.files import fingerprint, read_regular
from features.registry import LAYOUT, InputKind, Layout
from features.relative import summary_inputs, tensor_inputs
from live.replay import live_differences
from live.runtime import Runtime, build_runtime, graph_of, try_net
from live.stream import LiveWindow, LiveWindows
from models.alarm import AlarmRule, attack_phase_mask
from models.likeness import Likeness
from models.replay import input_differences

FORMAT = "phasewatch-bundle/1"
HEAD_FILE = "bundle.json"
MAX_HEAD_BYTES = 2**22
MAX_FILE_BYTES = 2**28
MAX_ROWS_BYTES = 2**24  # of golden rows, unpacked
TOLERANCE = 1e-5  # of a probability
_FIELDS = {
    "format", "id", "model", "mode", "input_kind", "contract", "phases", "kept",
    "scaling", "runtime", "rule", "rule_id", "likeness", "golden", "checkpoint_id", "recipe",
    "dataset_version", "metrics", "data", "versions", "files",
}  # fmt: skip
_OPTIONAL = {SIGNATURE, "made_at"}  # earlier bundles have the time, which made each another one

_MAKE_AGAIN = (
    "Make the bundle again with this version: phasewatch bundle --out FOLDER; "
    "or install the phasewatch-device that it was made with"
)


Content = bytes | dict[str, NDArray[Any]]
"""Of a model: a graph, or named arrays."""


class BundleError(PhasewatchError):
    """A bundle cannot be used; the message names the file and says what to do."""


class NotABundleError(BundleError):
    """The folder holds no bundle of this format."""


class BundleContractError(BundleError):
    """The input contract here is not the one that the bundle was made under."""

    says: ClassVar[str] = "it was made for another input layout"

    def __init__(self, place: str, differences: list[str], remedy: str = _MAKE_AGAIN):
        self.differences = differences
        lines = "\n".join(f"  - {line}" for line in differences)
        super().__init__(f"{place}: contract mismatch: {self.says}\n{lines}\n{remedy}")


class BundleCodeError(BundleContractError):
    """The code here does not compute the windows that the bundle was made from."""

    says = "the code here computes other windows"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A model that scores here, with its rule, and what it was made from."""

    head: dict[str, Any]
    runtime: Runtime
    rule: AlarmRule
    likeness: Likeness | None
    layout: Layout

    @property
    def id(self) -> str:
        return self.head["id"]

    @property
    def variant(self) -> str:
        return f"{self.head['model']}_{self.head['mode']}"

    @cached_property
    def channel(self) -> NDArray[np.int64]:
        """Position of the channel that each of the model's inputs is made from, ``(n_inputs,)``."""
        return self.layout.channel_of(self.head["mode"], self.head["input_kind"])

    @cached_property
    def contract_hash(self) -> str:
        """Of the statistics, which a baseline consists of."""
        return contract_of(self.layout, "summary").hash

    @cached_property
    def input_contract_hash(self) -> str:
        """Of the model's inputs."""
        return contract_of(self.layout, self.head["input_kind"]).hash

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one window's inputs."""
        return input_shape(self.head, self.layout)

    @cached_property
    def input_names(self) -> list[str]:
        """Of the model's inputs, in order."""
        every = self.layout.input_names(self.head["input_kind"])
        return [name for name, kept in zip(every, self._kept, strict=True) if kept]

    @cached_property
    def infected(self) -> NDArray[np.bool_]:
        return attack_phase_mask(self.layout.phases)

    @cached_property
    def _kept(self) -> NDArray[np.bool_]:
        return np.array(self.head["kept"], dtype=bool)

    def inputs(self, window: LiveWindow) -> NDArray[np.float32]:
        """The model's inputs of one window, ``(1, …)``."""
        return model_inputs(window, self.head["input_kind"], self._kept)

    def likeness_inputs(self, window: LiveWindow) -> NDArray[np.float32]:
        """The inputs ``(n_inputs,)`` that say whether a window is like training."""
        kept = self.layout.keep_mask(self.head["mode"], "summary")
        return model_inputs(window, "summary", kept)[0]


def input_shape(head: Mapping[str, Any], layout: Layout) -> tuple[int, ...]:
    """The shape of one window's inputs, by the head of a bundle."""
    n = int(np.array(head["kept"], dtype=bool).sum())
    return (n,) if head["input_kind"] == "summary" else (layout.window.n_bins, n)


def model_inputs(
    window: LiveWindow, input_kind: InputKind, kept: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """The inputs ``(1, …)`` of one window that a model is given."""
    if input_kind == "summary":
        every = summary_inputs(window.features[None], window.baseline[None])
    else:
        every = tensor_inputs(window.series[None], window.level[None])
    return every[..., kept]


def load_bundle(
    folder: Path, layout: Layout = LAYOUT, *, require_signature: bool = False
) -> Bundle:
    """A bundle that was checked: its form, its hashes, its contract and its golden rows.

    Args:
        require_signature: refuse one that no key trusted here has signed.

    Raises:
        NotABundleError: there is none in ``folder``, or of another format or mode.
        BundleContractError: lists how its input contract differs from that of ``layout``.
        BundleCodeError: lists what the code here computes otherwise, by rule.
        BundleError: a file is damaged, or the golden rows give other probabilities here.
    """
    head = read_head(folder)
    if why := distrust(signed_by(head), required=require_signature):
        unsigned = signed_by(head).state == "unsigned"
        make = "Make the bundle again on a machine that has a signing key. " if unsigned else ""
        raise BundleError(
            f"{folder / HEAD_FILE}: {why}. {make}To trust that machine's key here, put its .pub "
            f"file into {keys_folder()}"
        )
    with _refusing(folder):
        _check_contract(folder, head, layout)
        _check_code(folder, head, layout)
        files = {name: _read(folder, name, about) for name, about in head["files"].items()}
        content = _model(head, files)
        _try_once(head, content, layout)
        bundle = assemble_bundle(folder, head, files, layout, content)
        golden = head["golden"]
        expected = unpack_arrays(files[golden["expected"]])
        problem = golden_problem(bundle, files[golden["rows"]], expected)
    if problem:
        raise BundleError(
            f"{folder}: {problem}. On this machine the bundle gives other results than it should: "
            "use the pinned versions of NumPy and ONNX Runtime, or make the bundle again"
        )
    return bundle


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Whatever a crafted file leads to is an error of the bundle."""
    try:
        yield
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(
            f"{folder}: its files have the right hashes but cannot be used "
            f"({type(error).__name__}: {error}). Make the bundle again"
        ) from error


_tried: set[str] = set()  # ids of bundles


def _try_once(head: Mapping[str, Any], content: Content, layout: Layout) -> None:
    """Run the net of a bundle in another process before it is loaded in this one."""
    graph = graph_of(head["runtime"]["kind"], content)
    if graph is None or head["id"] in _tried:
        return
    try_net(graph, head["scaling"], input_shape(head, layout), len(layout.phases))
    _tried.add(head["id"])


def _model(head: Mapping[str, Any], files: Mapping[str, bytes]) -> Content:
    content = files[head["runtime"]["file"]]
    return content if head["runtime"]["kind"] == "onnx" else unpack_arrays(content)


def read_head(folder: Path) -> dict[str, Any]:
    """``bundle.json``, unchanged since it was written.

    Raises:
        NotABundleError, BundleError: see ``load_bundle``.
    """
    path = folder / HEAD_FILE
    if folder.is_file():
        raise NotABundleError(
            f"{folder}: must be the folder of a bundle, got a file. A checkpoint becomes a bundle: "
            "phasewatch bundle --checkpoint FILE --out FOLDER"
        )
    if not folder.exists():
        raise NotABundleError(
            f"{folder}: no such folder. Make a bundle: phasewatch bundle --out FOLDER"
        )
    if not path.is_file():
        raise NotABundleError(
            f"{folder}: not a device bundle: it has no {HEAD_FILE}. Make one: "
            "phasewatch bundle --out FOLDER"
        )
    try:
        head = parse_json(_content(path, MAX_HEAD_BYTES))
    except ValueError as error:
        raise BundleError(f"{path}: {error}. Copy the bundle again") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        found = head.get("format") if isinstance(head, dict) else type(head).__name__
        raise NotABundleError(f"{path}: format must be {FORMAT}, got {found!r}")
    try:
        intact = head["id"] == bundle_id(head)
    except (KeyError, ValueError):
        intact = False
    if not intact:
        raise BundleError(
            f"{path}: damaged: it was changed after it was written. Copy the bundle again"
        )
    if set(head) - _OPTIONAL != _FIELDS:
        raise NotABundleError(f"{path}: must have the fields {', '.join(sorted(_FIELDS))}")
    if head["mode"] != "realistic":
        raise NotABundleError(
            f"{path}: mode must be realistic, got {head['mode']!r}: "
            "a device cannot read the channels of other models"
        )
    return head


def bundle_id(head: Mapping[str, Any]) -> str:
    """sha256 of a head, its id and signature left out; the hashes of all files are in it."""
    return fingerprint({k: value for k, value in head.items() if k not in ("id", SIGNATURE)})


def signed_by(head: Mapping[str, Any]) -> Signed:
    """Who signed a bundle; with its files, because their hashes are in its head."""
    return signed("bundle", head.get("id"), head.get(SIGNATURE))


def _check_contract(folder: Path, head: dict[str, Any], layout: Layout) -> None:
    now = contract_of(layout, head["input_kind"])
    if fingerprint(head["contract"]) == fingerprint(now.as_header()):
        return
    was = Contract({name: section["value"] for name, section in head["contract"].items()})
    differences = diff_contracts(was.sections, now.sections)
    raise BundleContractError(str(folder), differences or ["a section has another hash"])


def _check_code(folder: Path, head: dict[str, Any], layout: Layout) -> None:
    code, recorded = code_of(DEVICE_PATH), head["golden"].get("code")
    if lines := input_differences(recorded, layout, code, live_differences):
        changed = ", ".join(code.changes(recorded)) or "the golden vectors"
        remedy = (
            f"Changed since it was made: {changed}. Install the phasewatch-device that the bundle "
            "was made with, or make it again: phasewatch bundle --out FOLDER"
        )
        raise BundleCodeError(str(folder), lines, remedy)


def _read(folder: Path, name: str, about: dict[str, Any]) -> bytes:
    path = folder / name
    if path.name != name or name.startswith("."):
        raise BundleError(f"{folder / HEAD_FILE}: {name!r} cannot be a file of a bundle")
    try:
        content = _content(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise BundleError(f"{path}: missing. Copy the bundle again") from None
    found = hashlib.sha256(content).hexdigest()
    if found != about["sha256"]:
        raise BundleError(
            f"{path}: damaged: sha256 must be {about['sha256']}, got {found}. Copy the bundle again"
        )
    return content


def _content(path: Path, limit: int) -> bytes:
    try:
        return read_regular(path, limit)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BundleError(f"{path}: cannot be opened ({error.strerror})") from None
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from None


def assemble_bundle(
    folder: Path,
    head: dict[str, Any],
    files: Mapping[str, bytes],
    layout: Layout,
    content: Content | None = None,
) -> Bundle:
    """A bundle from its files; ``content`` is its model, if it was unpacked already."""
    with _refusing(folder):
        kept = np.array(head["kept"], dtype=bool)
        expected = layout.keep_mask(head["mode"], head["input_kind"])
        if not np.array_equal(kept, expected):
            raise ValueError(f"kept must be the {expected.sum()} inputs of the mode")
        runtime = build_runtime(
            head["runtime"]["kind"],
            _model(head, files) if content is None else content,
            head["scaling"],
            len(layout.phases),
            int(kept.sum()),
        )
        likeness = None
        if head["likeness"] is not None:
            arrays = unpack_arrays(files[head["likeness"]["file"]])
            likeness = Likeness.from_arrays(head["likeness"]["head"], arrays)
        rule = AlarmRule.from_json(head["rule"])
        if tuple(head["phases"]) != layout.phases or rule.phases != layout.phases:
            raise ValueError(f"phases must be {', '.join(layout.phases)}")
        return Bundle(head, runtime, rule, likeness, layout)


def unpack_arrays(content: bytes) -> dict[str, NDArray[Any]]:
    """What ``pack_arrays`` packed.

    Raises:
        ValueError: it is something else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            n_bytes = sum(member.file_size for member in packed.infolist())
        if n_bytes > MAX_FILE_BYTES:
            raise ValueError(f"arrays must have at most {MAX_FILE_BYTES:,} bytes, got {n_bytes:,}")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:  # noqa: TID251  no pickle is read
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"not an archive of arrays ({error})") from error


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Named arrays as one file."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


# --- golden rows


def pack_rows(timeline: Iterable[tuple[str, bytes]], origin_ns: int) -> bytes:
    """Telemetry as one file: (source, lines) in order of time; the same bytes for the same rows."""
    rows = [[source, lines.decode()] for source, lines in timeline]
    return gzip.compress(json.dumps({"origin_ns": origin_ns, "rows": rows}).encode(), mtime=0)


def golden_windows(packed: bytes, layout: Layout) -> list[LiveWindow]:
    """The windows of golden rows, computed here.

    Raises:
        BundleError: they cannot be read.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            text = file.read(MAX_ROWS_BYTES + 1)
        if len(text) > MAX_ROWS_BYTES:
            raise ValueError(f"must be at most {MAX_ROWS_BYTES:,} bytes, got more")
        document = json.loads(text)
        windows = LiveWindows(layout, document["origin_ns"])
        made = [w for name, lines in document["rows"] for w in windows.push(name, lines.encode())]
        return [*made, *windows.close()]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zlib.error) as error:
        raise BundleError(f"golden rows: cannot be read ({error})") from error


def golden_problem(bundle: Bundle, packed: bytes, expected: Mapping[str, NDArray]) -> str | None:
    """What comes out otherwise here; None if nothing does.

    Rows must give the recorded inputs but for the last bits, in which processors differ, and the
    recorded inputs the recorded probabilities. A tree may answer a last bit with another leaf, so
    probabilities are not asked of the inputs that were computed here.

    Args:
        expected: ``inputs`` ``(n_windows, …)`` and ``proba`` ``(n_windows, n_phases)``.
    """
    windows = golden_windows(packed, bundle.layout)
    inputs, proba = expected["inputs"], expected["proba"]
    if not len(inputs) or len(windows) != len(inputs):
        return f"the golden rows give {len(windows)} windows, expected {len(inputs)}"
    computed = np.concatenate([bundle.inputs(window) for window in windows])
    names = bundle.input_names
    if computed.shape != inputs.shape:
        return f"the golden rows give inputs {computed.shape}, expected {inputs.shape}"
    axes = tuple(range(inputs.ndim - 1))
    rms = np.sqrt(np.mean(np.where(np.isnan(inputs), 0.0, inputs.astype(np.float64)) ** 2, axes))
    off = np.abs(computed.astype(np.float64) - inputs)
    allowed = TOLERANCE * np.maximum(np.abs(inputs), rms)
    wrong = (np.isnan(computed) != np.isnan(inputs)) | (off > allowed)
    if np.any(wrong):
        each = [names[i] for i in np.flatnonzero(wrong.any(axis=axes))]
        more = f" and {len(each) - 1} more inputs" if len(each) > 1 else ""
        return f"golden rows give another {each[0]}{more}"
    off_by = float(np.abs(bundle.runtime.proba(inputs) - proba).max())
    if not off_by <= TOLERANCE:
        return f"golden windows are off by {off_by:.2g}, at most {TOLERANCE:g} is allowed"
    return None
