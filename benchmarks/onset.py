"""Attacks that outlast the minute which inputs are relative to, and attacks that were there before.

    phasewatch run --recipe host
    python -m benchmarks.onset [MODEL ...]

Most of a model's inputs are relative to the machine's last minute. Later in an attack that minute
is itself under attack, and where recording begins within an attack there never was another. For
the realistic checkpoints of recipe ``host``, on the attacks of the held-out host:

- ``recorded``: infected windows by how long the attack has lasted when the window begins.
- ``looped``: the recorded attacks are short, so the rows under infected_running are repeated
  until ``LOOPED_S`` after they begin. That is no recording: it repeats what was seen.
- ``with its past`` and ``from within``: the windows from ``AFTER_S`` after the onset on, with the
  rows before them, and without: then the first row is within the attack.

Recall is the share of windows called infecting or infected_running, by the model alone and after
the filter; beside it the share at which the alarm stands. Nothing is trained, no label is changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

import phasewatch
from datasets.windows import read_dataset
from episodes.format import INFECTED
from features.registry import Layout
from features.summary import summarise
from features.windows import window_starts
from models.alarm import AlarmRule
from models.checkpoint import Checkpoint
from stages.alarm_rules import alarm_rule_of
from stages.project import Project
from stages.scoring import apply_rule
from stages.workspace import workspace_from_environment

RECIPE = "host"
AFTER_S = 10.0
LOOPED_S = 300.0
LASTED = {"under 1 min": (0, 60), "1 to 2 min": (60, 120), "over 2 min": (120, np.inf)}
FOUND = ("alone", "filtered", "alarm")


@dataclass(frozen=True)
class Recording:
    """A series, and when its attack begins; windows are every stride from the first row on."""

    series: np.ndarray  # (n_bins, n_channels)
    infected: np.ndarray  # (n_windows,)
    since_s: np.ndarray  # (n_windows,), from the onset to the beginning of the window

    def from_window(self, first: int, layout: Layout) -> Recording:
        """The same without the rows before a window."""
        series = self.series[first * layout.window.stride_bins :]
        return Recording(series, self.infected[first:], self.since_s[first:])


def recordings(project: Project) -> Iterator[tuple[Recording, Recording | None]]:
    """Of every attack of the test side: as it was recorded, and looped, where it can be."""
    window = project.workspace.layout.window
    dataset = read_dataset(project.existing("datasets", RECIPE))
    test = dataset.filter((pl.col("split") == "test") & pl.col("onset_s").is_not_null())
    for episode_id in test["episode_id"].unique().sort():
        episode = phasewatch.read_episode(project, episode_id)
        extracted = phasewatch.extract(project, episode, anyway=True)
        windows, onset_s = extracted.windows, extracted.onset_s or 0.0
        infected = np.isin(windows.label, INFECTED)
        if not infected.any():
            continue  # the attack begins after the last window
        recorded = Recording(extracted.series, infected, windows.start_s - onset_s)
        whole = np.flatnonzero((windows.label == "infected_running") & (windows.purity == 1))
        if not len(whole):
            yield recorded, None
            continue
        end = whole[0] + np.argmin(np.append(np.isin(np.arange(whole[0], len(infected)), whole), 0))
        first = windows.start_bin[whole[0]]
        loop = extracted.series[first : windows.start_bin[end - 1] + window.n_bins]
        times = int(np.ceil(1000 * LOOPED_S / window.bin_ms / len(loop)))
        series = np.concatenate([extracted.series[:first], *[loop] * times])
        starts = window_starts(len(series), window)
        since_s = windows.start_s[0] + starts * window.bin_ms / 1000 - onset_s
        under_way = np.isin(np.arange(len(starts)), np.flatnonzero(infected[: whole[0]]))
        yield recorded, Recording(series, under_way | (starts >= first), since_s)


def found(
    recording: Recording, checkpoint: Checkpoint, rule: AlarmRule, layout: Layout
) -> np.ndarray:
    """``(n_windows, 3)``: called infected by the model alone, after the filter; alarm stands."""
    starts = window_starts(len(recording.series), layout.window)
    features = summarise(recording.series, starts, layout)
    proba = checkpoint.predict_episode(recording.series, features, layout)
    rule_scores = apply_rule(rule, proba)
    called = [
        np.isin(np.array(layout.phases)[each.argmax(axis=1)], INFECTED)
        for each in (proba, rule_scores.proba)
    ]
    return np.stack([*called, rule_scores.alarm], axis=1)


def shares(hits: list[np.ndarray]) -> str:
    """Of windows ``(n, 3)`` each, pooled."""
    pooled = np.concatenate(hits) if hits else np.empty((0, 3))
    if not len(pooled):
        return f"{0:8d}" + f"{'-':>10}" * 3
    return f"{len(pooled):8d}" + "".join(f"{share:10.3f}" for share in pooled.mean(axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description="Long attacks, and attacks from the first row.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: gbt gru")
    models = parser.parse_args().models or ["gbt", "gru"]
    project = Project(workspace_from_environment())
    layout = project.workspace.layout
    recorded, looped = zip(*recordings(project), strict=True)
    kinds = {"recorded": list(recorded), "looped": [one for one in looped if one]}
    print(f"{'':6}{'':10}{'':14}{'windows':>8}" + "".join(f"{name:>10}" for name in FOUND))
    for model in models:
        checkpoint = phasewatch.load_checkpoint(project, RECIPE, model)
        rule = alarm_rule_of(project, checkpoint)
        assert rule is not None
        for kind, attacks in kinds.items():
            hits = [found(one, checkpoint, rule, layout) for one in attacks]
            for name, (least, most) in LASTED.items():
                chosen = [
                    hit[one.infected & (one.since_s < most) & (one.since_s + 10 > least)]
                    if least == 0
                    else hit[one.infected & (one.since_s >= least) & (one.since_s < most)]
                    for hit, one in zip(hits, attacks, strict=True)
                ]
                print(f"{model:6}{kind:10}{name:14}{shares(chosen)}")
        within = [(one, int(np.argmax(one.since_s >= AFTER_S))) for one in recorded]
        within = [(one, first) for one, first in within if one.infected[first:].any()]
        whole, cut, raised = [], [], 0
        for one, first in within:
            rest = one.from_window(first, layout)
            whole.append(found(one, checkpoint, rule, layout)[first:][rest.infected])
            without = found(rest, checkpoint, rule, layout)
            cut.append(without[rest.infected])
            raised += bool(without[rest.infected][:, 2].any())
        print(f"{model:6}{'with its past':24}{shares(whole)}")
        print(f"{model:6}{'from within':24}{shares(cut)}  raised in {raised} of {len(within)}")


if __name__ == "__main__":
    main()
