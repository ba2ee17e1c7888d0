"""Commands about checkpoints and their contract: ``contract``, ``contract diff``, ``inspect``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.console import (
    FAILED,
    MISMATCH,
    OK,
    USAGE,
    Command,
    Document,
    Table,
    existing,
    existing_checkpoint,
    fail,
    one_of,
    track,
    with_json,
)

if TYPE_CHECKING:
    from features.contract import Contract
    from features.registry import InputKind
    from models.inspection import InventoryEntry

contract_app = typer.Typer()


@dataclass(frozen=True)
class ContractDocument(Document):
    """The contract of each kind of input."""

    live: dict[InputKind, Contract]

    def as_json(self) -> dict[str, Any]:
        from features.registry import LAYOUT

        return {
            kind: {
                "contract_hash": one.hash,
                "schema_hash": LAYOUT.schema_hash(kind),
                "sections": one.as_header(),
            }
            for kind, one in self.live.items()
        }

    def text(self) -> Iterator[str | Table]:
        shown = next(iter(self.live.values()))  # of summary inputs if both: it has one section more
        yield Table(
            ("contract hash of", "sha256"),
            [(f"{kind} inputs", one.hash) for kind, one in self.live.items()],
        )
        yield ""
        yield Table(("section", "sha256"), list(shown.hashes.items()))
        channels = shown.sections["channels"]
        deployable = sum(channel["deployable"] for channel in channels)
        yield f"\nchannels: {len(channels)}; realistic models see the {deployable} deployable ones"
        yield Table(("#", "name", "unit", "kind", "deployable"), [
            (i, channel["name"], channel["unit"], channel["kind"],
             "yes" if channel["deployable"] else "no")
            for i, channel in enumerate(channels)
        ])  # fmt: skip
        yield "(--json also has their paths in the source, and how counters wrap)"
        for name, value in shown.sections.items():
            if name != "channels":
                yield f"\n{name}" + (" (summary inputs only)" if name == "stats" else "")
                for key, item in _leaves(value):
                    yield f"  {key:<17} {item}"


@contract_app.callback(invoke_without_command=True)
@with_json
def contract(
    context: typer.Context,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="Show only this kind of input, summary or tensor; default: both."
        ),
    ] = None,
) -> ContractDocument | None:
    """Show the current input contract: what a model's input means."""
    if context.invoked_subcommand is not None:
        return None
    from features import registry
    from features.contract import contract_of

    kinds: tuple[registry.InputKind, ...] = ("summary", "tensor")
    if kind is not None:
        one_of("kind", kind, kinds)
    return ContractDocument(
        {each: contract_of(registry.LAYOUT, each) for each in kinds if kind in (None, each)}
    )


def _leaves(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _leaves(item, f"{prefix}{key}.")
        else:
            yield prefix + key, ", ".join(item) if isinstance(item, list) else str(item)


@dataclass(frozen=True)
class ContractDiffDocument(Document):
    """Every difference between a checkpoint's contract and the current one."""

    checkpoint: str
    contract_hash: str
    differences: list[str]
    remedy: str | None

    def text(self) -> Iterator[str]:
        yield from self.differences
        yield f"\n{self.remedy}" if self.differences else "no difference"

    @property
    def exit_code(self) -> int:
        return MISMATCH if self.differences else OK


@contract_app.command(cls=Command)
@with_json
def diff(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .ckpt.json; its sidecar is not read.")
    ],
) -> ContractDiffDocument:
    """Compare a checkpoint's contract with the current one.

    Exit code 4 if they differ.
    """
    from features import registry
    from models.checkpoint import contract_differences, read_header, remedy

    header = read_header(existing_checkpoint(checkpoint))
    differences = contract_differences(header, registry.LAYOUT, str(checkpoint))
    return ContractDiffDocument(
        checkpoint=str(checkpoint),
        contract_hash=header["contract_hash"],
        differences=differences,
        remedy=remedy(header) if differences else None,
    )


_HASHES = ("dataset_version", "contract_hash", "schema_hash", "checkpoint_id")


@dataclass(frozen=True)
class InspectDocument(Document):
    """What checkpoints are, and whether they would load."""

    verified: bool
    entries: list[InventoryEntry]
    problems: list[str]  # with the histories that say which of them is in use

    def as_json(self) -> dict[str, Any]:
        rows = [entry.as_row() for entry in self.entries]
        return {"verified": self.verified, "checkpoints": rows, "problems": self.problems}

    def text(self) -> Iterator[str | Table]:
        columns = ("model", "mode", "recipe", "val F1", "MB", "commit",
                   "verified" if self.verified else "loads")  # fmt: skip
        yield Table(columns, [self._row(entry) for entry in self.entries])
        yield ""
        whole = len(self.entries) == 1
        for entry in self.entries:
            row = entry.as_row()
            if whole or entry.broken or entry.unverified:
                yield str(entry.path)
            for name in _HASHES if whole else ():
                if row[name]:
                    yield f"  {name:<15} {row[name]}"
            if entry.broken is not None:
                yield f"  broken: {entry.broken.removeprefix(f'{entry.path}: ')}"
            if entry.unverified is not None:
                yield f"  not verified: {entry.unverified.removeprefix(f'{entry.path}: ')}"
        alike: dict[tuple[str, ...], list[Path]] = {}  # one change of code shows in each of them
        for entry in self.entries:
            if entry.differences:
                alike.setdefault(tuple(entry.differences), []).append(entry.path)
        for lines, paths in alike.items():
            yield "\n".join([*map(str, paths), *(f"  - {line}" for line in lines)])
        yield from self.problems
        if not whole:
            yield f"{len(self.entries)} checkpoints; name one, or give --json, to see its hashes"

    def _row(self, entry: InventoryEntry) -> tuple[str, ...]:
        row = entry.as_row()
        score, size, commit = row["val_macro_f1"], row["bytes"], row["code_commit"]
        return (
            *(row[name] or "-" for name in ("model", "mode", "recipe")),
            "-" if score is None else f"{score:.3f}",
            "-" if size is None else f"{size / 1e6:.2f}",
            "-" if commit is None else commit[:7] + ("-dirty" if "-" in commit else ""),
            "broken" if entry.broken is not None
            else "no, 1 difference" if len(entry.differences) == 1
            else f"no, {len(entry.differences)} differences" if entry.differences
            else "not verified" if entry.unverified is not None
            else "yes",
        )  # fmt: skip

    @property
    def exit_code(self) -> int:
        if self.problems or any(entry.broken for entry in self.entries):
            return FAILED
        if self.verified and any(entry.differences for entry in self.entries):
            return MISMATCH
        return OK


def inspect(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="A .ckpt.json, or a folder that contains such files at any depth.",
        ),
    ],
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Also load each and replay the golden vectors. Exit code 4 if one differs, or "
            "if a contract does.",
        ),
    ] = False,
) -> InspectDocument:
    """List checkpoints, and whether each would load today.

    Headers, contracts and the hashes of sidecars are checked; no model is loaded unless --verify
    is given. Exit code 1 if one is broken.
    """
    from models.checkpoint import SUFFIX
    from models.inspection import find_checkpoints

    for path in paths:
        if not existing(path).is_dir():
            existing_checkpoint(path)
    checkpoints = [each for path in paths for each in find_checkpoints(path)]
    if not checkpoints:
        fail(
            f"{', '.join(map(str, paths))}: no {SUFFIX} in it; to train models: phasewatch run",
            USAGE,
        )
    entries = list(_look(list(dict.fromkeys(checkpoints)), verify=verify))
    return InspectDocument(verify, entries, list(_histories(paths)) if verify else [])


def _histories(paths: list[Path]) -> Iterator[str]:
    """What is wrong with the champion's history of the artifacts folders that paths lie in."""
    from champion.history import (
        POINTER_FILE,
        ChampionError,
        history_signature_problem,
        read_pointer,
    )
    from config.signing import trusted_keys

    around = {each for path in paths for each in (path.resolve(), *path.resolve().parents)}
    for folder in sorted({each / "champion" for each in around} | around):
        if not (folder / POINTER_FILE).is_file():
            continue
        try:
            pointer = read_pointer(folder)
            why = history_signature_problem(pointer) if trusted_keys() else None
        except ChampionError as error:
            yield str(error)
        else:
            yield from [f"{folder / POINTER_FILE}: {why}"] if why else []


def _look(paths: list[Path], *, verify: bool) -> Iterator[InventoryEntry]:
    from features import registry
    from models import inspection

    layout = registry.LAYOUT
    if not verify:
        yield from (inspection.inspect(path, layout) for path in paths)
        return
    from models.replay import differences

    replayed = differences(layout)  # the same for all
    for path in track(paths, "verifying"):
        yield inspection.verify(path, layout, replayed)
