"""Whether every model can be trained and score a million windows within 4 GB.

    python -m benchmarks.million [--windows N] [--shards N] [--mode MODE] [--models gbt,knn,…]
        [--rounds N] [--folder FOLDER]

Writes the shards to FOLDER once (12 GB for a million windows) and gives each model a process of
its own: trees and neighbours are trained to the end, nets for one epoch, and all score the windows
held out. Prints seconds of wall and processor time and the most memory that the process
held. Exits with 1 if that was over 4 GB. ``--rounds`` trains trees for less long; the memory that
they take does not depend on it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.hyperparameters import EnsembleConfig, GbtConfig, NetConfig
from models.registry import MODELS, Variant

LIMIT_GB = 4.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--mode", choices=("realistic", "oracle"), default="oracle")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=GbtConfig().n_rounds)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(measured(asked.child, asked.mode, asked.folder, asked.rounds)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        if not folder.is_dir() or not any(folder.iterdir()):
            from benchmarks.corpus import write_corpus

            began = time.perf_counter()
            write_corpus(folder, asked.windows, asked.shards)
            print(f"written in {time.perf_counter() - began:.0f} s", flush=True)
        n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        n_shards = sum(1 for _ in folder.iterdir())
        print(f"{n_bytes / 1e9:.2f} GB in {n_shards} shards, mode {asked.mode}")
        results = {}
        for model in asked.models.split(","):
            command = [sys.executable, "-m", "benchmarks.million", "--child", model]
            command += ["--mode", asked.mode, "--folder", str(folder)]
            command += ["--rounds", str(asked.rounds)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                print(f"{model:12} failed with {done.returncode}", flush=True)
                return 1
            result = json.loads(done.stdout.splitlines()[-1])
            times = "  ".join(f"{name} {w:.0f} ({c:.0f})" for name, w, c in result["seconds"])
            print(
                f"  {model}: seconds, wall (processor): {times}; {result['gb']:.2f} GB; "
                f"{result['text']}",
                flush=True,
            )
            results[model] = result
    write_lines(results)
    return int(any(result["gb"] > LIMIT_GB for result in results.values()))


def write_lines(results: dict[str, Any]) -> None:
    from benchmarks.lines import recording

    with recording("million") as out:
        for model, result in results.items():
            n = result["trained"] + result["scored"]
            out.limit(f"{model}: memory", result["gb"], LIMIT_GB, "GB", size=n)
            for name, _, cpu_s in result["seconds"]:
                out.alone(f"{model}: {name}", cpu_s, "CPU s", size=n)
                if cpu_s > 0 and name != "open":
                    out.point(f"Models, {name}", n, "windows", cpu_s, "CPU s", model)


def measured(model: str, mode: Any, folder: Path, rounds: int) -> dict[str, Any]:
    """Train and score one model in this process."""
    import polars as pl

    from benchmarks.corpus import read_corpus
    from datasets.windows import examples, inputs, read_once
    from features.registry import LAYOUT
    from models.metrics import macro_f1

    seconds: list[tuple[str, float, float]] = []
    last = [(time.perf_counter(), time.process_time())]

    def lap(name: str) -> None:
        now = time.perf_counter(), time.process_time()
        seconds.append((name, now[0] - last[0][0], now[1] - last[0][1]))
        last[0] = now

    table, shards = read_corpus(folder)
    variant = Variant(model, mode)
    sides = [examples(table, shards, split, variant, LAYOUT) for split in ("train", "val")]
    train, val = (replace(side, X=read_once(side.X)) for side in sides)
    held_out = table.filter(pl.col("split") != "train")
    y = examples(held_out.with_columns(split=pl.lit("x")), shards, "x", variant, LAYOUT).y
    lap("open")
    config = variant.spec.config()
    if isinstance(config, GbtConfig):
        config = replace(config, n_rounds=rounds)
    if isinstance(config, EnsembleConfig):
        config = replace(config, trees=replace(config.trees, n_rounds=rounds))
    if isinstance(config, NetConfig):
        import models.trainer

        config = replace(config, epochs=1)
        scaled = models.trainer._Batches.shuffled

        def begin(*given: Any) -> Any:
            lap("scale")
            return scaled(*given)

        models.trainer._Batches.shuffled = begin  # type: ignore[method-assign, assignment]
    says = [""]

    def progress(done: int, total: int, text: str) -> None:
        says[0] = f"{done}/{total} {text}"

    fitted = variant.spec.build(config, len(LAYOUT.phases), seed=0, device="cpu")
    fitted.fit(train, val, progress)
    lap("epoch" if variant.spec.libraries == ("torch",) else "fit")
    proba = fitted.predict_proba(inputs(held_out, shards, variant, LAYOUT))
    lap("score")
    return {
        "trained": len(train),
        "scored": len(proba),
        "seconds": seconds,
        "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "text": f"{says[0]}; F1 {macro_f1(y, proba.argmax(axis=1), len(LAYOUT.phases)):.3f}",
    }


if __name__ == "__main__":
    sys.exit(main())
