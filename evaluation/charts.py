"""Small pictures for places that show no HTML, such as a run's metadata. No metric here."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from evaluation.documents import Confusion

DPI = 100


def confusion_png(confusion: Confusion, title: str) -> bytes:
    """A confusion matrix as PNG, about 400 pixels wide.

    Shaded by the share of its row, so that a rare class is as visible as a common one; the numbers
    are windows.

    Args:
        title: plain text, without mathematics.
    """
    classes = [str(name).replace("_", "_\n", 1) for name in confusion.classes]
    counts = np.asarray(confusion.counts, dtype=np.int64)
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)

    figure = Figure(figsize=(4.2, 4.0), dpi=DPI)
    figure.subplots_adjust(left=0.2, right=0.98, bottom=0.14, top=0.9)  # constrained layout is slow
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    for (row, column), n in np.ndenumerate(counts):
        axes.text(
            column,
            row,
            f"{n:,}".replace(",", "\u2009") if n else "·",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if share[row, column] > 0.65 else "#1b1f24" if n else "#8a929b",
        )
    axes.set_xticks(range(len(classes)), classes, fontsize=7, parse_math=False)
    axes.set_yticks(range(len(classes)), classes, fontsize=7, parse_math=False)
    axes.set_xticks(np.arange(len(classes) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(classes) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted", fontsize=8, color="#57606a")
    axes.set_ylabel("actual", fontsize=8, color="#57606a")
    axes.set_title(title, fontsize=9, loc="left", parse_math=False, wrap=True)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
    return picture.getvalue()
