"""The templates of the page and the cards, and the filters that they share."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import jinja2

from evaluation import wording
from evaluation.documents import Figure

TEMPLATES = Path(__file__).parent / "templates"


@functools.cache
def templates(*, autoescape: bool) -> jinja2.Environment:
    """The templates with the filters that they use."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        num=wording.number,
        signed=lambda value: wording.number(value, sign=True),
        coarse_span=lambda figure: wording.span(figure, wording.measure),
        label=wording.baseline_label,
        variant=wording.variant_label,
        places=places,
        brief=brief,
        size=wording.size,
        slug=slug,
        cell=cell,
        clean_time=wording.clean_time,
        percent=wording.percent,
        share_span=wording.share_span,
        threshold=wording.threshold,
        job_label=wording.job_label,
        ablation=wording.ablation_label,
        conditional_on=wording.conditional_on,
        count=wording.count,
        covers=wording.covers,
        join_words=wording.join_words,
        measure=wording.measure,
        moment=wording.moment,
        plural=wording.plural,
        rate=wording.rate,
        rate_span=wording.rate_span,
        sentence=wording.sentence,
        short=wording.short,
        span=wording.span,
        turn=lambda value, metric: wording.turn_metric(metric, value),
        turn_name=lambda metric: wording.TURN_METRICS[metric][0],
    )
    environment.tests["finite"] = wording.is_finite
    return environment


def places(figure: Figure, limit: float | None = None) -> str:
    """Where a figure and its interval lie on an axis, as CSS properties.

    The axis goes from 0 to 1, or from ``-limit`` to ``limit``; what lies outside is at its edge.
    """

    def place(value: float) -> str:
        share = value if limit is None else (value + limit) / (2 * limit)
        return f"{100 * min(1.0, max(0.0, share)):.1f}%"

    ends = {"v": figure.value, "l": figure.low, "h": figure.high}
    return ";".join(f"--{name}:{place(end)}" for name, end in ends.items() if end is not None)


def brief(value: float) -> str:
    """A difference in hundredths, for a narrow cell."""
    rounded = round(100 * value)
    return f"{rounded:+d}".replace("-", "−") if rounded else "0"


def slug(*names: str) -> str:
    """An anchor on the page; odd characters become dashes."""
    return "-".join(re.sub(r"[^A-Za-z0-9_]+", "-", name) for name in names)


def cell(value: object) -> str:
    """A name that can neither end a Markdown table's cell nor begin a tag."""
    return str(value).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
