"""Whether windows that are made while rows arrive are those of the golden episodes.

For a device, which has no archives and no shards: the rows of each episode arrive one after the
other, and the windows must be those that batch code was held to.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from episodes.format import LABELS_FILE
from features import golden
from features.golden import RuleEpisode
from features.registry import Layout
from live.sources import DEPLOYABLE, first_label
from live.stream import LiveWindows
from live.timeline import timeline
from models.replay import scaling_differences

LEFT_OUT = ("no-values", "bounds", "bounds-share", "whole")
"""Episodes of which only batch code can know all: bounds, a source without any value, the end."""


def live_differences(layout: Layout) -> list[str]:
    """How the golden episodes come out otherwise while their rows arrive, one line for each rule.

    Only channels that a device can read are looked at.
    """
    try:
        rules = golden.read_rules()
    except (OSError, ValueError, KeyError) as error:
        return [f"{golden.RULES_FILE.name} cannot be read: {error}"]
    if lines := rules.other_layout(layout):
        return lines
    for episode in rules.episodes.values():
        if episode.name in LEFT_OUT or "series" not in episode.expected:
            continue
        for name, was, now in _windows(episode, layout):
            if len(was) != len(now):
                text = f"{len(now)} windows, expected {len(was)}"
            elif found := golden.columns_difference(name, was, now, layout):
                text = found[1]
            else:
                continue
            lines.append(f"{episode.name}: {episode.rule}: {text}")
            break
    return lines + scaling_differences()


def _windows(
    episode: RuleEpisode, layout: Layout
) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """``(quantity, as committed, as computed)``, ``(n_windows, n_columns)``, NaN where unseen."""
    windows = LiveWindows(layout, first_label(episode.members[LABELS_FILE]))
    made = [
        window
        for _, source, lines in timeline(episode.members, DEPLOYABLE)
        for window in windows.push(source, lines)
    ]
    made += windows.close()
    seen = layout.channels_of("realistic")
    each_stat = np.repeat(seen, len(layout.stats))
    pairs: list[tuple[str, NDArray[np.float32], NDArray[np.float32]]] = []
    for name, columns in (("features", each_stat), ("baseline", each_stat), ("level", seen)):
        rows_of = [getattr(window, name) for window in made]
        computed = np.array(rows_of, dtype=np.float32).reshape(len(made), len(columns))
        was, now = (np.where(columns, each, np.nan) for each in (episode.expected[name], computed))
        pairs.append((name, was, now))
    return pairs
