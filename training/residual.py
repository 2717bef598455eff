"""A small residual network, and how it learns: the same at every call with the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from training.export import one_thread

BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-3
SHIFT = 1  # points by which a picture is moved while it is learned from, at most


class Block(nn.Module):
    """Two convolutions around which the input goes as it is, or made fit by a third."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.way = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        fits = stride == 1 and before == after
        short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.short = nn.Identity() if fits else short

    def forward(self, inputs: Any) -> Any:
        return torch.relu(self.way(inputs) + self.short(inputs))


class Residual(nn.Module):
    """Pictures (rows, channels, height, width) to logits (rows, classes): three stages of two blocks each."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        stages = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        blocks = [(Block(before, after, stride), Block(after, after, 1)) for before, after, stride in stages]
        self.stages = nn.Sequential(*(block for two in blocks for block in two))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, pixel_values: Any) -> Any:
        return self.head(self.stages(self.stem(pixel_values)).mean(dim=(2, 3)))


def learned(pictures: np.ndarray, labels: np.ndarray, *, classes: int, width: int, epochs: int, seed: int) -> Residual:
    """A network that learned from ``pictures`` (rows, channels, height, width), on one thread, to be repeatable."""
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Residual(pictures.shape[1], classes, width)
        _learn(network, torch.from_numpy(pictures), torch.from_numpy(labels), epochs)
    return network.eval()


def _learn(network: Residual, pictures: Any, labels: Any, epochs: int) -> None:
    steps = epochs * -(-len(pictures) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(pictures)).split(BATCH):
            optimiser.zero_grad()
            guessed = network(_moved(pictures[rows]))
            nn.functional.cross_entropy(guessed, labels[rows], label_smoothing=0.05).backward()
            optimiser.step()
            schedule.step()


def _moved(pictures: Any) -> Any:
    """Each batch a little aside, as hands write."""
    down, right = torch.randint(-SHIFT, SHIFT + 1, (2,)).tolist()
    return torch.roll(pictures, (down, right), dims=(2, 3))
