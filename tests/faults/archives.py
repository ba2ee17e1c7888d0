"""Archives that no collector writes: bombs, endless files, damaged and crafted headers, odd JSON.

Each is judged, and extracted if it is usable, in a process of its own. It must get a verdict for a
reason that is known, within 10 s of processor time and 512 MB.
"""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import zstandard
from builders import (
    NS_PER_S,
    START_NS,
    Members,
    compress,
    edit,
    edit_meta,
    edit_rows,
    entries_of,
    entry,
    make_members,
    pack,
    pack_tar,
    sha256,
    ulid,
)

from episodes.archive import MAX_READ_BYTES
from episodes.format import ARCHIVE_SUFFIX, SOURCES
from episodes.jsonl import MAX_LINE_BYTES, MAX_ROWS
from episodes.store import IndexRow, StoredEpisode
from episodes.validation import ValidationPolicy
from faults.apart import Limits, apart
from faults.table import Bench, Outcome, fault
from features.registry import LAYOUT
from stages.validating import validate_and_extract

ID = ulid(START_NS // 1_000_000)
FILES = [source.file for source in SOURCES.values()]
GUEST, NETFLOW = "telemetry-guest.jsonl", "netflow.jsonl"
LIMITS = Limits(cpu_s=10.0, wall_s=120.0, most_bytes=512_000_000)
"""What ``docs/data-format.md`` promises. The slowest takes 7 s where others share the cores."""
MIB = 2**20

Craft = Callable[[Random], bytes]
"""Makes the bytes of one hostile archive."""


@cache
def good() -> Members:
    return make_members("lab-a", ID, duration_s=20.0)


def tar_of(*more: tuple[tarfile.TarInfo, bytes]) -> bytes:
    return pack_tar([*entries_of(ID, good()), *more])


def holding(name: str, content: bytes | Callable[[], bytes]) -> Craft:
    """The good episode with another file, whose hash ``meta.json`` states."""

    def craft(_: Random) -> bytes:
        return pack(
            ID, replaced(good(), name, content if isinstance(content, bytes) else content())
        )

    return craft


def replaced(members: Members, name: str, content: bytes) -> Members:
    """The members with another file and its hash; its rows are not counted."""
    if name == "meta.json":
        return members | {name: content}
    meta = json.loads(members["meta.json"])
    meta["files"][name] = {"sha256": sha256(content), "rows": 7}
    return members | {name: content, "meta.json": json.dumps(meta).encode()}


def zstd_of(content: Callable[[], bytes]) -> Craft:
    return lambda _: compress(content())


def raw_header(
    name: bytes, size: bytes | int, kind: bytes = b"0", magic: bytes = b"ustar\x0000"
) -> bytes:
    """A tar header with a right sum, whatever it says."""
    stated = size if isinstance(size, bytes) else b"%011o\0" % size
    head = name.ljust(100, b"\0") + b"0000644\0" * 3 + stated + b"00000000000\0" + b" " * 8 + kind
    head = head.ljust(257, b"\0") + magic
    head = head.ljust(512, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def headed(*headers: bytes) -> Craft:
    """Raw blocks first, then the good episode."""
    return zstd_of(lambda: b"".join(headers) + tar_of())


def pax(**facts: str) -> bytes:
    content = b""
    for key, value in facts.items():
        record = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(record) + 1
        while len(str(length)) + len(record) != length:
            length = len(str(length)) + len(record)
        content += str(length).encode() + record
    return raw_header(b"pax", len(content), b"x") + content + bytes(-len(content) % 512)


def streamed(piece: bytes, count: int, before: bytes = b"", window_log: int = 0) -> bytes:
    """A piece many times over, compressed as it is made."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        1, **({"window_log": window_log, "enable_ldm": True} if window_log else {})
    )
    out = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(
        out, closefd=False
    ) as writer:
        writer.write(before)
        for _ in range(count):
            writer.write(piece)
    return out.getvalue()


ZEROS = ((131_072 << 3) | 2).to_bytes(3, "little") + b"\0"  # a block of 128 KiB


def frame(window: int, blocks: bytes) -> bytes:
    return struct.pack("<IBB", 0xFD2FB528, 0, window) + blocks


def raw_blocks(content: bytes) -> bytes:
    pieces = [content[i : i + 100_000] for i in range(0, len(content), 100_000)]
    return b"".join(
        ((len(piece) << 3) | (i == len(pieces) - 1)).to_bytes(3, "little") + piece
        for i, piece in enumerate(pieces)
    )


def filled(line: bytes, size: int = MAX_READ_BYTES - 2 * MIB) -> bytes:
    return line * (size // len(line))


def row(extra: bytes = b"", t: int = START_NS) -> bytes:
    return (
        b'{"t_wall_ns":%d,"t_mono_ns":1,"source":"guest_agent",'
        b'"available_in_deployment":true%s}\n' % (t, extra)
    )


def wide(value: bytes) -> bytes:
    """Lines as long as they may be, of nothing but one value."""
    count = (MAX_LINE_BYTES - 200) // (len(value) + 1)
    return filled(row(b',"x":[' + b",".join([value] * count) + b"]"))


def many_slow_rows() -> bytes:
    """As many rows as there may be, each of which needs the parser of Python."""
    return b"".join(row(b',"\\u0061":%d' % i, START_NS + i) for i in range(MAX_ROWS))


def in_every_source(content: Callable[[], bytes]) -> Craft:
    def craft(_: Random) -> bytes:
        members = good()
        for name in FILES:
            members = replaced(members, name, content())
        return pack(ID, members)

    return craft


def hours_long(_: Random) -> bytes:
    """Few rows over almost three hours: as large a grid as there may be."""

    def spread(rows: list[dict]) -> None:
        for number, each in enumerate(rows):
            each["t_wall_ns"] = START_NS + number * 53 * NS_PER_S

    members = edit_meta(good(), {"ended_at_wall_ns": START_NS + 10_790 * NS_PER_S})
    for name in FILES[:3]:
        members = edit_rows(members, name, spread)
    return pack(ID, members)


def labels(count: int, name: Callable[[int], str]) -> bytes:
    return b"".join(
        json.dumps({"t_wall_ns": START_NS + i, "phase": name(i)}).encode() + b"\n"
        for i in range(count)
    )


def jobs(count: int, name: str) -> bytes:
    starts = [{"t_wall_ns": START_NS + i, "event": "benign_job_start"} for i in range(count // 2)]
    ends = [{"t_wall_ns": START_NS + i, "event": "benign_job_end"} for i in range(count // 2)]
    events = b"".join(json.dumps(e | {"job": name}).encode() + b"\n" for e in starts + ends)
    return good()["events.jsonl"] + events


def meta_with(**values: object) -> Craft:
    return lambda _: pack(ID, edit_meta(good(), values))


def odd_clock(name: str, key: str, value: int, *, coarse: bool = False) -> Craft:
    def change(rows: list[dict]) -> None:
        for number, each in enumerate(rows):
            if coarse:
                each["t_wall_ns"] -= each["t_wall_ns"] % NS_PER_S
            if number % 7 == 3:
                each[key] = value

    return lambda _: pack(ID, edit_rows(good(), name, change))


A_FILE = raw_header(f"{ID}/x".encode(), 0)
SPARSE = {"GNU__sparse__name": f"{ID}/{NETFLOW}"}
CRAFTED: dict[str, tuple[Craft, str]] = {
    # tar
    "2 million folders": (
        lambda _: streamed(raw_header(ID.encode() + b"/", 0, b"5") * 2000, 1000),
        "unsafe_archive",
    ),
    "1,001 members": (
        zstd_of(lambda: tar_of(*(entry(f"{ID}/x") for _ in range(1001)))),
        "unsafe_archive",
    ),
    "extended header of a GiB": (
        lambda _: streamed(bytes(MIB), 1023, raw_header(b"x", 1023 * MIB, b"x")),
        "unsafe_archive",
    ),
    "long name of 512 MiB": (
        lambda _: streamed(b"a" * MIB, 512, raw_header(b"x", 512 * MIB, b"L")),
        "unsafe_archive",
    ),
    "endless global headers": (
        lambda _: streamed(raw_header(b"g", 512, b"g") + b"0" * 512, 500_000),
        "broken_archive",
    ),
    "endless empty global headers": (
        lambda _: streamed(raw_header(b"g", 0, b"g") * 1000, 2000),
        "unsafe_archive",
    ),
    "endless extended headers": (headed(pax(a="b") * 2000), "unsafe_archive"),
    "endless long links": (headed(raw_header(b"x", 0, b"K") * 2000), "unsafe_archive"),
    "two names": (
        headed(pax(path=f"{ID}/x"), raw_header(b"", 3, b"L"), b"abc".ljust(512, b"\0")),
        "unsafe_archive",
    ),
    "two sizes": (
        headed(raw_header(b"pax", 20, b"x"), b"10 size=1\n10 size=2\n".ljust(512, b"\0"), A_FILE),
        "unsafe_archive",
    ),
    "size below 0": (headed(pax(size="-512"), A_FILE), "broken_archive"),
    "size of 20 digits": (headed(pax(size="9" * 20), A_FILE), "broken_archive"),
    "size of 5,000 digits": (headed(pax(size="9" * 5000), A_FILE), "broken_archive"),
    "size of an EiB": (headed(pax(size=str(2**59)), A_FILE), "broken_archive"),
    "size below 0, binary": (headed(raw_header(b"x", b"\xff" * 12)), "broken_archive"),
    "size of 2^90, binary": (
        headed(raw_header(f"{ID}/x".encode(), b"\x80" + b"\xff" * 11)),
        "broken_archive",
    ),
    "size no number": (headed(raw_header(b"x", b"size of it\0\0")), "broken_archive"),
    "digits without end in a pax header": (
        headed(raw_header(b"x", 65_536, b"x"), b"1" * 65_536),
        "broken_archive",
    ),
    "pax record of length 0": (
        headed(raw_header(b"x", 10, b"x"), b"0 path=x\n\n".ljust(512, b"\0")),
        "broken_archive",
    ),
    "sparse 0.0": (
        headed(pax(GNU__sparse__size="9", GNU__sparse__numblocks="1")),
        "unsafe_archive",
    ),
    "sparse 0.1": (headed(pax(GNU__sparse__map="0,3", **SPARSE)), "unsafe_archive"),
    "sparse 1.0": (
        headed(pax(GNU__sparse__major="1", GNU__sparse__minor="0", **SPARSE)),
        "unsafe_archive",
    ),
    "old sparse": (headed(raw_header(f"{ID}/x".encode(), 0, b"S")), "unsafe_archive"),
    "a volume": (headed(raw_header(b"x", 0, b"V")), "unsafe_archive"),
    "name of 60 kB": (headed(pax(path="a" * 60_000), raw_header(b"x", 0)), "unsafe_archive"),
    "name no text": (headed(raw_header(b"\xff\xfe/\x80", 0)), "unsafe_archive"),
    "a GiB said, nothing there": (
        zstd_of(lambda: raw_header(f"{ID}/{GUEST}".encode(), 1024 * MIB - 512)),
        "unsafe_archive",
    ),
    "60 MiB said, nothing there": (
        zstd_of(lambda: raw_header(f"{ID}/{GUEST}".encode(), 60 * MIB)),
        "broken_archive",
    ),
    "all bits set": (zstd_of(lambda: b"\xff" * 10_240), "broken_archive"),
    "zeros alone": (zstd_of(lambda: bytes(10_240)), "schema"),
    "no end": (zstd_of(lambda: tar_of().rstrip(b"\0") + bytes(100)), "broken_archive"),
    # zstd
    "window of 2 GiB": (lambda _: frame(0xA8, raw_blocks(tar_of())), "unsafe_archive"),
    "window of 3.75 TiB": (lambda _: frame(0xFF, raw_blocks(tar_of())), "broken_archive"),
    "content of an EiB said": (
        lambda _: struct.pack("<IBBQ", 0xFD2FB528, 0xC0, 0x58, 2**60) + raw_blocks(tar_of()),
        "broken_archive",
    ),
    "one segment of an EiB": (
        lambda _: struct.pack("<IBQ", 0xFD2FB528, 0xE0, 2**60) + raw_blocks(tar_of()),
        "unsafe_archive",
    ),
    "bomb of a GiB": (
        lambda _: streamed(bytes(MIB), 1100, raw_header(f"{ID}/x".encode(), 1100 * MIB)),
        "unsafe_archive",
    ),
    "bomb of 16 GiB": (
        lambda _: frame(
            0x58,
            (512 << 3).to_bytes(3, "little")
            + raw_header(f"{ID}/x".encode(), 16 * 1024 * MIB - 1)
            + ZEROS * 90_000,
        ),
        "broken_archive",
    ),
    "the largest window and a GiB less a block": (
        lambda _: frame(
            0x88,
            (512 << 3).to_bytes(3, "little")
            + raw_header(f"{ID}/x".encode(), 8_190 * 131_072)
            + ZEROS * 8_191
            + b"\x01\0\0",
        ),
        "",
    ),
    "4 million empty frames": (lambda _: frame(0x58, b"\x01\0\0") * 4_000_000, "unsafe_archive"),
    "20 million empty blocks": (lambda _: frame(0x58, b"\0\0\0" * 20_000_000), "unsafe_archive"),
    "8 million skippable frames": (
        lambda _: struct.pack("<II", 0x184D2A50, 0) * 8_000_000,
        "unsafe_archive",
    ),
    "skippable frame beyond the end": (
        lambda _: pack(ID, good()) + struct.pack("<II", 0x184D2A50, 2**32 - 1),
        "broken_archive",
    ),
    "a dictionary": (
        lambda _: struct.pack("<IBBB", 0xFD2FB528, 1, 0x58, 7) + raw_blocks(tar_of()),
        "broken_archive",
    ),
    "reserved block": (lambda _: frame(0x58, b"\x07\0\0"), "broken_archive"),
    "random": (lambda r: r.randbytes(100_000), "broken_archive"),
    "random behind a magic number": (
        lambda r: struct.pack("<I", 0xFD2FB528) + r.randbytes(100_000),
        "",
    ),
    # lines
    **{
        f"{label} in {name}": (holding(name, content), code)
        for label, content, code in (
            ("110 kB of newlines", b"\n" * 110_000, ""),
            ("60 MiB of newlines", lambda: filled(b"\n"), "schema"),
            ("60 MiB of blanks", lambda: filled(b" "), "schema"),
            ("20 million empty objects", lambda: filled(b"{}\n"), "schema"),
            ("one line of 60 MiB", lambda: b'{"a":"' + filled(b"a"), "schema"),
            ("60 MiB of brackets", lambda: filled(b"["), "schema"),
            ("60 MiB of zeros", lambda: filled(b"\0"), "schema"),
        )
        for name in ("labels.jsonl", GUEST)
    },
    **{
        f"wide rows: {label}": (holding(GUEST, lambda value=value: wide(value)), "")
        for label, value in {
            "lists": b"[]",
            "objects": b"{}",
            "ints": b"1",
            "floats": b"1.1",
            "NaN": b"NaN",
            "ints of 4,300 digits": b"9" * 4300,
            "ints of 5,000": b"9" * 5000,
            "deep lists": b"[" * 900 + b"]" * 900,
            "too deep": b"[" * 1100 + b"]" * 1100,
            "deep objects": b'{"a":' * 900 + b"1" + b"}" * 900,
            "text": b'"\\u0041\\n"',
        }.items()
    },
    "wide rows: keys": (
        holding(
            GUEST,
            lambda: filled(row(b"," + b",".join(b'"%x":{}' % i for i in range(1600)))),
        ),
        "",
    ),
    "one key many times": (
        holding(GUEST, lambda: filled(row(b"," + b",".join([b'"forks":1'] * 1600)))),
        "",
    ),
    "60 MiB of equal rows": (holding(GUEST, lambda: filled(row())), "schema"),
    "rows of one instant": (
        holding(
            GUEST,
            lambda: b"".join(
                row(b',"forks":%d,"x":"%s"' % (i, b"a" * 300)) for i in range(MAX_ROWS)
            ),
        ),
        "",
    ),
    "slow rows in every source": (in_every_source(many_slow_rows), ""),
    "too many rows in every source": (
        in_every_source(lambda: b"".join(row(b"", START_NS + i) for i in range(MAX_ROWS + 1))),
        "schema",
    ),
    "a row of each length up to the limit": (
        holding(
            GUEST, lambda: b"".join(row(b',"x":"%s"' % (b"a" * n)) for n in range(0, 16_500, 97))
        ),
        "schema",
    ),
    # labels, events, meta
    "10,000 unknown labels": (
        holding("labels.jsonl", lambda: labels(10_000, str)),
        "unknown_label",
    ),
    "10,000 long labels": (
        holding("labels.jsonl", lambda: labels(5_000, lambda _: "clean" + "x" * 9_000)),
        "schema",
    ),
    "10,000 labels": (
        holding("labels.jsonl", lambda: labels(10_000, lambda i: ("clean", "armed")[i % 2])),
        "",
    ),
    "10,000 jobs": (holding("events.jsonl", lambda: jobs(9_000, "backup")), ""),
    "10,000 jobs of long names": (holding("events.jsonl", lambda: jobs(3_000, "b" * 9_000)), ""),
    "meta of 60 MiB": (holding("meta.json", lambda: b'{"a":"' + filled(b"a") + b'"}'), "schema"),
    "meta of 60 MiB of lists": (
        holding("meta.json", lambda: b"[" + filled(b"[],") + b"1]"),
        "schema",
    ),
    "meta 900 deep": (holding("meta.json", b'{"a":' * 900 + b"1" + b"}" * 900), "schema"),
    "meta 90,000 deep": (holding("meta.json", b"[" * 90_000), "schema"),
    "meta of 5,000 digits": (
        holding("meta.json", b'{"schema_version":' + b"1" * 5000 + b"}"),
        "schema",
    ),
    "meta lists 3,000 files": (
        meta_with(**{f"files/{i}": {"sha256": "0"} for i in range(3_000)}),
        "",
    ),
    "meta with a name of 100 kB": (meta_with(**{"sample.name": "a" * 100_000}), "schema"),
    "meta with half a character": (meta_with(**{"sample.name": "\ud800"}), ""),
    "meta with a profile that is a path": (meta_with(**{"sample.profile": "../../x\0y\n"}), ""),
    "meta ends a century later": (
        meta_with(ended_at_wall_ns=START_NS + 3_200_000_000 * NS_PER_S),
        "schema",
    ),
    "meta begins at the least instant": (meta_with(started_at_wall_ns=-(2**63)), "schema"),
    "meta spans all instants": (
        meta_with(started_at_wall_ns=-(2**63), ended_at_wall_ns=2**63 - 1),
        "schema",
    ),
    "hours of few rows": (hours_long, ""),
    **{
        f"{key} {value:+.0e} in {name}{' (coarse)' * coarse}": (
            odd_clock(name, key, value, coarse=coarse),
            "",
        )
        for name, coarse in ((GUEST, False), (NETFLOW, False), (NETFLOW, True))
        for key in ("t_wall_ns", "t_mono_ns")
        for value in (-(2**63), 2**63 - 1, 0)
    },
    **{
        f"{value} as a value": (
            lambda _, value=value: pack(
                ID,
                edit(
                    good(), GUEST, lambda c: c.replace(b'"forks":', b'"forks":' + value + b',"x":')
                ),
            ),
            "",
        )
        for value in (b"1e308", b"-1e308", b"5e-324", b"1e999", b"-0.0", b"9223372036854775807")
    },
}
"""Label -> how it is made, and a reason that it must be given; empty: it may even be usable."""


# --- what is in the place of an archive


def a_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def a_terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


IN_PLACE: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": a_socket,
    "folder": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path),
    "link to a terminal": lambda path: path.symlink_to("/dev/tty"),
    "link to endless zeros": lambda path: path.symlink_to("/dev/zero"),
    "a TiB of nothing": a_terabyte,
    "nothing": Path.touch,
}


# --- the faults


def judge(path: Path, content: bytes | None) -> list[str]:
    """The verdict and its reasons, as ingest gets them."""
    digest = sha256(content) if content is not None else "0" * 64
    size = path.lstat().st_size
    index = IndexRow(ID, "lab-a", digest, size, "2026-11-02T08:00:00Z", 1)
    stored = StoredEpisode("lab-a", ID, str(path), size, (index,))
    record, _ = validate_and_extract(stored, ValidationPolicy(), LAYOUT)
    return [record.verdict, *record.reasons, *record.details]


def outcome(path: Path, content: bytes | None, reason: str) -> Outcome:
    ended = apart(lambda: judge(path, content), LIMITS)
    if ended.bad:
        return ended.bad
    verdict, *said = ended.result
    if "unforeseen_error" in said:
        return Outcome("traceback", str(said))
    if reason and reason not in said:
        return Outcome("wrong", f"must be {reason}, got {verdict} {said}")
    return Outcome("harmless" if verdict == "accepted" else "noticed", str(said)[:300])


def attempt(bench: Bench, content: bytes, reason: str = "") -> Outcome:
    path = bench.folder / f"{ID}{ARCHIVE_SUFFIX}"
    path.write_bytes(content)
    return outcome(path, content, reason)


@fault("hostile archive: crafted", tries=len(CRAFTED), quick=6)
def crafted(bench: Bench) -> Outcome:
    """Each of ``CRAFTED`` once."""
    label = Random(0).sample(list(CRAFTED), len(CRAFTED))[bench.number]
    craft, reason = CRAFTED[label]
    did = attempt(bench, craft(bench.random), reason)
    return Outcome(did.verdict, f"{label}: {did.note}")


@fault("hostile archive: no file", tries=len(IN_PLACE), quick=len(IN_PLACE))
def in_place(bench: Bench) -> Outcome:
    """Something else in the place of an archive."""
    label = list(IN_PLACE)[bench.number]
    path = bench.folder / f"{ID}{ARCHIVE_SUFFIX}"
    IN_PLACE[label](path)
    did = outcome(path, None, "")
    return Outcome("wrong" if did.verdict == "harmless" else did.verdict, f"{label}: {did.note}")


TOKENS = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\n", b"\r", b"\0", b"\xff", b"\xed\xa0\x80",
    b"null", b"true", b"NaN", b"Infinity", b"-", b"1e999", b"0", b"-0", b"9" * 30, b"9" * 400,
    b"t_wall_ns", b"t_mono_ns", b"source", b"phase", b"clean", b"failed", b"\xef\xbb\xbf", b" " * 9,
]  # fmt: skip


def altered(content: bytes, random: Random, times: int) -> bytes:
    """Bytes flipped, cut, doubled, moved and replaced by tokens of JSON."""
    data = bytearray(content)
    for _ in range(times):
        at, length = random.randrange(len(data) + 1), random.choice((1, 2, 8, 64, 512))
        match random.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                data[at : at + length] = random.choice(TOKENS)
            case _:
                data[at:at] = random.choice(TOKENS)
    return bytes(data)


@fault("hostile archive: altered file", tries=60, quick=3)
def altered_file(bench: Bench) -> Outcome:
    """A file altered at random before it was hashed."""
    random, members = bench.random, good()
    names = random.sample(sorted(members), random.randrange(1, 4))
    for name in sorted(names, key=lambda name: name == "meta.json"):  # last: it has the hashes
        content = altered(members[name], random, random.choice((1, 3, 30, 300)))
        members = members | {name: content} if name == "meta.json" else edit(members, name, content)
    return attempt(bench, pack(ID, members))


@fault("hostile archive: altered tar", tries=60, quick=3)
def altered_tar(bench: Bench) -> Outcome:
    """Headers altered at random, with right sums, in a sound zstd frame."""
    random, tar = bench.random, bytearray(tar_of(entry(f"{ID}/x", pax_headers={"a": "b"})))
    headers = [at for at in range(0, len(tar), 512) if tar[at + 257 : at + 262] == b"ustar"]
    for at in random.sample(headers, random.randrange(1, len(headers))):
        for _ in range(random.choice((1, 2, 5))):
            tar[at + random.choice((random.randrange(512), 124 + random.randrange(33)))] = (
                random.randrange(256)
            )
        tar[at + 148 : at + 156] = b" " * 8
        tar[at + 148 : at + 156] = b"%06o\0 " % sum(tar[at : at + 512])
    return attempt(bench, compress(bytes(tar)))


@fault("hostile archive: altered zstd", tries=60, quick=3)
def altered_zstd(bench: Bench) -> Outcome:
    """The compressed bytes altered at random."""
    times = bench.random.choice((1, 3, 30))
    return attempt(bench, altered(pack(ID, good()), bench.random, times))
