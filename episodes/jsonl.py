"""Telemetry rows: JSON lines to columns.

A compiled scanner reads the plain subset of JSON that collectors write (objects of numbers, short
strings, booleans) at memory speed. A line with anything else in it (escapes, non-ASCII, numbers
that need more than 53 bits to round) goes to the standard library's parser, so the result is
always that of ``json.loads``. The meaning of columns is not known here.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from episodes.jit import COMPILES, inlined, jit

FieldPath = tuple[str, ...]

WALL, MONO, TAG, DEPLOYABLE = 0, 1, 2, 3  # slots of the envelope; fields follow
_FIRST_FIELD = 4
_ENVELOPE: tuple[FieldPath, ...] = (
    ("t_wall_ns",),
    ("t_mono_ns",),
    ("source",),
    ("available_in_deployment",),
)
MAX_ROWS = 120_000
"""Over three hours at 10 Hz; further lines are not parsed, and reported as a problem."""

MAX_OBJECTS = 10_000
"""The same for labels and events."""

MAX_DEPTH = 64
"""A line whose brackets are nested deeper counts as no JSON object. Recorded: 1."""

MAX_LINE_BYTES = 16 * 2**10
"""A longer line is not parsed: short text can hold very many values. Recorded: 625 at most."""

NO_WALL_TIME = "t_wall_ns is missing or not an integer"

ABSENT, NUMBER, UNUSABLE = 0, 1, 2  # state of a field in a row


@dataclass(frozen=True)
class Rows:
    """The well-formed rows of one source, in file order.

    A row is well-formed when it is a JSON object with an integer ``t_wall_ns``. Of lines that are
    equal byte for byte, the first is kept.
    """

    t_wall_ns: NDArray[np.int64]  # (n_rows,)
    t_mono_ns: NDArray[np.int64]  # (n_rows,), 0 where ``has_mono`` is False
    has_mono: NDArray[np.bool_]  # (n_rows,)
    values: NDArray[np.float64]  # (n_rows, n_fields), NaN = missing
    unusable: NDArray[np.int64]  # (n_fields,) values that are not finite numbers
    absent: NDArray[np.int64]  # (n_fields,) rows without the field
    problems: tuple[str, ...]  # malformed lines and rows with a faulty envelope, by line number
    n_lines: int  # of the file, blank ones aside
    n_malformed: int
    n_repeated: int = 0  # well-formed lines left out because an equal one is kept

    def __len__(self) -> int:
        return len(self.t_wall_ns)

    def take(self, chosen: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Rows:
        """Some of the rows, or all in another order; the counts stay those of the file."""
        return replace(
            self,
            t_wall_ns=self.t_wall_ns[chosen],
            t_mono_ns=self.t_mono_ns[chosen],
            has_mono=self.has_mono[chosen],
            values=self.values[chosen],
        )


# Long, because the fast and the slow path fill the same arrays.
def parse_rows(
    content: bytes, fields: Sequence[FieldPath], tag: str, max_problems: int = 20
) -> Rows:
    """Parse one telemetry file.

    Args:
        content: the file; blank lines are skipped.
        fields: path of each wanted value inside a row.
        tag: the value that ``source`` must have in every row.
        max_problems: how many problems are described (all are counted).
    """
    buffer = np.frombuffer(content, dtype=np.uint8)
    starts, ends, too_many = _line_bounds(buffer, MAX_ROWS)
    n_lines = len(starts)
    times = np.zeros((n_lines, 2), dtype=np.int64)
    values = np.full((n_lines, len(fields)), np.nan)
    held = np.zeros((n_lines, len(fields) + _FIRST_FIELD), dtype=np.uint8)
    slow = np.full(n_lines, not COMPILES)  # plain, the scanner is the slower way
    if n_lines and COMPILES:
        keys = _key_table(tuple(fields))
        _scan(buffer, starts, ends, *keys, _ascii(tag), times, values, held, slow)

    malformed: dict[int, str] = {}
    blank: list[int] = []
    too_long = ends - starts > MAX_LINE_BYTES
    for i in np.flatnonzero(slow | too_long).tolist():
        if too_long[i]:
            malformed[i] = _too_long(ends[i] - starts[i])
            continue
        line = content[starts[i] : ends[i]]
        if not line.strip():
            blank.append(i)
            continue
        problem = _parse_line(line, fields, tag, times[i], values[i], held[i])
        if problem:
            malformed[i] = problem
    odd = held != NUMBER
    if np.any(odd[:, WALL]):
        for i in np.flatnonzero(odd[:, WALL] & ~slow).tolist():
            malformed.setdefault(i, NO_WALL_TIME)

    chosen: NDArray[np.bool_] | slice = slice(None)
    if blank or malformed:
        chosen = np.ones(n_lines, dtype=np.bool_)
        chosen[blank] = chosen[list(malformed)] = False
    problems = dict(malformed)
    for slot, problem in (
        (MONO, "t_mono_ns is missing or not an integer"),
        (TAG, f"source must be {tag!r}"),
        (DEPLOYABLE, "available_in_deployment is missing or not a boolean"),
    ):
        if np.any(odd[:, slot]):
            for i in np.arange(n_lines)[chosen][odd[chosen, slot]].tolist():
                problems.setdefault(i, problem)
    described = [_too_many(MAX_ROWS)] if too_many else []
    described += _described(problems, content, starts, max_problems)

    n_rows = len(times[chosen])
    if not (_rises(times[chosen, WALL]) or _rises(times[chosen, MONO])):
        good = np.zeros(n_lines, dtype=np.bool_)
        good[chosen] = True
        _drop_repeated(content, starts, ends, times, good)
        chosen = good
    has_mono = ~odd[chosen, MONO]
    unusable = absent = np.zeros(len(fields), dtype=np.int64)
    if np.any(odd[chosen, _FIRST_FIELD:]):
        states = held[chosen, _FIRST_FIELD:]
        unusable, absent = (states == UNUSABLE).sum(axis=0), (states == ABSENT).sum(axis=0)
    t_wall_ns = np.ascontiguousarray(times[chosen, WALL])
    return Rows(
        t_wall_ns=t_wall_ns,
        t_mono_ns=np.where(has_mono, times[chosen, MONO], 0),
        has_mono=has_mono,
        values=values[chosen],
        unusable=unusable,
        absent=absent,
        problems=tuple(described),
        n_lines=n_lines - len(blank),
        n_malformed=len(malformed),
        n_repeated=n_rows - len(t_wall_ns),
    )


def _described(
    problems: dict[int, str], content: bytes, starts: NDArray[np.int64], most: int
) -> list[str]:
    """Problems with the numbers of their lines, and how many more there are."""
    lines = []
    for i in sorted(problems)[:most]:
        number = content.count(b"\n", 0, starts[i]) + 1
        lines.append(f"line {number}: {problems[i]}")
    return [*lines, *and_more(len(problems) - most)]


def and_more(count: int) -> list[str]:
    """A line that says how many problems are not described."""
    return [f"and {count} more lines"] if count > 0 else []


def _too_many(most: int) -> str:
    return f"must have at most {most:,} lines, got more; the rest was not read"


def _too_long(n_bytes: int) -> str:
    return f"must be at most {MAX_LINE_BYTES:,} bytes, got {n_bytes:,}"


def _rises(clock: NDArray[np.int64]) -> bool:
    """Whether a clock rises from row to row; then no line can repeat another."""
    return bool(np.all(clock[1:] > clock[:-1]))


def _drop_repeated(
    content: bytes,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    times: NDArray[np.int64],
    good: NDArray[np.bool_],
) -> None:
    """Clear ``good`` where a line repeats an earlier one byte for byte.

    Equal lines have equal times, so lines are compared only where times are equal.
    """
    rows = np.flatnonzero(good)
    clocks = times[rows]
    order = np.lexsort(clocks.T)  # stable: equal times stay in file order
    equal = np.all(clocks[order[1:]] == clocks[order[:-1]], axis=1)
    candidates = order[np.append(equal, False) | np.append(False, equal)]
    seen: set[bytes] = set()  # of hashes: the lines could be as large as the file
    for i in rows[candidates].tolist():
        line = blake2b(content[starts[i] : ends[i]], digest_size=16).digest()
        good[i] = line not in seen
        seen.add(line)


def parse_objects(content: bytes) -> tuple[list[tuple[int, dict[str, Any]]], list[str]]:
    """Parse a small JSON-lines file whole: ``([(line number, object)], problems)``."""
    objects: list[tuple[int, dict[str, Any]]] = []
    problems: list[str] = []
    for number, line in enumerate(io.BytesIO(content), start=1):
        line = line.removesuffix(b"\n")
        if number > MAX_OBJECTS:
            problems.insert(0, _too_many(MAX_OBJECTS))
            break
        if len(line) > MAX_LINE_BYTES:
            problems.append(f"line {number}: {_too_long(len(line))}")
            continue
        if not line.strip():
            continue
        value = _loads(line)
        if isinstance(value, dict):
            objects.append((number, value))
        else:
            problems.append(f"line {number}: not a JSON object")
    return objects, problems


def _loads(line: bytes) -> object:
    """``json.loads``, None where it fails; NaN and Infinity are read (they count as missing)."""
    try:
        return None if _too_deep(line) else json.loads(line)
    except (ValueError, RecursionError):
        return None


_OPENS = np.zeros(256, dtype=np.int64)
_OPENS[list(b"[{")], _OPENS[list(b"]}")] = 1, -1
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _too_deep(line: bytes) -> bool:
    """Whether brackets are nested over ``MAX_DEPTH`` deep: very slow to parse, for its size.

    Brackets in text count as well, so it may be said of a line that is less deep, never the other
    way round.
    """
    if line.count(b"[") + line.count(b"{") <= MAX_DEPTH:
        return False
    brackets = np.frombuffer(line.translate(None, _NO_BRACKETS), np.uint8)
    depth = np.cumsum(_OPENS[brackets])
    return bool(np.max(depth - np.minimum.accumulate(depth)) > MAX_DEPTH)


def is_int64(value: object) -> bool:
    """Whether ``value`` is an integer (not a boolean, not 1.0) that fits 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63


def _parse_line(
    line: bytes,
    fields: Sequence[FieldPath],
    tag: str,
    times: NDArray[np.int64],
    values: NDArray[np.float64],
    held: NDArray[np.uint8],
) -> str | None:
    """Do what ``_scan`` does, with the standard library; returns why the line is malformed."""
    row = _loads(line)
    if not isinstance(row, dict):
        return "not a JSON object"
    states = [ABSENT] * _FIRST_FIELD
    for slot in (WALL, MONO):
        value: Any = row.get(_ENVELOPE[slot][0])
        if is_int64(value):
            times[slot] = int(value)
            states[slot] = NUMBER
    states[TAG] = NUMBER if row.get("source") == tag else UNUSABLE
    deployable = row.get("available_in_deployment")
    states[DEPLOYABLE] = NUMBER if isinstance(deployable, bool) else UNUSABLE
    values[:] = math.nan
    for i, path in enumerate(fields):
        if path[0] not in row:  # as in most rows that a stranger made up to be slow
            states.append(ABSENT)
            continue
        number, state = _number(row, path)
        states.append(state)
        if state == NUMBER:
            values[i] = number
    held[:] = states  # at once: NumPy is slow to take single numbers
    return None if states[WALL] == NUMBER else NO_WALL_TIME


def _number(row: dict[str, Any], path: FieldPath) -> tuple[float, int]:
    value: Any = row
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return math.nan, ABSENT
        value = value[key]
    if type(value) is int or type(value) is float:
        try:
            number = float(value)
        except OverflowError:
            return math.nan, UNUSABLE
        if math.isfinite(number):
            return number, NUMBER
    return math.nan, UNUSABLE


_CHUNK = 2**20  # bytes in which newlines are looked for at a time: each found one takes 8 more


def _line_bounds(
    buffer: NDArray[np.uint8], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Start and end (exclusive, without the newline) of every line that is not empty.

    Of more than ``most`` lines, empty ones included, the others are left out; the last value says
    whether there are more.
    """
    found = [np.zeros(0, dtype=np.int64)]
    n_found = 0
    for begin in range(0, len(buffer), _CHUNK):
        found.append(np.flatnonzero(buffer[begin : begin + _CHUNK] == 10) + begin)
        n_found += len(found[-1])
        if n_found > most:
            break
    newlines = np.concatenate(found)
    n_bytes = len(buffer)
    too_many = len(newlines) > most or (len(newlines) == most and newlines[-1] + 1 < n_bytes)
    if too_many:
        newlines = newlines[:most]
        n_bytes = int(newlines[-1])
    starts = np.concatenate([[0], newlines + 1])
    ends = np.concatenate([newlines, [n_bytes]])
    filled = ends > starts
    return starts[filled], ends[filled], too_many


def _ascii(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), dtype=np.uint8)


@lru_cache(maxsize=16)
def _key_table(fields: tuple[FieldPath, ...]) -> tuple[NDArray[Any], ...]:
    """The wanted paths as a trie in flat arrays.

    Entry ``k`` is the key ``key_bytes[key_ends[k-1]:key_ends[k]]`` inside the object ``parent[k]``
    (0 = the row itself). ``target[k]`` is the slot it fills, or ``-1 - node`` where it opens the
    object ``node``.
    """
    keys: list[bytes] = []
    parent: list[int] = []
    target: list[int] = []
    nodes: dict[FieldPath, int] = {(): 0}
    for slot, path in enumerate((*_ENVELOPE, *fields)):
        for depth in range(1, len(path)):
            prefix = path[:depth]
            if prefix not in nodes:
                nodes[prefix] = len(nodes)
                keys.append(prefix[-1].encode())
                parent.append(nodes[prefix[:-1]])
                target.append(-1 - nodes[prefix])
        keys.append(path[-1].encode())
        parent.append(nodes[path[:-1]])
        target.append(slot)
    key_bytes = np.frombuffer(b"".join(keys), dtype=np.uint8)
    key_ends = np.cumsum([len(key) for key in keys])
    return key_bytes, key_ends, np.array(parent), np.array(target)


@inlined
def _skip_space(buffer, i, end):
    while i < end and (buffer[i] == 32 or buffer[i] == 9 or buffer[i] == 13):
        i += 1
    return i


@inlined
def _string_end(buffer, i, end):
    """Index of the closing quote of the string whose first character is at ``i``; -1: not plain."""
    while i < end:
        byte = buffer[i]
        if byte == 34:
            return i
        if byte == 92 or byte < 32 or byte >= 128:
            return -1
        i += 1
    return -1


@inlined
def _is_word(buffer, i, end, word):
    if i + len(word) > end:
        return False
    for j in range(len(word)):
        if buffer[i + j] != word[j]:
            return False
    return True


_UNWANTED = -1_000_000  # target of a key that fills no slot and opens no wanted object
_MOST_NUMBERS = 256  # of a line that serves as a template

_at = np.uint64  # Numba looks after negative indices, unless they are unsigned
_TRUE, _FALSE, _NULL = _ascii("true"), _ascii("false"), _ascii("null")
_POWERS = np.array([10.0**k for k in range(23)])  # exact in float64


# Long, because a number is read in one pass: sign, digits, point, exponent.
@inlined
def _scan_number(buffer, i, end):
    """``(next index or -1, is an integer, int64, float64)``; -1: leave it to the slow path.

    Digits of at most 2^53 times or over a power of ten up to 10^22 are rounded once, so correctly;
    a conversion from int64 is too.
    """
    negative = i < end and buffer[i] == 45
    if negative:
        i += 1
    first = i
    mantissa = np.int64(0)
    while i < end and 48 <= buffer[_at(i)] <= 57:
        digit = np.int64(buffer[_at(i)]) - 48
        if i - first >= 18 and mantissa > (9223372036854775807 - digit) // 10:
            return -1, False, np.int64(0), 0.0
        mantissa = mantissa * 10 + digit
        i += 1
    if i == first or (buffer[first] == 48 and i - first > 1):
        return -1, False, np.int64(0), 0.0
    whole = True
    digits = i - first
    exponent = np.int64(0)
    if i < end and buffer[i] == 46:
        whole = False
        i += 1
        first = i
        while i < end and 48 <= buffer[_at(i)] <= 57:
            mantissa = mantissa * 10 + (np.int64(buffer[_at(i)]) - 48)
            i += 1
            digits += 1
            if digits > 18:
                return -1, False, np.int64(0), 0.0
        if i == first:
            return -1, False, np.int64(0), 0.0
        exponent = first - i
    if i < end and (buffer[i] == 69 or buffer[i] == 101):
        whole = False
        i += 1
        down = False
        if i < end and (buffer[i] == 43 or buffer[i] == 45):
            down = buffer[i] == 45
            i += 1
        first = i
        power = np.int64(0)
        while i < end and 48 <= buffer[_at(i)] <= 57:
            power = power * 10 + (np.int64(buffer[_at(i)]) - 48)
            i += 1
            if i - first > 4:
                return -1, False, np.int64(0), 0.0
        if i == first:
            return -1, False, np.int64(0), 0.0
        if down:
            power = -power
        exponent += power
    if negative:
        mantissa = -mantissa
    if whole:
        return i, True, mantissa, float(mantissa)
    if abs(mantissa) > 9007199254740992 or exponent < -22 or exponent > 22:
        return -1, False, np.int64(0), 0.0
    if exponent < 0:
        number = mantissa / _POWERS[-exponent]
    else:
        number = mantissa * _POWERS[exponent]
    if negative and mantissa == 0:
        number = -0.0
    return i, False, np.int64(0), number


@inlined
def _matches(buffer, first, end, key_bytes, begin, length):
    """Whether the string whose first character is at ``first`` is this key."""
    if first + length >= end or buffer[first + length] != 34:
        return False
    for j in range(length):
        if key_bytes[begin + j] != buffer[first + j]:
            return False
    return True


# Long, because an array passed to another kernel is counted, which costs (``jit``).
@jit
def _scan(
    buffer, starts, ends, key_bytes, key_ends, parent, target, tag, times, values, held, slow
):
    """Fill ``times``, ``values``, ``held`` line by line; set ``slow`` where a line is not plain.

    Collectors write rows that differ in their numbers only. So the last plain line serves as a
    template: where the next one has the same text between its numbers, only these are read.
    """
    n_keys = len(parent)
    nodes = np.empty(8, dtype=np.int64)
    opened = np.zeros(n_keys + 1, dtype=np.int64)  # line in which an object was last opened
    template = -1  # a line
    n_numbers = 0
    begins = np.empty(_MOST_NUMBERS, dtype=np.int64)  # of the template's numbers
    stops = np.empty(_MOST_NUMBERS, dtype=np.int64)
    slots = np.empty(_MOST_NUMBERS, dtype=np.int64)
    for line in range(len(starts)):
        end = ends[line]
        if template >= 0:
            i = starts[line]
            at = starts[template]
            same = True
            for k in range(n_numbers + 1):
                until = begins[k] if k < n_numbers else ends[template]
                if i + until - at > end:
                    same = False
                    break
                while at < until and buffer[_at(at)] == buffer[_at(i)]:
                    at += 1
                    i += 1
                if at < until:
                    same = False
                    break
                if k == n_numbers:
                    same = i == end
                    break
                i, whole, integer, number = _scan_number(buffer, i, end)
                slot = slots[k]
                if i < 0 or (0 <= slot < 2 and not whole):
                    same = False
                    break
                if slot >= _FIRST_FIELD:
                    values[line, slot - _FIRST_FIELD] = number
                elif slot >= 0:
                    times[line, slot] = integer
                at = stops[k]
            if same:
                held[line] = held[template]
                continue
            times[line] = 0
            values[line] = np.nan
        i = _skip_space(buffer, starts[line], end)
        if i >= end or buffer[i] != 123:
            slow[line] = True
            continue
        i = _skip_space(buffer, i + 1, end)
        depth = 0
        nodes[0] = 0
        n_numbers = 0
        plain = True
        uniform = True  # may serve as a template
        closed = False
        expects_key = True
        if i < end and buffer[i] == 125:
            closed = True
            i += 1
        while plain and not closed:
            # one key
            if not expects_key or i >= end or buffer[i] != 34:
                plain = False
                break
            first = i + 1
            slot = np.int64(_UNWANTED)
            quote = np.int64(-1)
            for k in range(n_keys):
                begin = key_ends[k - 1] if k > 0 else 0
                length = key_ends[k] - begin
                if parent[k] == nodes[depth] and _matches(
                    buffer, first, end, key_bytes, begin, length
                ):
                    slot = target[k]
                    quote = first + length
                    break
            if quote < 0:
                quote = _string_end(buffer, first, end)
                if quote < 0:
                    plain = False
                    break
            i = _skip_space(buffer, quote + 1, end)
            if i >= end or buffer[i] != 58:
                plain = False
                break
            i = _skip_space(buffer, i + 1, end)
            if i >= end:
                plain = False
                break
            # one value
            byte = buffer[i]
            opens = _UNWANTED < slot < 0
            state = 2
            if byte == 123:
                # only an object that holds wanted keys is plain, and only once a line
                if not opens or opened[-1 - slot] == line + 1 or depth == 7:
                    plain = False
                    break
                opened[-1 - slot] = line + 1
                depth += 1
                nodes[depth] = -1 - slot
                i = _skip_space(buffer, i + 1, end)
                if i >= end or buffer[i] == 125:  # an empty one: rare, slow
                    plain = False
                    break
                continue
            if opens:
                plain = False
                break
            if byte == 34:
                quote = _string_end(buffer, i + 1, end)
                if quote < 0:
                    plain = False
                    break
                if slot == TAG and quote - i - 1 == len(tag) and _is_word(buffer, i + 1, end, tag):
                    state = 1
                i = quote + 1
            elif byte == 116 and _is_word(buffer, i, end, _TRUE):
                i += 4
                state = 1 if slot == DEPLOYABLE else 2
            elif byte == 102 and _is_word(buffer, i, end, _FALSE):
                i += 5
                state = 1 if slot == DEPLOYABLE else 2
            elif byte == 110 and _is_word(buffer, i, end, _NULL):
                i += 4
            else:
                first = i
                i, whole, integer, number = _scan_number(buffer, i, end)
                if i < 0:
                    plain = False
                    break
                if slot == WALL or slot == MONO:
                    if whole:
                        times[line, slot] = integer
                        state = 1
                elif slot >= _FIRST_FIELD:
                    values[line, slot - _FIRST_FIELD] = number
                    state = 1
                # a key that comes twice, or a time that is no integer, is for this way only
                uniform = uniform and n_numbers < _MOST_NUMBERS and (slot < 0 or state == 1)
                if uniform:
                    begins[n_numbers] = first
                    stops[n_numbers] = i
                    slots[n_numbers] = slot
                    n_numbers += 1
            if slot >= 0:
                uniform = uniform and held[line, slot] == 0
                held[line, slot] = state
                if slot >= _FIRST_FIELD and state != 1:
                    values[line, slot - _FIRST_FIELD] = np.nan
            # what follows a value
            expects_key = False
            while True:
                i = _skip_space(buffer, i, end)
                if i >= end:
                    plain = False
                    break
                if buffer[i] == 44:
                    i = _skip_space(buffer, i + 1, end)
                    expects_key = True
                    break
                if buffer[i] != 125:
                    plain = False
                    break
                i += 1
                if depth == 0:
                    closed = True
                    break
                depth -= 1
        if plain and _skip_space(buffer, i, end) != end:
            plain = False
        slow[line] = not plain
        template = line if plain and uniform else -1
