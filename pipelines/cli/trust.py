"""Commands about whom to believe: ``keys``, ``verify`` and ``log``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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

keys_app = typer.Typer(help="Keys that sign, and whose signatures hold here.", no_args_is_help=True)


@dataclass(frozen=True)
class Keys(Document):
    """The keys of this machine."""

    folder: Path
    signs: str | None  # name of the key that signs what is made here
    trusted: list[TrustedKey]

    def as_json(self) -> dict[str, Any]:
        trusted = [{"name": key.name, "id": key.id} for key in self.trusted]
        return {"folder": str(self.folder), "signs": self.signs, "trusted": trusted}

    def text(self) -> Iterator[str | Table]:
        yield f"{self.folder}"
        if not self.trusted:
            yield "no key is trusted here; make one: phasewatch keys new NAME"
            return
        yield Table(
            ("name", "id", "signs here"),
            [(k.name, k.id, "yes" if k.name == self.signs else "") for k in self.trusted],
        )


def _keys() -> Keys:
    from config.signing import keys_folder, signing_key, trusted_keys

    key = signing_key()
    return Keys(keys_folder(), key.name if key else None, list(trusted_keys().values()))


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
) -> Keys:
    """Make the key that signs what is made on this machine, and trust it."""
    from config.signing import new_key

    _apart(workspace_of(config, None, artifacts))
    new_key(name)
    return _keys()


@keys_app.command(cls=Command)
@with_json
def trust(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A public key, NAME.pub.")],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Whose key it is; default: the file's name.")
    ] = "",
    config: options.Config = None,
    artifacts: options.Artifacts = None,
) -> Keys:
    """Let the signatures of another machine's key hold here."""
    from config import signing

    _apart(workspace_of(config, None, artifacts))
    signing.trust(existing_file(file), name or file.stem)
    return _keys()


@keys_app.command("list", cls=Command)
@with_json
def list_keys() -> Keys:
    """List the keys that are trusted, and the one that signs."""
    return _keys()


# --- the chain


@dataclass(frozen=True)
class Verified(Document):
    """Every link of a chain, the nearest first."""

    links: list[Link]

    def as_json(self) -> dict[str, Any]:
        return {"holds": self.exit_code == OK, "links": [asdict(link) for link in self.links]}

    def text(self) -> Iterator[str | Table]:
        yield Table(
            ("link", "state", "where", ""),
            [(link.name, link.state, link.place, link.note) for link in self.links],
        )
        broken = [link for link in self.links if not link.holds]
        yield (
            f"\n{len(broken)} of {len(self.links)} links do not hold"
            if broken
            else f"\nall {len(self.links)} links hold"
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
) -> Verified:
    """Verify a bundle or a checkpoint, and all that it was made from.

    Episodes, shards, dataset, checkpoint, alarm rule, bundle: every hash and every signature. Exit
    code 1 if a link is broken or gone.
    """
    from models.checkpoint import SUFFIX
    from stages.chain import Chain
    from stages.project import Project

    workspace = workspace_of(config, store, artifacts, must_exist=True)
    if require_signature:
        workspace = workspace.model_copy(update={"require_signatures": True})
    chain = Chain(Project(workspace))
    if existing(target).is_dir():
        chain.bundle(target)
    elif target.name.endswith(SUFFIX):
        chain.checkpoint(target)
    else:
        fail(f"{target}: must be the folder of a bundle or a {SUFFIX}", USAGE)
    return Verified(chain.links)
