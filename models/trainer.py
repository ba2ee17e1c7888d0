"""One training loop for every neural net. Architectures are in modules of their own."""

from __future__ import annotations

import math
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.nn import functional

from models.base import Epoch, Examples, History, class_weights
from models.metrics import macro_f1
from models.scaling import scale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from numpy.typing import NDArray

    from models.base import Inputs

IN_MEMORY_BYTES = 2 * 2**30
"""A training set up to this size is scaled once and kept on the device; a larger one is gathered
and scaled batch by batch."""


class NetConfig(Protocol):
    """What the loop needs of a net's hyper-parameters."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_share: float
    clip_norm: float
    patience: int
    label_smoothing: float
    offset_noise: float
    n_threads: int


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Use so many threads, and give them back."""
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
        self.y = torch.from_numpy(np.ascontiguousarray(examples.y)).to(device)
        n_bytes = 4 * math.prod(examples.X.shape)
        self._all = self._load(slice(None)) if n_bytes <= IN_MEMORY_BYTES else None

    def __len__(self) -> int:
        return len(self.y)

    def _load(self, index: Any) -> torch.Tensor:
        block = np.asarray(self._X[index], dtype=np.float32)
        scaled = torch.from_numpy(np.ascontiguousarray(scale(block, self._scaling)))
        if self._device.type == "cuda":
            return scaled.pin_memory().to(self._device, non_blocking=True)
        return scaled

    def inputs(self, index: torch.Tensor) -> torch.Tensor:
        if self._all is not None:
            return self._all[index.to(self._device)]
        return self._load(index.numpy())


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

    After every epoch the validation windows are scored; training stops after ``patience`` epochs
    without a better macro F1, and the best weights are restored. Without ``val`` every epoch runs
    and the last weights stay.
    """
    generator = torch.Generator().manual_seed(seed)
    net.to(device)
    batches = _Batches(train, scaling, device)
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

    history = History()
    best: tuple[float, float] = (-1.0, -math.inf)
    best_weights: dict[str, torch.Tensor] = {}
    for epoch in range(config.epochs):
        net.train()
        order = torch.randperm(len(batches), generator=generator)
        loss_sum = torch.zeros((), device=device)  # summed on the device: no sync in the loop
        for index in order.split(config.batch_size):
            inputs, y = batches.inputs(index), batches.y[index.to(device)]
            if config.offset_noise:
                shape = (len(inputs), *(1 for _ in inputs.shape[1:-1]), inputs.shape[-1])
                noise = torch.randn(shape, generator=generator) * config.offset_noise
                inputs = inputs + noise.to(device)
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
            raise RuntimeError(f"the loss is {train_loss} after epoch {epoch + 1}: lower the rate")
        if val is None:
            history.epochs.append(Epoch(epoch, train_loss, None, None))
            history.best_step = epoch
            progress(epoch + 1, config.epochs, f"loss {train_loss:.3f}")
            continue
        proba = predict_net(net, val.X, scaling, device)
        score = macro_f1(val.y, proba.argmax(axis=1), n_classes)
        val_loss = _log_loss(proba, val.y)
        history.epochs.append(Epoch(epoch, train_loss, val_loss, score))
        progress(
            epoch + 1,
            config.epochs,
            f"loss {train_loss:.3f}, val loss {val_loss:.3f}, val macro F1 {score:.3f}",
        )
        if (score, -val_loss) > best:
            best, history.best_step = (score, -val_loss), epoch
            best_weights = deepcopy(net.state_dict())
        elif epoch - history.best_step >= config.patience:
            break
    if best_weights:
        net.load_state_dict(best_weights)
    net.eval()
    return history


def _log_loss(proba: NDArray[np.float32], y: NDArray[np.int64]) -> float:
    chosen = proba[np.arange(len(y)), y].astype(np.float64)
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


@torch.no_grad()
def predict_net(
    net: torch.nn.Module,
    X: Inputs,
    scaling: dict[str, Any],
    device: torch.device,
    batch_size: int = 512,
) -> NDArray[np.float32]:
    """Probabilities ``(n_windows, n_classes)`` in float32, whatever precision training used."""
    net.eval()
    out = []
    for start in range(0, len(X), batch_size):
        block = np.asarray(X[start : start + batch_size], dtype=np.float32)
        inputs = torch.from_numpy(np.ascontiguousarray(scale(block, scaling))).to(device)
        out.append(functional.softmax(net(inputs).float(), dim=1).cpu())
    return torch.cat(out).numpy()
