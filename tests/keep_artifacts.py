"""Keeps small artifacts of the commit that is checked out, for test_compatibility to open later.

``python tests/keep_artifacts.py`` writes ``tests/data/<commit>.tar.zst``: a store, its artifacts
and the Dagster home. Recipe ``sample`` is trained, gbt is champion, one batch is scored.
"""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
import zstandard
from lab import RECIPE, build_lab, failure, new_instance, put_in_use

DATA = Path(__file__).parent / "data"


def make_artifacts(root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, new_instance(root / "home") as instance:
        # drift's reference is kept of the one recipe that is trained
        patch.setattr("stages.champion.SERVED_RECIPE", RECIPE)
        lab = build_lab(root, instance)
        batch, *_ = lab.ingest()
        for job, key in (("retrain", RECIPE), ("score", batch), ("ingest", batch)):
            result = lab.execute(job, key)
            assert result.success, failure(result)
            if job == "retrain":
                put_in_use(lab, "gbt")


def main() -> None:
    words = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(words, cwd=DATA, capture_output=True, text=True, check=True).stdout
    path = DATA / f"{commit.strip()}.tar.zst"
    with tempfile.TemporaryDirectory() as folder:
        make_artifacts(Path(folder))
        with (
            zstandard.open(path, "wb", cctx=zstandard.ZstdCompressor(19)) as packed,
            tarfile.open(fileobj=packed, mode="w|") as archive,
        ):
            for name in ("store", "artifacts", "home"):
                archive.add(Path(folder) / name, name)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
