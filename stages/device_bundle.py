"""The device bundle: a checkpoint in one folder that scores without a training library."""

from __future__ import annotations

import hashlib
import json
import platform
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from champion.rules import CHALLENGER
from config.disk import folder_lock
from config.signing import SIGNATURE, signature_of
from datasets.windows import inputs, read_dataset
from episodes.format import ARCHIVE_SUFFIX, NS_PER_S
from episodes.reading import read_episode
from features.code import DEVICE_PATH, code_of
from features.contract import GOLDEN_FILE as GOLDEN_VECTORS
from features.contract import contract_of
from features.files import fingerprint, write_atomically
from live import bundle as bundles
from live.bundle import Bundle, load_bundle
from live.runtime import TreeRuntime
from live.sources import DEPLOYABLE
from live.timeline import timeline
from models.replay import recorded_code
from stages.checkpoints import code_commit
from stages.datasets import dataset_shards
from stages.evaluation import read_report
from stages.manifest import Manifest, write_manifest
from stages.scoring import Scorer, champion_scorer
from stages.stage import Artifacts, Check, CheckResult, ManifestStage, Progress, StageOutput
from stages.status import StageError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from features.registry import Layout
    from models.base import Classifier, Inputs
    from models.checkpoint import Checkpoint
    from stages.project import Project

BATCH_SIZES = (1, 2, 7, 64)
BLOCK = 448  # windows compared at a time: whole batches of each size
GOLDEN_EPISODE = "01M7ZXJ52WC7TZYFN3421Y5WJ7"  # of features/golden: it has every source, and a gap
GOLDEN_SECONDS = 60
_PACKAGES = ("phasewatch", "numpy", "torch", "xgboost", "onnxruntime")


@dataclass(frozen=True)
class Parity:
    """How far a bundle's outputs are from its checkpoint's, over all windows and batch sizes."""

    n_windows: int
    proba: float  # largest difference of a probability
    margin: float | None  # largest difference of a tree model's margin; None: not a tree model

    @property
    def holds(self) -> bool:
        return self.proba <= bundles.TOLERANCE and (self.margin or 0.0) <= bundles.TOLERANCE


def _bundle_equals_checkpoint(project: Project, key: str, artifact: Manifest) -> CheckResult:
    bundle = load_bundle(artifact.folder, project.workspace.layout)
    checkpoint = champion_scorer(project).checkpoint
    if checkpoint.artifact_id != bundle.head["checkpoint_id"]:
        return CheckResult(False, "fail", "The bundle belongs to another checkpoint.")
    found = check_parity(project, bundle, checkpoint)
    if not found:
        nothing = "No dataset is current, so no windows can be compared. Run: phasewatch run"
        return CheckResult(False, "fail", nothing)
    differing = [recipe for recipe, each in found.items() if not each.holds]
    why = f"Not the checkpoint's outputs on: {', '.join(differing)}." if differing else None
    facts = {recipe: asdict(each) for recipe, each in found.items()}
    return CheckResult(not differing, "fail", why, facts)


class DeviceBundleStage(ManifestStage):
    """The champion as one folder for a device."""

    name = "device_bundle"
    version = "1"
    partition = ""
    job = "bundle"
    automatic = False
    needs_inputs = False  # the champion is kept by itself; what it was made from may be gone
    docs = "device.md"

    inputs = ("champion",)

    outputs = (
        StageOutput(
            name,
            "The champion as one folder that a device scores with, without a training library.",
            group="serve",
            kinds=frozenset({"onnx"}),
        ),
    )

    checks = (
        Check(
            "bundle_equals_checkpoint",
            name,
            "On every test window of every recipe, in mini-batches of 1, 2, 7 and 64, the bundle "
            "gives the probabilities of its checkpoint within 1e-5.",
            _bundle_equals_checkpoint,
            blocking=True,
        ),
    )

    def fingerprint(self, project: Project, key: str) -> str:
        scorer = champion_scorer(project)
        return fingerprint(
            {
                "stage": self.version,
                "format": bundles.FORMAT,
                "checkpoint": scorer.checkpoint.artifact_id,
                "alarm_rule": scorer.required_rule().id,
                "likeness": scorer.likeness.id if scorer.likeness else None,
            }
        )

    def remedy(self, key: str) -> str:
        return "phasewatch bundle --out FOLDER"

    def make(
        self, project: Project, key: str, outputs: Collection[str], progress: Progress
    ) -> Artifacts:
        identity = self.fingerprint(project, key)
        files = bundle_files(champion_scorer(project))
        folder = self.folder(project.workspace, key)
        write_bundle(folder, files)
        head = json.loads(files[bundles.HEAD_FILE])
        listed = {
            name.partition(".")[0]: {
                "name": name,
                "sha256": hashlib.sha256(content).hexdigest(),
                "bytes": len(content),
            }
            for name, content in files.items()
        }
        facts = {
            "bundle_id": head["id"],
            "model": f"{head['model']}_{head['mode']}",
            "recipe": head["recipe"],
            "checkpoint_id": head["checkpoint_id"],
            "alarm_rule_id": head["rule_id"],
            "contract_hash": contract_of(project.workspace.layout, head["input_kind"]).hash,
            "runtime": head["runtime"]["kind"],
            "bytes": sum(map(len, files.values())),
        }
        manifest = Manifest(folder, identity, listed, facts, self.version)
        return {self.name: write_manifest(manifest)}

    def facts(self, project: Project, output: str, artifact: Manifest) -> Mapping[str, Any]:
        return {**artifact.facts, "folder": str(artifact.folder)}

    def summary(self, project: Project, key: str, artifacts: Artifacts) -> str:
        manifest = artifacts[self.name]
        return f"{manifest.facts['model']}, {manifest.facts['bytes'] / 1e6:.1f} MB"


def write_bundle(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a bundle; its head, which names the other files, comes last.

    A kill at any moment leaves the old bundle or the new one; of two writers at once, the last one
    leaves its own. Files of an older one are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        for name, content in files.items():
            if name != bundles.HEAD_FILE:
                write_atomically(folder / name, content)
        write_atomically(folder / bundles.HEAD_FILE, files[bundles.HEAD_FILE])
        for kind in ("model", "golden", "expected", "likeness"):
            for stray in folder.glob(f"{kind}.*"):
                if stray.name not in files:
                    stray.unlink()


def bundle_in_memory(files: Mapping[str, bytes], layout: Layout) -> Bundle:
    """A bundle as it would load, before it is written."""
    head = json.loads(files[bundles.HEAD_FILE])
    return bundles.assemble_bundle(Path(bundles.HEAD_FILE), head, files, layout)


class OracleError(StageError):
    """A checkpoint sees channels that a device cannot read."""


# --- the files


# Long, because it puts one head together, field by field.
def bundle_files(scorer: Scorer) -> dict[str, bytes]:
    """Every file of a bundle, by name.

    Raises:
        StageError: the model is not a realistic one, no alarm rule or likeness is bound to it, or
            the golden rows do not come out.
    """
    project, checkpoint = scorer.project, scorer.checkpoint
    header = checkpoint.header
    if header["mode"] != "realistic":
        raise OracleError(
            f"A device bundle needs a realistic checkpoint, got {scorer.name}: a device cannot "
            "read its channels. Name a realistic one"
        )
    layout, rule, likeness = project.workspace.layout, scorer.required_rule(), scorer.likeness
    if likeness is None and scorer.champion is None:  # a champion may have been promoted without
        raise StageError(
            f"No likeness is bound to this checkpoint of {scorer.name}. Run: phasewatch run"
        )
    model = checkpoint.model.exported(layout.window.n_bins)
    if isinstance(model.content, bytes):
        graph, suffix = model.content, ".onnx"
    else:
        graph, suffix = bundles.pack_arrays(model.content), ".npz"
    rows = golden_rows()
    inputs = _golden_inputs(rows, checkpoint, layout)
    expected = {"inputs": inputs, "proba": checkpoint.model.predict_proba(inputs)}
    parts = {
        "model": (graph, suffix),
        "golden": (rows, ".jsonl.gz"),
        "expected": (bundles.pack_arrays(expected), ".npz"),
    }
    if likeness:
        parts["likeness"] = (bundles.pack_arrays(likeness.arrays()), ".npz")
    digests = {part: hashlib.sha256(content).hexdigest() for part, (content, _) in parts.items()}
    names = {part: f"{part}.{digests[part][:12]}{end}" for part, (_, end) in parts.items()}
    files = {names[part]: content for part, (content, _) in parts.items()}
    head: dict[str, Any] = {
        "format": bundles.FORMAT,
        "model": header["name"],
        "mode": header["mode"],
        "input_kind": header["input_kind"],
        "contract": header["contract"],
        "phases": header["phases"],
        "kept": header["keep_mask"],
        "scaling": header["standardize"],
        "runtime": {"kind": model.kind, "file": names["model"]},
        "rule": json.loads(rule.text()),
        "rule_id": rule.id,
        "likeness": {"file": names["likeness"], "head": likeness.head()} if likeness else None,
        "golden": {
            "rows": names["golden"],
            "expected": names["expected"],
            "code": recorded_code(code_of(DEVICE_PATH)),
        },
        "checkpoint_id": checkpoint.artifact_id,
        "dataset_version": header["train_meta"]["dataset_version"],
        "recipe": scorer.recipe,
        "metrics": _metrics(scorer),
        "data": {"licence": _licence(project), "store": str(project.workspace.store)},
        "versions": _versions(),
        "files": {
            name: {"sha256": digests[part], "bytes": len(files[name])}
            for part, name in names.items()
        },
    }
    head["id"] = bundles.bundle_id(head)
    if signature := signature_of("bundle", head["id"]):
        head[SIGNATURE] = signature
    text = json.dumps(head, indent=1, allow_nan=False).encode() + b"\n"
    return {**files, bundles.HEAD_FILE: text}


def golden_rows() -> bytes:
    """The first minute of a golden episode, as a device would receive it."""
    path = GOLDEN_VECTORS.parent / f"{GOLDEN_EPISODE}{ARCHIVE_SUFFIX}"
    episode = read_episode(path, GOLDEN_EPISODE, {})
    origin = int(episode.labels.t_wall_ns.min())
    until = origin + GOLDEN_SECONDS * NS_PER_S
    rows = [(s, lines) for t, s, lines in timeline(episode.members, DEPLOYABLE) if t < until]
    return bundles.pack_rows(rows, origin)


def _golden_inputs(rows: bytes, checkpoint: Checkpoint, layout: Layout) -> NDArray[np.float32]:
    """The model's inputs of the golden rows' windows."""
    kind, kept = checkpoint.header["input_kind"], checkpoint.header["keep_mask"]
    windows = bundles.golden_windows(rows, layout)
    return np.concatenate([bundles.model_inputs(w, kind, np.array(kept)) for w in windows])


def _metrics(scorer: Scorer) -> list[dict[str, Any]]:
    """Macro F1 with its interval, per recipe, of the reports on these very checkpoints."""
    project, champion = scorer.project, scorer.champion
    checkpoints = (
        champion.checkpoints if champion else {scorer.recipe: scorer.checkpoint.artifact_id}
    )
    metrics, stage = [], project.stages[f"eval_reports/{scorer.name}"]
    for recipe, checkpoint_id in checkpoints.items():
        made = project.artifact(stage.name, recipe)
        known = champion.evidence.get(recipe, {}).get(CHALLENGER) if champion else None
        row: dict[str, Any] = {
            "recipe": recipe, "metric": "macro_f1", "checkpoint_id": checkpoint_id, "value": known,
            "low": None, "high": None, "level": None, "report": None,
        }  # fmt: skip
        if made and project.status(stage, recipe, verify=True).usable:
            report = read_report(made)
            figure = report.macro_f1
            if report.checkpoint_id == checkpoint_id:
                row |= {"value": figure.value, "low": figure.low, "high": figure.high,
                        "level": figure.level, "report": made.version}  # fmt: skip
        metrics.append(row)
    return metrics


def _licence(project: Project) -> str:
    """What the store says of the licence of its data."""
    path = project.workspace.store_path / "LICENSE"
    return path.read_text(encoding="utf-8").partition("\n")[0] if path.is_file() else "not stated"


def _versions() -> dict[str, str]:
    found = {"code_commit": code_commit(), "python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


# --- the check


def measure_parity(bundle: Bundle, model: Classifier, X: Inputs) -> Parity:
    """How far a bundle is from the model that it was made from, on some windows."""
    runtime = bundle.runtime
    booster = getattr(model, "booster_", None)
    off, off_margin = 0.0, None if booster is None else 0.0
    for start in range(0, len(X), BLOCK):
        block = np.asarray(X[start : start + BLOCK], dtype=np.float32)
        expected = model.predict_proba(block)
        for size in BATCH_SIZES:
            pieces = [block[i : i + size] for i in range(0, len(block), size)]
            found = np.concatenate([runtime.proba(piece) for piece in pieces])
            off = max(off, _distance(found, expected))
        if isinstance(runtime, TreeRuntime) and booster is not None:
            margins = booster.inplace_predict(block, predict_type="margin", missing=np.nan)
            off_margin = max(off_margin or 0.0, _distance(runtime.trees.margins(block), margins))
    return Parity(len(X), off, off_margin)


def _distance(found: NDArray, expected: NDArray) -> float:
    """The largest difference; infinite where one of both is not a number."""
    off = np.abs(found.astype(np.float64) - expected)
    return float(np.where(np.isfinite(off), off, np.inf).max(initial=0.0))


def check_parity(project: Project, bundle: Bundle, checkpoint: Checkpoint) -> dict[str, Parity]:
    """Parity on every test window of every recipe that has a dataset."""
    found = {}
    for recipe in project.recipes:
        dataset = project.artifact("datasets", recipe)
        if dataset is None:
            continue
        test = read_dataset(dataset).filter(pl.col("split") == "test")
        shards = dataset_shards(project, dataset)
        X = inputs(test, shards, checkpoint.variant, project.workspace.layout)
        found[recipe] = measure_parity(bundle, checkpoint.model, X)
    return found
