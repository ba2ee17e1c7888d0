"""Episodes validated and extracted, by this process or by workers that are some episodes ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

from episodes.environment import MachineError, retry
from episodes.reading import Episode
from episodes.store import StoredEpisode
from episodes.validation import (
    EpisodeError,
    EpisodeRecord,
    ValidatedEpisode,
    ValidationPolicy,
    validate,
    where,
)
from features.alignment import AlignmentError
from features.extraction import Extracted, extract
from features.registry import Layout
from features.shards import EpisodeRows, episode_rows
from stages.workers import KILLED, cores, worker_processes

Validated = tuple[EpisodeRecord, EpisodeRows | None]

WORTHWHILE = 100
"""With fewer episodes, workers take longer to start than they save."""

_AHEAD_BYTES = 8 * 2**20
"""Of archives that workers may be ahead: they go on while a batch is written and recorded."""
_ahead: ContextVar[_ValidationAhead | None] = ContextVar("ahead", default=None)


def validate_and_extract(
    stored: StoredEpisode, policy: ValidationPolicy, layout: Layout
) -> Validated:
    """The verdict on an episode and, if it is usable, its rows.

    Raises:
        MachineError: it could not be read or extracted, for no fault of its own.
    """
    ahead = _ahead.get()
    try:
        future = ahead.take(stored) if ahead else None
        return future.result() if future else _validate_and_extract(stored, policy, layout)
    except BrokenProcessPool as error:
        raise MachineError(
            f"{stored.path}: {KILLED}. This is not a fault of the episode, so nothing was decided "
            "or written; run the command again"
        ) from error


def _validate_and_extract(
    stored: StoredEpisode, policy: ValidationPolicy, layout: Layout
) -> Validated:
    return extract_if_usable(*validate(stored, policy, layout.fields), stored, layout)


def extract_if_usable(
    record: EpisodeRecord, episode: Episode | None, stored: StoredEpisode, layout: Layout
) -> Validated:
    """A record and, if it says usable, the episode's rows; without any, it has one more reason.

    Raises:
        MachineError: see ``validate_and_extract``.
    """
    if not record.usable or episode is None:
        return record, None
    try:
        extracted = retry(partial(extract, episode, layout), stored.path)
    except AlignmentError as error:
        return record.with_reason("schema", str(error)), None
    except MachineError:
        raise
    except Exception as error:  # the sweep goes on
        return record.with_reason("unforeseen_error", where(error)), None
    return record, episode_rows(record, extracted)


def extract_validated(episode: ValidatedEpisode, layout: Layout) -> Extracted:
    """What ``features.extraction`` makes of an episode that was read, whatever its verdict.

    Raises:
        EpisodeError: it has no usable clock; ingest rejects it for the same reason.
    """
    try:
        return extract(episode, layout)
    except AlignmentError as error:
        raise EpisodeError(episode.record.with_reason("schema", str(error))) from error


@contextmanager
def validating_ahead(
    episodes: Iterable[StoredEpisode], policy: ValidationPolicy, layout: Layout
) -> Iterator[None]:
    """Within, ``validate_and_extract`` takes what workers have done by then.

    Results do not depend on it, nor on the number of workers.

    Args:
        episodes: what is going to be asked for, in that order. Some may be left out.
    """
    waiting = deque(episodes)
    if len(waiting) < WORTHWHILE or cores() < 2:
        yield
        return
    with worker_processes(cores() - 1, _prepare, policy, layout) as pool:
        token = _ahead.set(_ValidationAhead(pool, waiting, policy, layout))
        try:
            yield
        finally:
            _ahead.reset(token)


class _ValidationAhead:
    """Submits a bounded amount of episodes, so that memory does not grow with the corpus.

    Instead of waiting for a result, this process validates what no worker has begun: it is then as
    busy as they are, and has fewer results sent.
    """

    def __init__(
        self,
        pool: ProcessPoolExecutor,
        waiting: deque[StoredEpisode],
        policy: ValidationPolicy,
        layout: Layout,
    ):
        self._pool, self._waiting = pool, waiting
        self._policy, self._layout = policy, layout
        self._submitted: deque[tuple[StoredEpisode, Future[Validated]]] = deque()
        self._expected = {stored.path for stored in waiting}

    def take(self, stored: StoredEpisode) -> Future[Validated] | None:
        """The result to wait for; None if the episode was not announced."""
        while stored.path in self._expected:
            self._submit()
            first, future = self._submitted.popleft()
            self._expected.remove(first.path)
            if first.path == stored.path:
                self._submit()
                return self._result(first, future)
            _cancelled(future)  # was left out
        return None

    def _result(self, stored: StoredEpisode, future: Future[Validated]) -> Future[Validated]:
        if _cancelled(future):
            return self._validate_here(stored)
        for i, (later, its_future) in enumerate(self._submitted):
            if future.done():
                break
            if _cancelled(its_future):
                self._submitted[i] = later, self._validate_here(later)
        return future

    def _validate_here(self, stored: StoredEpisode) -> Future[Validated]:
        future = Future[Validated]()
        try:
            future.set_result(_validate_and_extract(stored, self._policy, self._layout))
        except Exception as error:  # raised by ``result``, in its turn
            future.set_exception(error)
        return future

    def _submit(self) -> None:
        few = 2 * cores()  # however large they are
        while self._waiting and (
            len(self._submitted) < few
            or sum(stored.size_bytes or 0 for stored, _ in self._submitted) < _AHEAD_BYTES
        ):
            stored = self._waiting.popleft()
            self._submitted.append((stored, self._pool.submit(_validate_in_worker, stored)))


def _cancelled(future: Future[Validated]) -> bool:
    """Whether no worker has taken this, nor ever will."""
    if not future.cancel():
        return False
    # if a worker is killed, the executor of Python 3.11 sets this for what is cancelled, too, and
    # its thread ends with an error before it has ended the other workers
    future.set_exception = lambda exception: None  # type: ignore[method-assign] # noqa: ARG005
    return True


_of_worker: list[tuple[ValidationPolicy, Layout]] = []


def _prepare(policy: ValidationPolicy, layout: Layout) -> None:
    _of_worker[:] = [(policy, layout)]


def _validate_in_worker(stored: StoredEpisode) -> Validated:
    return _validate_and_extract(stored, *_of_worker[0])
