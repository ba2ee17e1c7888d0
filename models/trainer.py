"""One training loop for every neural net. Architectures are in modules of their own."""

from __future__ import annotations

import json
import math
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch.nn import functional

from config.paths import cache_folder
from config.progress import Meter
from models.base import Epoch, Examples, History, blocks, class_weights
from models.metrics import macro_f1
from models.scaling import scale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from models.base import Inputs
    from models.bookmark import Bookmark
    from models.hyperparameters import NetConfig

IN_MEMORY_BYTES = 2 * 2**30
"""Scaled inputs up to this size, of training and validation together, are kept on the device.
Larger ones are scaled once too, into a scratch file without a name, and read back in blocks."""
EVERY_S = 5.0
"""Between two lines about an epoch that takes longer."""
_BLOCK = 1024  # consecutive windows; of one machine and day, mostly
_BUFFER = 16  # blocks that windows are shuffled within, when they are in a file
_PREDICTED = 4096  # windows at a time


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Use ``count`` threads, and restore the number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Scratch:
    """Float32 rows in a file that is gone when it is closed; no page of it is mapped."""

    def __init__(self, shape: tuple[int, ...]):
        folder = cache_folder()  # not the system's, which may be in memory
        folder.mkdir(parents=True, exist_ok=True)
        self._file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, as long as this is
        self._shape, self._row_bytes = shape, 4 * math.prod(shape)

    def append(self, rows: NDArray[np.float32]) -> None:
        self._file.write(np.ascontiguousarray(rows).data)

    def read(self, begin: int, out: NDArray[np.float32]) -> None:
        """Fill ``out`` with consecutive rows from ``begin``."""
        self._file.seek(begin * self._row_bytes)
        n_read = self._file.readinto(out.data.cast("B"))
        if n_read != out.nbytes:
            raise OSError(f"scratch file must give {out.nbytes} bytes, got {n_read}")


class _Batches:
    """Scaled inputs and labels: on the device, or in a scratch file."""

    def __init__(
        self, examples: Examples, scaling: dict[str, Any], device: torch.device, room: int
    ):
        """Scale once.

        Args:
            room: bytes that may be kept in memory.
        """
        self._device = device
        self._y = torch.from_numpy(np.ascontiguousarray(examples.y))
        self._shape = scale(examples.X[:1], scaling).shape[1:]
        self.n_bytes = 4 * len(examples) * math.prod(self._shape)
        self._all: torch.Tensor | None = None
        if self.n_bytes <= room:
            self._all = torch.empty((len(examples), *self._shape))
            filled = self._all.numpy()
            for start, block in zip(
                range(0, len(examples), _BLOCK), blocks(examples.X, _BLOCK), strict=True
            ):
                filled[start : start + len(block)] = scale(block, scaling)
            self._all, self._y = self._move(self._all), self._move(self._y)
            return
        self._file = _Scratch(self._shape)
        for block in blocks(examples.X, _BLOCK):
            self._file.append(scale(block, scaling))

    def __len__(self) -> int:
        return len(self._y)

    def n_steps(self, batch_size: int) -> int:
        """Mini-batches of an epoch, of at most ``batch_size`` windows."""
        return self._n_buffers * self._per_buffer(batch_size)

    @property
    def _n_buffers(self) -> int:
        return 1 if self._all is not None else math.ceil(len(self) / (_BUFFER * _BLOCK))

    def _per_buffer(self, batch_size: int) -> int:
        if self._n_buffers == 1:
            return math.ceil(len(self) / batch_size)
        n_blocks = math.ceil(len(self) / _BLOCK)
        most = math.ceil(n_blocks / self._n_buffers) * math.ceil(len(self) / n_blocks)
        return math.ceil(most / batch_size)

    def shuffled(
        self, batch_size: int, shuffling: torch.Generator
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Mini-batches of all windows: in memory in any order, else shuffled within buffers.

        A buffer holds blocks drawn from everywhere. Each is read in one piece, so a disk that
        is slow to seek feeds a net too. Equal parts: a last batch of one window could not be
        normalised.
        """
        per_buffer = self._per_buffer(batch_size)
        if self._all is not None:
            for index in torch.randperm(len(self), generator=shuffling).tensor_split(per_buffer):
                moved = self._move(index)
                yield self._all[moved], self._y[moved]
            return
        if self._n_buffers == 1:  # as in memory
            drawn, cuts = torch.zeros(1, dtype=torch.int64), np.array([0, len(self)])
        else:
            cuts = np.linspace(0, len(self), math.ceil(len(self) / _BLOCK) + 1).astype(np.int64)
            drawn = torch.randperm(len(cuts) - 1, generator=shuffling)
        for numbers in drawn.tensor_split(self._n_buffers):
            rows = [range(int(cuts[n]), int(cuts[n + 1])) for n in numbers.tolist()]
            inputs, y = self._read(rows)
            order = torch.randperm(len(y), generator=shuffling)
            for index in order.tensor_split(per_buffer):
                yield self._move(inputs[index]), self._move(y[index])

    def in_order(self) -> Iterator[torch.Tensor]:
        """The inputs of all windows, some at a time."""
        if self._all is not None:
            yield from self._all.split(_PREDICTED)
            return
        for begin in range(0, len(self), _PREDICTED):
            yield self._move(self._read([range(begin, min(begin + _PREDICTED, len(self)))])[0])

    def _read(self, stretches: list[range]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.empty((sum(map(len, stretches)), *self._shape))
        at, filled = 0, inputs.numpy()
        for rows in stretches:
            self._file.read(rows.start, filled[at : at + len(rows)])
            at += len(rows)
        return inputs, torch.cat([self._y[rows.start : rows.stop] for rows in stretches])

    def _move(self, values: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cuda":
            return values.pin_memory().to(self._device, non_blocking=True)
        return values


class _Standing:
    """All that the rest of a training follows from, as it stands between two epochs."""

    def __init__(
        self,
        net: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        scaler: torch.amp.GradScaler,
        generators: dict[str, torch.Generator],
    ):
        self._net, self._optimizer, self._schedule, self._scaler = net, optimizer, schedule, scaler
        self._generators = generators
        self.history = History()
        self.best_score, self.best_weights = -1.0, net.state_dict()

    def pack(self) -> bytes:
        """As tensors, which run no code when they are loaded."""
        moments = self._optimizer.state_dict()["state"]
        epochs = [[e.step, e.train_loss, e.val_loss, e.val_macro_f1] for e in self.history.epochs]
        numbers = {
            "epochs": epochs,
            "best": [self.history.best_step, self.best_score],
            "rates": [group["lr"] for group in self._optimizer.param_groups],
            "steps": self._schedule.last_epoch,
            "scaler": self._scaler.state_dict(),
        }
        tensors = {
            **_named("net", self._net.state_dict()),
            **_named("best", self.best_weights),
            **{f"adam.{i}.{name}": v for i, each in moments.items() for name, v in each.items()},
            **_named("random", {n: each.get_state() for n, each in self._generators.items()}),
            _NUMBERS: torch.frombuffer(bytearray(json.dumps(numbers).encode()), dtype=torch.uint8),
        }
        return save({name: value.detach().cpu().clone() for name, value in tensors.items()})

    def unpack(self, content: bytes) -> None:
        """Stand where ``pack`` was called.

        Raises:
            ValueError: that was not this training; nothing has changed then.
        """
        try:
            tensors = load(content)
            numbers = json.loads(tensors.pop(_NUMBERS).numpy().tobytes())
            (best_step, best_score), steps = numbers["best"], int(numbers["steps"])
            epochs = [Epoch(int(row[0]), *row[1:]) for row in numbers["epochs"]]
            rates, scaler = [float(rate) for rate in numbers["rates"]], dict(numbers["scaler"])
        except (SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"it cannot be read: {error}") from error
        forms = {name: (value.dtype, value.shape) for name, value in tensors.items()}
        groups = self._optimizer.state_dict()["param_groups"]
        if forms != self._forms() or len(rates) != len(groups):
            raise ValueError("it belongs to another net")
        self._net.load_state_dict(_part("net", tensors))
        device = next(self._net.parameters()).device
        self.best_weights = {n: v.to(device) for n, v in _part("best", tensors).items()}
        self.best_score, self.history = best_score, History(epochs, best_step, len(epochs))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _part("adam", tensors).items():
            number, _, moment = name.partition(".")
            moments.setdefault(int(number), {})[moment] = value
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self._schedule.load_state_dict(
            {"lr_lambdas": [None], "last_epoch": steps, "_step_count": steps + 1, "_last_lr": rates}
        )
        self._scaler.load_state_dict(scaler)
        for name, generator in self._generators.items():
            generator.set_state(tensors[f"random.{name}"])

    def _forms(self) -> dict[str, tuple[torch.dtype, torch.Size]]:
        """Type and shape of every tensor that ``pack`` gives after an epoch, but the numbers."""
        weights, parameters = self._net.state_dict(), list(self._net.parameters())
        like = {
            **_named("net", weights),
            **_named("best", weights),
            **_named("random", {n: each.get_state() for n, each in self._generators.items()}),
        }
        for i, parameter in enumerate(parameters):
            moments = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
            like |= _named(f"adam.{i}", moments)
        return {name: (value.dtype, value.shape) for name, value in like.items()}


_NUMBERS = "numbers"


def _named(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _part(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What ``_named`` was given."""
    start = f"{prefix}."
    return {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}


# Long, because a training loop is read from top to bottom.
def train_net(
    net: torch.nn.Module,
    train: Examples,
    val: Examples | None,
    config: NetConfig,
    scaling: dict[str, Any],
    *,
    n_classes: int,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int, str], None],
    bookmark: Bookmark | None = None,
) -> History:
    """Train in place: AdamW, class-weighted cross-entropy, linear warm-up then cosine decay.

    With ``keep: best`` training stops when macro F1 on validation has not risen for ``patience``
    epochs, and the best epoch's weights stay. With ``keep: last``, or without ``val``, every epoch
    runs and the last weights stay.

    Args:
        bookmark: where to resume from, and to save to between epochs; None: neither. On a CPU the
            weights are bit-for-bit identical to those of an uninterrupted training.

    Raises:
        ValueError: there is a single window, which cannot be normalised over its batch.
        RuntimeError: the loss is not finite.
    """
    if len(train) < 2:
        raise ValueError("train must have at least two windows for a net, got one")
    shuffling = torch.Generator().manual_seed(seed)
    noise = torch.Generator(device).manual_seed(seed)
    net.to(device)
    batches = _Batches(train, scaling, device, IN_MEMORY_BYTES)
    room = max(0, IN_MEMORY_BYTES - batches.n_bytes)
    val_batches = _Batches(val, scaling, device, room) if val is not None else None
    weights = torch.from_numpy(class_weights(train.y, n_classes)).to(device)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    n_steps = config.epochs * batches.n_steps(config.batch_size)
    warmup = max(1, int(config.warmup_share * n_steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warmup,
            0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, n_steps - warmup))),
        ),
    )
    mixed = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=mixed)

    stops_early = config.keep == "best" and val is not None
    generators = {"shuffling": shuffling, "noise": noise, "torch": torch.default_generator}
    if device.type == "cuda":
        generators["cuda"] = torch.cuda.default_generators[torch.cuda.current_device()]
    standing = _Standing(net, optimizer, schedule, scaler, generators)
    resumed = _resume(standing, bookmark)
    if resumed:
        progress(len(standing.history.epochs), config.epochs, resumed)
    history = standing.history
    for epoch in range(len(history.epochs), config.epochs):
        net.train()
        loss_sum = torch.zeros((), device=device)  # summed on the device: no sync in the loop
        meter = _epoch_meter(epoch, config.epochs, progress)
        for number, (inputs, y) in enumerate(batches.shuffled(config.batch_size, shuffling)):
            meter(number, batches.n_steps(config.batch_size), "mini-batches")
            if config.offset_noise:
                shape = (len(inputs), *(1 for _ in inputs.shape[1:-1]), inputs.shape[-1])
                offset = torch.randn(shape, generator=noise, device=device)
                inputs = inputs + config.offset_noise * offset
            with torch.autocast(device.type, enabled=mixed):
                loss = functional.cross_entropy(
                    net(inputs).float(), y, weights, label_smoothing=config.label_smoothing
                )
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            loss_sum += loss.detach() * len(y)
        train_loss = float(loss_sum) / len(train)
        if not math.isfinite(train_loss):
            raise RuntimeError(
                f"loss must be finite, got {train_loss} after epoch {epoch + 1}; "
                "lower learning_rate"
            )
        val_loss = score = None
        text = f"{resumed}, loss {train_loss:.3f}" if resumed else f"loss {train_loss:.3f}"
        if val is not None and val_batches is not None:
            proba = _probabilities(net, val_batches.in_order())
            score = macro_f1(val.y, proba.argmax(axis=1), n_classes)
            actual = proba[np.arange(len(val)), val.y].astype(np.float64)
            val_loss = float(-np.log(np.maximum(actual, 1e-12)).mean())
            text += f", val loss {val_loss:.3f}, val macro F1 {score:.3f}"
        history.epochs.append(Epoch(epoch, train_loss, val_loss, score))
        progress(epoch + 1, config.epochs, text)
        if not stops_early or score is None:
            history.best_step = epoch
        elif score > standing.best_score:
            standing.best_score, history.best_step = score, epoch
            standing.best_weights = {n: value.clone() for n, value in net.state_dict().items()}
        elif epoch - history.best_step >= config.patience:
            break
        if bookmark and bookmark.due:
            bookmark.save(standing.pack)
    if stops_early:
        net.load_state_dict(standing.best_weights)
    net.eval()
    return history


def _epoch_meter(epoch: int, n_epochs: int, progress: Callable[[int, int, str], None]) -> Meter:
    """Tells how far a long epoch is; a short one passes without a word."""
    began = time.monotonic()

    def say(line: str, *, last: bool) -> None:  # noqa: ARG001, the epoch's end is told by itself
        if time.monotonic() - began >= EVERY_S:
            progress(epoch, n_epochs, line)

    return Meter(f"epoch {epoch + 1}", say, EVERY_S)


def _resume(standing: _Standing, bookmark: Bookmark | None) -> str:
    """Go on from what was saved; says from where, nothing if it begins at the beginning."""
    saved = bookmark.read() if bookmark else None
    if bookmark is None or saved is None:
        return ""
    try:
        standing.unpack(saved)
    except ValueError as error:
        bookmark.ignore(str(error))
        return ""
    return f"resumed from epoch {len(standing.history.epochs)}"


@torch.no_grad()
def _probabilities(net: torch.nn.Module, inputs: Iterable[torch.Tensor]) -> NDArray[np.float32]:
    net.eval()
    out = [functional.softmax(net(each).float(), dim=1) for each in inputs]
    return torch.cat(out).cpu().numpy()


def predict_net(
    net: torch.nn.Module, X: Inputs, scaling: dict[str, Any], device: torch.device
) -> NDArray[np.float32]:
    """Probabilities ``(n_windows, n_classes)`` in float32, whatever precision training used."""
    net.to(device)
    scaled = (torch.from_numpy(scale(block, scaling)) for block in blocks(X, _PREDICTED))
    return _probabilities(net, (each.to(device) for each in scaled))
