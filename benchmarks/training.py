"""An epoch of a net: this training loop, a plain DataLoader and Lightning.

    python -m benchmarks.training [--windows N]

The same net on the same scaled inputs, with the same optimiser, schedule, noise, clipping and
weights of classes, on one thread. Inputs are scaled once and stay in memory. All have to reach the
same loss. Lightning is left out where the extra ``bench`` is not installed.
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.lines import installed, recording
from features.registry import LAYOUT
from models.base import Examples, class_weights
from models.hyperparameters import CnnConfig, MlpConfig, NetConfig
from models.registry import Variant
from models.scaling import scale, scaled_columns
from models.trainer import train_net

if TYPE_CHECKING:
    from collections.abc import Callable

EPOCHS = 2
N_CLASSES = len(LAYOUT.phases)
LOSSES_DIFFER = 0.1  # at most, relative: the orders of windows differ


class Task:
    """A net and its windows."""

    def __init__(self, name: str, n_windows: int):
        random = np.random.default_rng(0)
        config: NetConfig = MlpConfig() if name == "mlp" else CnnConfig()
        self.config = replace(config, epochs=EPOCHS)
        variant = Variant(name, "realistic")
        keep = LAYOUT.keep_mask("realistic", variant.spec.input_kind)
        shape = (n_windows, *([] if name == "mlp" else [LAYOUT.window.n_bins]), int(keep.sum()))
        y = random.integers(0, N_CLASSES, n_windows)
        X = random.normal(0, 1, shape).astype(np.float32)
        X += y.reshape(-1, *(1 for _ in shape[1:]))  # so that there is something to learn
        self.examples = Examples(X, y)
        model: Any = variant.spec.build(self.config, N_CLASSES, seed=0, device="cpu")
        self.model = model
        self.scaling = model._fit_scaling(X)
        self.weights = torch.from_numpy(class_weights(y, N_CLASSES))
        self.steps = EPOCHS * math.ceil(n_windows / self.config.batch_size)

    def net(self) -> torch.nn.Module:
        torch.manual_seed(0)
        return self.model.build(scaled_columns(self.scaling))

    def loader(self) -> Any:
        X, y = self.examples.X, torch.from_numpy(self.examples.y)
        inputs = torch.from_numpy(scale(X[:], self.scaling))
        data = TensorDataset(inputs, y)
        return DataLoader(data, batch_size=self.config.batch_size, shuffle=True)

    def loss(self, net: torch.nn.Module, inputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        shape = (len(inputs), *(1 for _ in inputs.shape[1:-1]), inputs.shape[-1])
        noisy = inputs + self.config.offset_noise * torch.randn(shape)
        smoothing = self.config.label_smoothing
        return functional.cross_entropy(net(noisy), y, self.weights, label_smoothing=smoothing)

    def optimizer(self, net: torch.nn.Module) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        warmup = max(1, int(self.config.warmup_share * self.steps))
        rest = max(1, self.steps - warmup)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(
                (step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / rest))
            ),
        )


def ours(task: Task) -> float:
    """Mean loss of the last epoch."""
    history = train_net(
        task.net(), task.examples, None, task.config, task.scaling, n_classes=N_CLASSES, seed=0,
        device=torch.device("cpu"), progress=lambda *_: None,
    )  # fmt: skip
    return float(history.epochs[-1].train_loss)


def by_dataloader(task: Task) -> float:
    net, loader = task.net(), task.loader()
    optimizer, schedule = task.optimizer(net)
    total = torch.zeros(())
    for _ in range(EPOCHS):
        total.zero_()
        for inputs, y in loader:
            loss = task.loss(net, inputs, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), task.config.clip_norm)
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(y)
    return float(total) / len(task.examples)


def by_lightning(task: Task) -> float:
    import lightning

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.total = task.net(), torch.zeros(())

        def on_train_epoch_start(self) -> None:
            self.total.zero_()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss = task.loss(self.net, *batch)
            self.total += loss.detach() * len(batch[1])
            return loss

        def configure_optimizers(self) -> Any:
            optimizer, schedule = task.optimizer(self.net)
            scheduler = {"scheduler": schedule, "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        gradient_clip_val=task.config.clip_norm,
    )  # fmt: skip
    trainer.fit(module, task.loader())
    return float(module.total) / len(task.examples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=3_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Lightning advises workers, which here cost more
    logging.disable(logging.WARNING)
    ways: dict[str, Callable[[Task], float]] = {"DataLoader, plain loop": by_dataloader}
    if installed("lightning"):
        ways["Lightning, DataLoader"] = by_lightning
    with recording("training", "lightning") as out:
        for name in ("mlp", "cnn"):
            task = Task(name, asked.windows)
            reached = ours(task)
            for way, train in ways.items():
                other = train(task)
                assert abs(other / reached - 1) < LOSSES_DIFFER, f"{way}: {other} for {reached}"
            peers = {way: partial(train, task) for way, train in ways.items()}
            out.against(
                f"an epoch of {name}, scaling included", partial(ours, task), peers,
                EPOCHS * asked.windows, "windows", rounds=3,
            )  # fmt: skip


if __name__ == "__main__":
    main()
