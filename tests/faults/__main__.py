"""Do all faults, print the table, and fail if anything was lost or wrong, broke or hung."""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from pydantic import RootModel

from faults.table import BAD, FAULTS, Row, as_markdown, declared, tried
from stages.workers import cores


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--only", default="", help="only faults with this in their name")
    parser.add_argument("--try", dest="number", type=int, help="only this try of each")
    parser.add_argument("--quick", action="store_true", help="as few tries as the suite does")
    parser.add_argument("--out", type=Path, default=Path("artifacts/faults/latest.json"))
    options = parser.parse_args()
    declared()
    chosen = [fault for name, fault in FAULTS.items() if options.only in name]
    if not chosen:
        sys.exit(f"no fault has {options.only!r} in its name; known: {', '.join(FAULTS)}")
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as folder,
        ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool,
    ):
        base, under_way = Path(folder, "base"), {}
        for fault in chosen:
            count = fault.quick if options.quick else fault.tries
            numbers = range(count) if options.number is None else [options.number]
            under_way[fault.name] = [
                (number, pool.submit(tried, fault.name, number, base)) for number in numbers
            ]
        for name, tries in under_way.items():
            row = Row(name)
            for number, future in tries:
                outcome, seconds = future.result()
                row.verdicts[outcome.verdict] += 1
                row.seconds += seconds
                if outcome.verdict in BAD:
                    row.bad[number] = outcome
                    print(f"{name}, try {number}: {outcome.verdict}: {outcome.note}", flush=True)
            rows.append(row)
            print(f"{name}: {row.tries} in {row.seconds:.0f} s", file=sys.stderr, flush=True)
    print(as_markdown(rows))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(RootModel(rows).model_dump_json(indent=1), encoding="utf-8")
    sys.exit(any(row.bad for row in rows))


if __name__ == "__main__":
    main()
