"""Which child of which parent, on which host, when: the same for one seed, whoever asks.

The children of one parent live on one host, have one sample, and lie on one side of a date. So
every recipe can hold something out without taking a parent's children apart.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from datasets.splits import SplitPolicy
from episodes.format import NS_PER_S
from simulation.parents import ParentId, SimulationError

if TYPE_CHECKING:
    from collections.abc import Iterator

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_DAY_NS = 86_400 * NS_PER_S
_DAY_USED = 0.99  # of a day: the last episode of a day ends in it
_LATE_SHARE = 0.25  # of a host's parents, whose children come last
_SLACK = 0.015
"""Of all episodes: how many more than the test side are late, since defects take part in none."""

FIRST_DAY, LAST_DAY = date(1970, 1, 1), date(2262, 1, 1)
"""Ids count from the first; nanoseconds in 64 bits end soon after the last."""

_HOST, _START, _PARENT = 1, 2, 3  # what a random number is for


@dataclass(frozen=True)
class Part:
    """Episodes that were asked for at once."""

    first: int  # number of its first episode in the corpus
    episodes: int
    days: int
    hosts: int
    first_day: str  # UTC
    defects: float  # share of the episodes
    longest_s: int | None = None  # crop longer episodes to this
    placeholders: bool = False  # sparse files in place of archives, but of defective episodes

    def day_of(self, number: int) -> int:
        return (number - self.first) * self.days // self.episodes

    def numbers_of(self, day: int) -> range:
        """The numbers of the episodes of a day, from 0."""
        first, after = (-(-d * self.episodes // self.days) for d in (day, day + 1))
        return range(self.first + first, self.first + after)

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.episodes)

    @property
    def after(self) -> str:
        """The day after its last."""
        return (date.fromisoformat(self.first_day) + timedelta(days=self.days)).isoformat()


@dataclass(frozen=True)
class Child:
    """One episode to be simulated."""

    number: int
    episode_id: str
    host_id: str
    parent: ParentId
    sample: str  # its name
    started_at_ns: int  # Unix
    coarse_netflow: bool  # the host writes its wall time in whole seconds
    defect: str | None  # a reason of ``episodes.validation``
    longest_s: int | None = None
    placeholder: bool = False  # a file without content is written in place of the archive


@dataclass(frozen=True)
class Plan:
    """A corpus: its parents, its hosts and its parts."""

    seed: int
    parents: tuple[ParentId, ...]
    parts: tuple[Part, ...]
    defects: tuple[str, ...]  # the reasons there are, in the order in which they come

    def __post_init__(self) -> None:
        most = len(self.parents) // 2  # each host has early and late ones
        for part in self.parts:
            if not 0 <= part.defects <= 1:
                raise SimulationError(f"defects must be a share from 0 to 1, got {part.defects:g}")
            first = date.fromisoformat(part.first_day)
            if first < FIRST_DAY or part.days > (LAST_DAY - first).days:
                raise SimulationError(
                    f"days must be from {FIRST_DAY} to {LAST_DAY}, got {part.days:,} days from "
                    f"{first} on"
                )
            if not 1 <= part.hosts <= self.parts[0].hosts:
                raise SimulationError(
                    f"hosts must be 1 to {self.parts[0].hosts}, the hosts of the corpus, "
                    f"got {part.hosts}"
                )
        if self.parts[0].hosts > max(1, most):
            raise SimulationError(
                f"hosts must be at most {most}, half of the {len(self.parents)} episodes that "
                f"children are made from, got {self.parts[0].hosts}"
            )

    @cached_property
    def hosts(self) -> tuple[str, ...]:
        return host_names(self.parts[0].hosts)

    @cached_property
    def samples(self) -> dict[str, str]:
        """The sample of each parent's children: a new one for each."""
        names: dict[str, str] = {}
        for profile in sorted({parent.profile for parent in self.parents}):
            of_profile = [p.episode_id for p in self.parents if p.profile == profile]
            names |= {p: f"{profile}.s{i:02}" for i, p in enumerate(of_profile)}
        return names

    @cached_property
    def late_from_ns(self) -> int:
        """The date that no parent has children on both sides of, in Unix ns.

        Recipe ``time`` tests the last episodes, recipe ``session`` the last days: both are late.
        """
        part, policy = self.parts[0], SplitPolicy()
        late = part.first + int((1 - policy.test_share - _SLACK) * part.episodes)
        for day in range(part.days - 1, 0, -1):
            held_out = part.first + part.episodes - part.numbers_of(day).start
            if held_out >= (policy.session_share + _SLACK) * part.episodes or day == 1:
                late = min(late, part.numbers_of(day).start)
                break
        return self._started_at_ns(part, late)

    @cached_property
    def families(self) -> tuple[tuple[tuple[ParentId, ...], tuple[ParentId, ...]], ...]:
        """By host: the parents whose children come early, and those whose children come late."""
        shuffled = sorted(
            self.parents,
            key=lambda p: (p.profile, p.tier, _hashed(f"{self.seed} place {p.episode_id}")),
        )
        placed = []
        for host in range(len(self.hosts)):
            own = shuffled[host :: len(self.hosts)]
            n_late = max(1, round(_LATE_SHARE * len(own))) if len(own) > 1 else 0
            late = {(host + i * len(own) // n_late) % len(own) for i in range(n_late)}
            placed.append(
                (
                    tuple(p for i, p in enumerate(own) if i not in late),
                    tuple(p for i, p in enumerate(own) if i in late) or tuple(own),
                )
            )
        return tuple(placed)

    def children(self, part: Part) -> Iterator[Child]:
        return (self.child(part, number) for number in part.numbers)

    def child(self, part: Part, number: int) -> Child:
        started_at_ns = self._started_at_ns(part, number)
        turn, place = divmod(number, part.hosts)
        # in another order each turn, so that nothing that recurs keeps meeting one host
        host = int(self._random(_HOST, turn).permutation(part.hosts)[place])
        early, late = self.families[host]
        family = late if started_at_ns >= self.late_from_ns else early
        parent = family[int(self._random(_PARENT, number).integers(len(family)))]
        defect = self._defect(part, number)
        return Child(
            number=number,
            episode_id=self._episode_id(number, started_at_ns),
            host_id=self.hosts[host],
            parent=parent,
            sample=self.samples[parent.episode_id],
            started_at_ns=started_at_ns,
            coarse_netflow=host % 3 == 1,
            defect=defect,
            longest_s=part.longest_s,
            placeholder=part.placeholders and defect is None,
        )

    def _started_at_ns(self, part: Part, number: int) -> int:
        day = part.day_of(number)
        numbers = part.numbers_of(day)
        within = number - numbers.start + 0.1 + 0.8 * self._random(_START, number).random()
        midnight = datetime.fromisoformat(part.first_day).replace(tzinfo=UTC) + timedelta(days=day)
        into_day = int(within / len(numbers) * _DAY_USED * _DAY_NS)
        return int(midnight.timestamp()) * NS_PER_S + into_day

    def _defect(self, part: Part, number: int) -> str | None:
        """Every so many-th episode has one, and each kind has its turn."""
        before, after = (int(n * part.defects) for n in (number, number + 1))
        return self.defects[before % len(self.defects)] if after > before else None

    def _episode_id(self, number: int, started_at_ns: int) -> str:
        value = started_at_ns // 1_000_000 << 80 | _hashed(f"{self.seed} id {number}") >> 48
        return "".join(_CROCKFORD[value >> 5 * i & 31] for i in range(25, -1, -1))

    def _random(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose, number])


def host_names(count: int) -> tuple[str, ...]:
    """``lab-a`` and so on, with the host that recipe ``host`` holds out by default."""
    held_out = SplitPolicy().test_host
    names = [f"lab-{letters}" for letters in _letters(count)]
    return tuple(names if held_out in names or count < 2 else [*names[:-1], held_out])


def _letters(count: int) -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [(letters[i // 26 - 1] if i >= 26 else "") + letters[i % 26] for i in range(count)]


def _hashed(text: str) -> int:
    """128 bits that follow from a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")
