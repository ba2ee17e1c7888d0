"""Commands about whom to believe: ``keys``, ``verify`` and ``log``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from config.messages import shortened
from pipelines.cli import options
from pipelines.cli.console import (
    FAILED,
    OK,
    USAGE,
    Command,
    Document,
    Table,
    existing,
    existing_file,
    fail,
    with_json,
    workspace_of,
)

if TYPE_CHECKING:
    from config.signing import TrustedKey
    from stages.chain import Link
    from stages.workspace import Workspace

_SHOWN = 10  # of a list
_SIGN = (
    "To sign these artifacts here: {key}set require_signatures: true in your configuration, and "
    "give that configuration to phasewatch run; it rebuilds and signs what is unsigned. Then "
    "promote the champion and write bundles again. If a signed copy is on another machine, copy "
    "it here and trust its key: phasewatch keys trust FILE"
)

keys_app = typer.Typer(
    help="The key that signs here, and the keys that are trusted.", no_args_is_help=True
)


@dataclass(frozen=True)
class KeysDocument(Document):
    """The keys of this machine."""

    folder: Path
    signs: str | None  # name of the key that signs what is made here
    signs_id: str | None
    trusted: list[TrustedKey]
    made: str | None = None  # name of the key that was made now

    def as_json(self) -> dict[str, Any]:
        trusted = [{"name": key.name, "id": key.id} for key in self.trusted]
        return {
            "folder": str(self.folder), "signs": self.signs, "signs_id": self.signs_id,
            "trusted": trusted,
        }  # fmt: skip

    def text(self) -> Iterator[str | Table]:
        yield f"{self.folder}"
        if self.signs and self.signs_id not in {key.id for key in self.trusted}:
            yield (
                f"{self.signs} ({self.signs_id}) signs here and is not trusted: move its key away "
                f"({self.signs}.key), then run: phasewatch keys new NAME"
            )
        elif not self.trusted:
            yield "no key is trusted here; make one: phasewatch keys new NAME"
        if self.trusted:
            yield Table(
                ("name", "id", "signs here"),
                [(k.name, k.id, "yes" if k.id == self.signs_id else "") for k in self.trusted],
            )
        if self.made:
            yield (
                "What is made here is now signed. To trust this key on another machine, copy "
                f"{self.folder / self.made}.pub there and run: "
                f"phasewatch keys trust {self.made}.pub"
            )


def _keys() -> KeysDocument:
    from config.signing import keys_folder, signing_key, trusted_keys

    key = signing_key()
    return KeysDocument(
        keys_folder(), key.name if key else None, key.id if key else None,
        list(trusted_keys().values()),
    )  # fmt: skip


def _apart(workspace: Workspace) -> None:
    """Refuse keys that whoever writes artifacts could write, too."""
    from config.signing import VARIABLE, keys_folder

    folder, artifacts = keys_folder().resolve(), workspace.artifacts_path.resolve()
    if folder.is_relative_to(artifacts):
        fail(
            f"{folder}: keys must lie outside the artifacts folder; set {VARIABLE} to another one",
            USAGE,
        )


@keys_app.command(cls=Command)
@with_json
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is, such as lab-a.")],
    config: options.Config = None,
    artifacts: options.Artifacts = None,
) -> KeysDocument:
    """Make the key that signs what is made on this machine, and trust it."""
    from config.signing import new_key

    _apart(workspace_of(config, None, artifacts))
    new_key(name)
    return replace(_keys(), made=name)


@keys_app.command(cls=Command)
@with_json
def trust(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A public key, NAME.pub.")],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Whose key it is; default: the file's name.")
    ] = "",
    config: options.Config = None,
    artifacts: options.Artifacts = None,
) -> KeysDocument:
    """Trust another machine's key: accept what it signed."""
    from config import signing

    _apart(workspace_of(config, None, artifacts))
    signing.trust(existing_file(file), name or file.stem)
    return _keys()


@keys_app.command("list", cls=Command)
@with_json
def list_keys() -> KeysDocument:
    """List the keys that are trusted, and the one that signs."""
    return _keys()


# --- the chain


@dataclass(frozen=True)
class VerifyDocument(Document):
    """Every link of a chain, the nearest first."""

    links: list[Link]

    def as_json(self) -> dict[str, Any]:
        return {"holds": self.exit_code == OK, "links": [asdict(link) for link in self.links]}

    def text(self) -> Iterator[str | Table]:
        from evaluation.wording import plural

        failing = [link for link in self.links if not link.holds]
        told = [link for link in failing if link.state != "not trusted"]  # the others are short
        yield Table(
            ("link", "state", "note", "where"),
            [
                (link.name, link.state, "see below" if link in told else link.note, link.place)
                for link in self.links
            ],
        )
        if told:
            yield ""
        yield from (f"{link.name} {link.place}: {link.state}: {link.note}" for link in told)
        if not failing:
            yield f"\nall {plural(len(self.links), 'link')} hold"
            return
        verb = "does" if len(failing) == 1 else "do"
        yield f"\n{len(failing)} of {plural(len(self.links), 'link')} {verb} not hold"
        if len(told) < len(failing):
            from config.signing import signing_key

            yield _SIGN.format(
                key="" if signing_key() else "make a key (phasewatch keys new NAME), "
            )

    @property
    def exit_code(self) -> int:
        return OK if all(link.holds for link in self.links) else FAILED


def verify(
    target: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle, or a .ckpt.json.")
    ],
    require_signature: options.RequireSignature = False,
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> VerifyDocument:
    """Verify a bundle or a checkpoint, and all that it was made from.

    Episodes, validation index, shards, dataset, checkpoint, alarm rule, bundle: every hash and
    every signature. Exit code 1 if a link is broken, gone or not trusted.
    """
    from models.checkpoint import SUFFIX
    from stages.chain import ChainVerifier
    from stages.project import Project

    workspace = workspace_of(
        config, store, artifacts, must_exist=True, require_signatures=require_signature
    )
    chain = ChainVerifier(Project(workspace))
    if existing(target).is_dir():
        chain.bundle(target)
    elif target.name.endswith(SUFFIX):
        chain.checkpoint(target)
    else:
        fail(f"{target}: must be the folder of a bundle or a {SUFFIX}", USAGE)
    return VerifyDocument(chain.links)


# --- the log of decisions

log_app = typer.Typer(help="The hub's log of decisions.", no_args_is_help=True)


@dataclass(frozen=True)
class VerifyLogDocument(Document):
    """What is in the log, and where it is not as it was written."""

    folder: str
    records: int
    before: int  # lines written before chaining existed
    last: str
    torn: str  # where a crash cut the last line off; the hub sets it aside when it starts
    signed: str
    faults: list[dict[str, str]]

    def text(self) -> Iterator[str | Table]:
        if not (self.records or self.torn or self.faults):
            yield f"{self.folder}: the log is empty"
            return
        from evaluation.wording import plural

        lines = plural(self.records, "line")
        last = f", the last is {self.last[:12]}" if self.records else ""
        yield f"{self.folder}: {lines}{last}; {self.signed}"
        if self.before:
            yield f"the first {self.before} were written before chaining existed"
        if self.torn:
            yield f"{self.torn}: was cut off by a crash before it was acknowledged"
        yield from (f"{fault['where']}: {fault['problem']}" for fault in self.faults)
        if not self.faults:
            yield "no line was changed, and none is missing"

    @property
    def exit_code(self) -> int:
        return FAILED if self.faults else OK


@log_app.command("verify", cls=Command)
@with_json
def verify_log(
    config: options.Config = None,
    artifacts: options.Artifacts = None,
    require_signature: options.RequireSignature = False,
) -> VerifyLogDocument:
    """Find lines that were changed, dropped, moved or repeated.

    Exit code 1 if anything is wrong.
    """
    from config.signing import distrust
    from evaluation.decisions import read_chain

    workspace = workspace_of(config, None, artifacts, must_exist=True)
    chain = read_chain(workspace.decisions_folder)
    faults = [{"where": f.where, "kind": f.kind, "problem": f.problem} for f in chain.faults]
    needed = require_signature or workspace.require_signatures
    if chain.count and (why := distrust(chain.signed, required=needed)):
        faults.append({"where": "head.json", "kind": "signature", "problem": why})
    return VerifyLogDocument(
        str(workspace.decisions_folder), chain.before + chain.count, chain.before, chain.last,
        chain.torn, chain.signed.line, faults,
    )  # fmt: skip


@dataclass(frozen=True)
class ReplayLogDocument(Document):
    """Decisions that were made again from the rows in the store."""

    bundle: str
    identical: int
    different: list[str]
    left_out: dict[str, int]
    unverified: list[str]  # lines that are not as they were written, or are there twice

    def text(self) -> Iterator[str | Table]:
        yield f"bundle {self.bundle}"
        from evaluation.wording import plural

        if not (self.identical or self.left_out or self.different or self.unverified):
            yield "the log is empty: there was nothing to recompute"
            return
        yield f"{plural(self.identical, 'decision')} recomputed identically"
        for why, n in self.left_out.items():
            yield f"{plural(n, 'line')} not recomputed: {why}"
        for where in self.different[:_SHOWN]:
            yield f"different: {where}"
        if len(self.different) > _SHOWN:
            yield f"and {len(self.different) - _SHOWN} more different"
        if self.unverified:
            verify = "does not verify" if len(self.unverified) == 1 else "do not verify"
            where = shortened(self.unverified, ", ", _SHOWN)
            yield f"{plural(len(self.unverified), 'line')} {verify}: {where}"
            yield "Find out what was done to the log: phasewatch log verify"

    @property
    def exit_code(self) -> int:
        return FAILED if self.different or self.unverified else OK


@log_app.command("replay", cls=Command)
@with_json
def replay_log(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle that made the decisions.")
    ],
    config: options.Config = None,
    store: options.Store = None,
    artifacts: options.Artifacts = None,
) -> ReplayLogDocument:
    """Recompute the decisions of the log and compare every digit.

    Exit code 1 if one differs, or if a line of the log does not verify.
    """
    from evaluation.decisions import read_chain
    from live.bundle import load_bundle
    from stages.decisions import LogReplay
    from stages.project import Project

    workspace = workspace_of(config, store, artifacts, must_exist=True)
    made = load_bundle(
        existing(bundle), workspace.layout, require_signature=workspace.require_signatures
    )
    replay = LogReplay(Project(workspace), made)
    chain = read_chain(workspace.decisions_folder, replay.take)
    found = replay.result
    return ReplayLogDocument(
        made.id, found.identical, found.different, dict(found.left_out), chain.refused
    )
