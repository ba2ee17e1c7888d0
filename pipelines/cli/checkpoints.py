"""Commands about checkpoints and their contract: ``contract``, ``contract diff``, ``inspect``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.cli.console import (
    FAILED,
    MISMATCH,
    OK,
    USAGE,
    JsonOption,
    existing,
    existing_file,
    fail,
    failing,
    say_json,
    say_table,
    track,
)

if TYPE_CHECKING:
    from models.inspection import Entry

contract_app = typer.Typer(help="The input contract in force: what a model's input means.")

_SHOWN_DIGITS = 12


@contract_app.callback(invoke_without_command=True)
def contract(
    context: typer.Context,
    kind: Annotated[
        Literal["summary", "tensor"] | None,
        typer.Option(help="Inputs of one kind only; default: both."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the input contract in force: hashes, channels, window, statistics, labels."""
    if context.invoked_subcommand is not None:
        return
    from features import registry
    from features.contract import contract_of

    layout = registry.LAYOUT
    kinds: list[registry.InputKind] = [kind] if kind else ["summary", "tensor"]
    live = {each: contract_of(layout, each) for each in kinds}
    if as_json:
        say_json(
            {
                each: {
                    "contract_hash": one.hash,
                    "schema_hash": layout.schema_hash(each),
                    "sections": one.as_header(),
                }
                for each, one in live.items()
            }
        )
        return
    one = live[kinds[0]]  # of summary inputs if shown: it has a section more, the rest is equal
    say_table(
        ("contract hash of", "sha256"), [(f"{e} inputs", found.hash) for e, found in live.items()]
    )
    typer.echo()
    say_table(("section", "sha256"), list(one.hashes.items()))
    channels = one.sections["channels"]
    seen = sum(channel["deployable"] for channel in channels)
    typer.echo(f"\nchannels: {len(channels)}, of which realistic models see the {seen} deployable")
    say_table(
        ("#", *channels[0]),
        [(i, *map(_cell, channel.values())) for i, channel in enumerate(channels)],
    )
    for name, value in one.sections.items():
        if name != "channels":
            typer.echo(f"\n{name}" + (" (summary inputs only)" if name == "stats" else ""))
            for key, item in _leaves(value):
                typer.echo(f"  {key:<17} {item}")


def _leaves(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _leaves(item, f"{prefix}{key}.")
        else:
            yield prefix + key, ", ".join(item) if isinstance(item, list) else str(item)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "/".join(value) if isinstance(value, list) else value


@contract_app.command()
def diff(
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt.json; its sidecar is not read.")],
    as_json: JsonOption = False,
) -> None:
    """Every difference between a checkpoint's contract and the one in force; exit 4 if any."""
    from features import registry
    from models.checkpoint import CheckpointError, contract_differences, read_header, remedy

    with failing({CheckpointError: FAILED}):
        header = read_header(existing_file(checkpoint))
        differences = contract_differences(header, registry.LAYOUT, str(checkpoint))
    advice = remedy(header) if differences else None
    if as_json:
        say_json(
            {
                "checkpoint": str(checkpoint),
                "contract_hash": header["contract_hash"],
                "differences": differences,
                "remedy": advice,
            }
        )
    elif differences:
        typer.echo("\n".join([*differences, f"\n{advice}"]))
    else:
        typer.echo("no difference")
    raise typer.Exit(MISMATCH if differences else OK)


def inspect(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="A .ckpt.json, or a folder: all in it, however deep."
        ),
    ],
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Load each, and replay the golden vectors: exit 1 if one is broken, else 4 if one "
            "differs.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List checkpoints from their headers: what each is, and whether it would load today."""
    from models.inspection import find_checkpoints

    found = [each for path in paths for each in find_checkpoints(existing(path))]
    if not found:
        fail(f"{', '.join(map(str, paths))}: no .ckpt.json in there; train: phasewatch run", USAGE)
    entries = list(_look(list(dict.fromkeys(found)), verify=verify))
    if as_json:
        say_json({"verified": verify, "checkpoints": [entry.as_row() for entry in entries]})
    else:
        _show(entries, verify=verify)
    if verify and any(entry.broken for entry in entries):
        raise typer.Exit(FAILED)
    if verify and any(entry.differences for entry in entries):
        raise typer.Exit(MISMATCH)


def _look(paths: list[Path], *, verify: bool) -> Iterator["Entry"]:
    from features import registry
    from models import inspection

    layout = registry.LAYOUT
    if not verify:
        yield from (inspection.inspect(path, layout) for path in paths)
        return
    from features.golden import differences

    replayed = differences(layout)  # the same for all
    for path in track(paths, "verifying"):
        yield inspection.verify(path, layout, replayed)


def _show(entries: list["Entry"], *, verify: bool) -> None:
    columns = ("checkpoint", "model", "mode", "recipe", "val F1", "dataset", "contract", "schema",
               "MB", "commit", "verified" if verify else "loads")  # fmt: skip
    rows = []
    for entry in entries:
        row = entry.as_row()
        score, size, commit = row["val_macro_f1"], row["bytes"], row["code_commit"]
        rows.append(
            (
                entry.path,
                *(row[name] or "-" for name in ("model", "mode", "recipe")),
                "-" if score is None else f"{score:.3f}",
                *(
                    (row[name] or "-")[:_SHOWN_DIGITS]
                    for name in ("dataset_version", "contract_hash", "schema_hash")
                ),
                "-" if size is None else f"{size / 1e6:.2f}",
                "-" if commit is None else commit[:7] + ("-dirty" if "-" in commit else ""),
                _verdict(entry, verify=verify),
            )
        )
    say_table(columns, rows)
    alike: dict[tuple[str, ...], list[Path]] = {}  # a change of the code shows in every checkpoint
    for entry in entries if verify else ():
        if entry.differences:
            alike.setdefault(tuple(entry.differences), []).append(entry.path)
    for lines, paths in alike.items():
        typer.echo("\n" + "\n".join([*map(str, paths), *(f"  - {line}" for line in lines)]))


def _verdict(entry: "Entry", *, verify: bool) -> str:
    if entry.broken is not None:
        return "broken: " + entry.broken.removeprefix(f"{entry.path}: ")
    if entry.unverified is not None:
        return "not verified: " + entry.unverified.removeprefix(f"{entry.path}: ")
    if not entry.differences:
        return "yes"
    if verify:  # they are listed below the table
        return f"no: listed below ({len(entry.differences)})"
    first, *rest = entry.differences
    return f"no: {first}" + (f" (and {len(rest)} more)" if rest else "")
