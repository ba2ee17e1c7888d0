"""A child as the bytes that a lab host would have sent, and its lines of the index."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import zstandard

from episodes.format import EVENTS_FILE, LABELS_FILE, META_FILE, NS_PER_S, SCHEMA_VERSION, SOURCES
from simulation.children import as_lines, cut_of, make_content, result_of, rfc3339
from simulation.defects import DEFECTS, NONE, Members

if TYPE_CHECKING:
    from simulation.children import Content
    from simulation.parents import Parent
    from simulation.plan import Child

_LEVEL = 1  # of zstd: smaller and faster than the higher ones on these lines
_ARRIVES_AFTER_NS = 2 * NS_PER_S

PLACEHOLDER_BYTES = 131_072  # as large as an archive; on disk it takes none
_PLACEHOLDER_SHA256 = hashlib.sha256(bytes(PLACEHOLDER_BYTES)).hexdigest()


def simulate(child: Child, parent: Parent, seed: int) -> tuple[bytes, list[dict[str, Any]]]:
    """The archive of a child and its rows of ``index.jsonl``."""
    defect = DEFECTS[child.defect] if child.defect else NONE
    content = make_content(child, parent, seed)
    defect.edit(content)
    members = defect.spoil(seal(content))
    packed = defect.damage(pack(defect.folder(child.episode_id), members, link=defect.link))
    digest = hashlib.sha256(packed).hexdigest()
    return packed, defect.index(_index_row(child, digest, len(packed), content.ended_at_ns))


def placeholder(child: Child, parent: Parent, seed: int) -> dict[str, Any]:
    """The row of ``index.jsonl`` of ``PLACEHOLDER_BYTES`` zeros in place of an archive."""
    ended_at_ns = child.started_at_ns + cut_of(child, parent, seed).duration_ns
    return _index_row(child, _PLACEHOLDER_SHA256, PLACEHOLDER_BYTES, ended_at_ns)


def _index_row(child: Child, sha256: str, n_bytes: int, ended_at_ns: int) -> dict[str, Any]:
    return {
        "episode_id": child.episode_id,
        "host_id": child.host_id,
        "sha256": sha256,
        "size_bytes": n_bytes,
        "received_at_wall": rfc3339(ended_at_ns + _ARRIVES_AFTER_NS),
        "schema_version": SCHEMA_VERSION,
    }


def seal(content: Content) -> Members:
    """The files of an episode, with their hashes and counts in its meta."""
    members = {SOURCES[name].file: sheet.text() for name, sheet in content.sources.items()}
    members[LABELS_FILE] = as_lines(content.labels)
    members[EVENTS_FILE] = as_lines(content.events)
    files = {
        name: {
            "sha256": hashlib.sha256(text).hexdigest(),
            "bytes": len(text),
            "rows": text.count(b"\n"),
        }
        for name, text in members.items()
    }
    result = result_of(content.sources, len(content.labels), len(content.events))
    meta = content.meta | {"result": result, "files": files}
    return {META_FILE: json.dumps(meta, indent=1).encode(), **members}


def pack(folder: str, members: Members, *, link: bool = False) -> bytes:
    """A ``.tar.zst`` of one folder, the same bytes every time; see ``tarred``."""
    packed = tarred(folder, members, link=link)
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(packed)


def tarred(folder: str, members: Members, *, link: bool = False) -> bytes:
    """A tar of one folder, the same bytes every time.

    Args:
        link: put a symlink into it, which no episode may have.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(f"{folder}/stderr.log")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    return buffer.getvalue()
