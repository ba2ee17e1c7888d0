"""Build ``data/store`` from a recorded corpus: every recorded episode, plus planted defects.

    python data/build_store.py CORPUS_STORE

A planted defect is a 20 s crop of a recorded episode, broken in one way, with an id that ends in
``DEFECTnn``. None is usable, so no crop can leak into a training set. One recorded episode loses
its index row.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import zstandard

from episodes.archive import read_members, read_packed
from episodes.format import META_FILE, SOURCES
from episodes.store import StoredEpisode, list_store
from simulation.archives import tarred

TARGET = Path(__file__).resolve().parent / "store"
CROP_S = 20
COMPRESSOR = zstandard.ZstdCompressor(level=19)
HOSTS = ("lab-a", "lab-b", "lab-c")  # whose episodes get defects
SPOILED = 4  # of a host, at most
NOT_INDEXED = 7  # position of the recorded episode that loses its index row

Members = dict[str, bytes]


def crop(members: Members, episode_id: str, seconds: int) -> Members:
    """The first seconds of an episode with another id, and matching hashes and counts."""
    meta = json.loads(members[META_FILE])
    end = meta["started_at_wall_ns"] + seconds * 10**9
    cropped: Members = {}
    for name, content in members.items():
        if name != META_FILE:
            kept = [x for x in content.splitlines(True) if json.loads(x)["t_wall_ns"] < end]
            cropped[name] = b"".join(kept)
    meta |= {"episode_id": episode_id, "ended_at_wall_ns": end, "synthetic": True}
    return seal(cropped, meta)


def seal(members: Members, meta: dict) -> Members:
    for name, content in members.items():
        meta["files"][name] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "rows": content.count(b"\n"),
        }
    return {META_FILE: json.dumps(meta).encode(), **members}


def reseal(members: Members, **changes: bytes) -> Members:
    """Replace files (``labels=…`` for ``labels.jsonl``) and update the meta."""
    rest = {name: content for name, content in members.items() if name != META_FILE}
    rest |= {f"{name}.jsonl": content for name, content in changes.items()}
    return seal(rest, json.loads(members[META_FILE]))


def label_rows(members: Members) -> list[dict]:
    return [json.loads(line) for line in members["labels.jsonl"].splitlines()]


def backwards(members: Members) -> Members:
    """A last label that is earlier than its predecessor."""
    rows = label_rows(members)
    earlier = {**rows[-1], "t_wall_ns": rows[-1]["t_wall_ns"] - 10**9}
    return reseal(members, labels=as_lines([*rows, earlier]))


def as_lines(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


# Long, because it plants one defect after the other.
def main(corpus: Path) -> None:
    listing = list_store(corpus)
    if TARGET.resolve() == corpus.resolve():
        sys.exit(f"CORPUS_STORE must be the recorded corpus, got the store to build: {corpus}")
    lost = listing.episodes[NOT_INDEXED].episode_id if len(listing.episodes) > NOT_INDEXED else ""
    whole = [e for e in listing.episodes if e.episode_id != lost]
    by_host = {host: [e for e in whole if e.host_id == host] for host in HOSTS}
    if not lost or min(map(len, by_host.values())) < SPOILED:
        sys.exit(f"{corpus}: {', '.join(HOSTS)} must each have {SPOILED} episodes or more")
    shutil.rmtree(TARGET / "episodes", ignore_errors=True)
    shutil.copytree(corpus / "episodes", TARGET / "episodes")
    index = (corpus / "index.jsonl").read_text(encoding="utf-8").splitlines()
    index = [line for line in index if lost not in line]

    planted = 0

    def plant(
        episode: StoredEpisode,
        break_it=lambda members: members,
        *,
        seconds: int = CROP_S,
        link: bool = False,
        spoil=lambda packed: packed,
        spoil_unseen=lambda packed: packed,
        on_disk: bool = True,
    ) -> None:
        nonlocal planted
        planted += 1
        episode_id = f"{episode.episode_id[:10]}00000000DEFECT{planted:02d}"
        members = read_members(read_packed(episode.path), episode.episode_id)
        broken = break_it(crop(members, episode_id, seconds))
        packed = spoil(COMPRESSOR.compress(tarred(episode_id, broken, link=link)))
        row = {
            "episode_id": episode_id,
            "host_id": episode.host_id,
            "sha256": hashlib.sha256(packed).hexdigest(),
            "size_bytes": len(packed),
            "received_at_wall": episode.index_rows[0].received_at_wall,
            "schema_version": 1,
        }
        index.append(json.dumps(row, separators=(",", ":")))
        if on_disk:
            path = TARGET / "episodes" / episode.host_id / f"{episode_id}.tar.zst"
            path.write_bytes(spoil_unseen(packed))

    a, b, c = (iter(sorted(v, key=lambda e: e.size_bytes or 0)) for v in by_host.values())

    plant(next(a), spoil_unseen=lambda packed: packed[:-1] + bytes([packed[-1] ^ 1]))
    plant(next(a), link=True)
    plant(next(a), backwards)
    plant(next(b), spoil=lambda packed: packed[: len(packed) // 2])
    plant(next(b), lambda m: {**m, "events.jsonl": m["events.jsonl"][:-2] + b" }"})
    plant(
        next(b),
        lambda m: reseal(
            m, labels=as_lines([{**row, "phase": "infected_running"} for row in label_rows(m)])
        ),
    )
    plant(next(c), seconds=12)
    plant(
        next(c),
        lambda m: {name: text for name, text in m.items() if name != SOURCES["proc"].file},
    )
    plant(next(c), on_disk=False)
    plant(next(c), lambda m: reseal(m, netflow=m["netflow.jsonl"] + b'{"t_wall_ns": 17952\n'))

    (TARGET / "index.jsonl").write_text("\n".join(index) + "\n", encoding="utf-8")
    total = sum(path.stat().st_size for path in TARGET.rglob("*") if path.is_file())
    print(f"{len(whole) + 1} recorded, {planted} planted, {total:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
