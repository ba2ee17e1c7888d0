"""Rows as one table of integers, and their text: a line a row, as a collector writes it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from episodes.jit import jit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_LONGEST = 21  # characters of a 64-bit integer with its sign and a decimal point


@dataclass(frozen=True)
class Sheet:
    """The rows of one source, in file order."""

    fields: tuple[str, ...]  # that differ from row to row
    hundredths: NDArray[np.bool_]  # (n_fields,) the number is in hundredths, and has a point
    pieces: tuple[bytes, ...]  # (n_fields + 1,) of text: before, between and after the numbers
    numbers: NDArray[np.int64]  # (n_rows, n_fields)

    def __len__(self) -> int:
        return len(self.numbers)

    def column(self, field: str) -> NDArray[np.int64]:
        """The numbers of one field, to read and to write."""
        return self.numbers[:, self.fields.index(field)]

    def take(self, rows: NDArray[Any] | slice) -> Sheet:
        """Some of the rows, each as often as it is named."""
        return replace(self, numbers=self.numbers[rows])

    def without(self, field: str) -> Sheet:
        """The same rows with ``null`` in place of one field."""
        at = self.fields.index(field)
        joined = self.pieces[at] + b"null" + self.pieces[at + 1]
        return Sheet(
            fields=(*self.fields[:at], *self.fields[at + 1 :]),
            hundredths=np.delete(self.hundredths, at),
            pieces=(*self.pieces[:at], joined, *self.pieces[at + 2 :]),
            numbers=np.delete(self.numbers, at, axis=1),
        )

    def text(self) -> bytes:
        """The file: one JSON object a line."""
        ends = np.cumsum([len(piece) for piece in self.pieces])
        pieces = np.frombuffer(b"".join(self.pieces), dtype=np.uint8)
        room = len(self) * (len(pieces) + _LONGEST * len(self.fields))
        out = np.empty(room, dtype=np.uint8)
        numbers = np.ascontiguousarray(self.numbers)
        used = _write_lines(numbers, self.hundredths, pieces, ends, out)
        return out[:used].tobytes()


def make_sheet(
    template: Mapping[str, Any], columns: Mapping[str, NDArray[np.int64]], n_rows: int
) -> Sheet:
    """Rows like ``template``, with columns in place of the values of some of its fields.

    Args:
        template: a row as parsed; a field that it has as a float is written with two decimals.
        columns: (n_rows,) each, in hundredths where the template has a float.
    """
    fields, pieces, text = [], [], "{"
    for i, (name, value) in enumerate(template.items()):
        text += f"{',' if i else ''}{json.dumps(name)}:"
        if name in columns:
            fields.append(name)
            pieces.append(text.encode())
            text = ""
        else:
            text += json.dumps(value)
    numbers = np.empty((n_rows, len(fields)), dtype=np.int64)
    for i, name in enumerate(fields):
        numbers[:, i] = columns[name]
    return Sheet(
        fields=tuple(fields),
        hundredths=np.array([isinstance(template[name], float) for name in fields], dtype=np.bool_),
        pieces=(*pieces, (text + "}\n").encode()),
        numbers=numbers,
    )


@jit
def _write_lines(numbers, hundredths, pieces, ends, out):  # type: ignore[no-untyped-def]
    """Fill ``out``; returns how many bytes were used."""
    at = 0
    digits = np.empty(20, dtype=np.uint8)
    n_fields = numbers.shape[1]
    for row in range(numbers.shape[0]):
        begin = 0
        for field in range(n_fields + 1):
            for i in range(begin, ends[field]):
                out[at] = pieces[i]
                at += 1
            begin = ends[field]
            if field == n_fields:
                break
            left = numbers[row, field]
            if left < 0:
                out[at] = 45  # -
                at += 1
                left = -left
            n = 0
            least = 3 if hundredths[field] else 1
            while left > 0 or n < least:
                digits[n] = 48 + left % 10
                left //= 10
                n += 1
            for i in range(n - 1, -1, -1):
                if hundredths[field] and i == 1:
                    out[at] = 46  # .
                    at += 1
                out[at] = digits[i]
                at += 1
    return at
