"""One training loop for every neural net. Architectures are in modules of their own."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from models.base import Epoch, Examples, History, blocks, class_weights
from models.metrics import macro_f1
from models.scaling import scale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from numpy.typing import NDArray

    from models.base import Inputs
    from models.hyperparameters import NetConfig

IN_MEMORY_BYTES = 2 * 2**30
"""A training set up to this size is scaled once and kept on the device; a larger one is read and
scaled batch by batch."""
_BLOCK = 4096


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Use ``count`` threads, and restore the number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Batches:
    """Scaled inputs and labels on the device, by index."""

    def __init__(self, examples: Examples, scaling: dict[str, Any], device: torch.device):
        self._X, self._scaling, self._device = examples.X, scaling, device
        self._y = self._move(torch.from_numpy(np.ascontiguousarray(examples.y)))
        n_bytes = 4 * len(examples) * math.prod(scale(examples.X[:1], scaling).shape[1:])
        self._all = None
        if n_bytes <= IN_MEMORY_BYTES:
            self._all = self._move(
                torch.cat([self._scaled(block) for block in blocks(self._X, _BLOCK)])
            )

    def __len__(self) -> int:
        return len(self._y)

    def __getitem__(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        moved = self._move(index)
        if self._all is not None:
            return self._all[moved], self._y[moved]
        block = np.asarray(self._X[index.numpy()], dtype=np.float32)
        return self._move(self._scaled(block)), self._y[moved]

    def _scaled(self, block: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(scale(block, self._scaling)))

    def _move(self, values: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cuda":
            return values.pin_memory().to(self._device, non_blocking=True)
        return values


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
) -> History:
    """Train in place: AdamW, class-weighted cross-entropy, linear warm-up then cosine decay.

    With ``keep: best`` training stops when macro F1 on validation has not risen for ``patience``
    epochs, and the best epoch's weights stay. With ``keep: last``, or without ``val``, every epoch
    runs and the last weights stay.

    Raises:
        ValueError: there is a single window, which cannot be normalised over its batch.
        RuntimeError: the loss is not finite.
    """
    if len(train) < 2:
        raise ValueError("train must have at least two windows for a net, got one")
    shuffling = torch.Generator().manual_seed(seed)
    noise = torch.Generator(device).manual_seed(seed)
    net.to(device)
    batches = _Batches(train, scaling, device)
    val_batches = _Batches(val, scaling, device) if val is not None else None
    weights = torch.from_numpy(class_weights(train.y, n_classes)).to(device)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    steps_per_epoch = math.ceil(len(train) / config.batch_size)
    n_steps = config.epochs * steps_per_epoch
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
    best_score, best_weights = -1.0, net.state_dict()
    history = History()
    for epoch in range(config.epochs):
        net.train()
        order = torch.randperm(len(batches), generator=shuffling)
        loss_sum = torch.zeros((), device=device)  # summed on the device: no sync in the loop
        # equal parts: a last batch of one window could not be normalised
        for index in order.tensor_split(steps_per_epoch):
            inputs, y = batches[index]
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
            loss_sum += loss.detach() * len(index)
        train_loss = float(loss_sum) / len(train)
        if not math.isfinite(train_loss):
            raise RuntimeError(
                f"loss must be finite, got {train_loss} after epoch {epoch + 1}; "
                "lower learning_rate"
            )
        val_loss = score = None
        text = f"loss {train_loss:.3f}"
        if val is not None and val_batches is not None:
            proba = _probabilities(net, val_batches)
            score = macro_f1(val.y, proba.argmax(axis=1), n_classes)
            actual = proba[np.arange(len(val)), val.y].astype(np.float64)
            val_loss = float(-np.log(np.maximum(actual, 1e-12)).mean())
            text += f", val loss {val_loss:.3f}, val macro F1 {score:.3f}"
        history.epochs.append(Epoch(epoch, train_loss, val_loss, score))
        progress(epoch + 1, config.epochs, text)
        if not stops_early or score is None:
            history.best_step = epoch
        elif score > best_score:
            best_score, history.best_step = score, epoch
            best_weights = {name: value.clone() for name, value in net.state_dict().items()}
        elif epoch - history.best_step >= config.patience:
            break
    if stops_early:
        net.load_state_dict(best_weights)
    net.eval()
    return history


@torch.no_grad()
def _probabilities(net: torch.nn.Module, batches: _Batches) -> NDArray[np.float32]:
    net.eval()
    out = []
    for index in torch.arange(len(batches)).split(_BLOCK):
        inputs, _ = batches[index]
        out.append(functional.softmax(net(inputs).float(), dim=1))
    return torch.cat(out).cpu().numpy()


def predict_net(
    net: torch.nn.Module, X: Inputs, scaling: dict[str, Any], device: torch.device
) -> NDArray[np.float32]:
    """Probabilities ``(n_windows, n_classes)`` in float32, whatever precision training used."""
    net.to(device)
    nothing = np.zeros(len(X), dtype=np.int64)
    return _probabilities(net, _Batches(Examples(X, nothing), scaling, device))
