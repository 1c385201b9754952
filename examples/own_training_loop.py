"""Train by any method in a training loop of your own: your optimizer, data loader and precision.

python examples/own_training_loop.py [METHOD]
"""

import sys

import torch
from torch.utils.data import DataLoader, TensorDataset

import offramp
from offramp.branches import sketch
from offramp.data import DataSet, load
from offramp.methods import find
from offramp.models import resnet


def main(name: str = "muse", epochs: int = 4, images: int = 512) -> list[float]:
    """Train a small ResNet18 on digits; returns the loss of every step."""
    data = load("digits")
    train, held_out = (split(data, part, images) for part in ("train", "val"))
    torch.manual_seed(0)

    method = find(name).build()
    net = method.network(
        lambda: resnet.build("resnet18", classes=10, width=8, channels=1, image_size=8),
        lambda backbone, exit: sketch.build(backbone, exit, 10),
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    trainer = offramp.StepTrainer(method, net, optimizer, input_shape=(1, 8, 8), epochs=epochs, held_out=held_out)
    losses = []
    for epoch in range(epochs):
        trainer.start_epoch(epoch)
        for inputs, labels in train:
            terms = trainer.step(inputs, labels)
            losses.append(sum(term.item() for term in terms.values()))
        print(f"epoch {epoch + 1}: loss {losses[-1]:.3f}")
    return losses


def split(data: DataSet, part: str, images: int) -> DataLoader:  # type: ignore[type-arg]
    """Images (B, 1, 8, 8) in [-1, 1] and labels of a split, in batches of 64."""
    chosen = data.splits[part]
    pixels = torch.from_numpy(chosen.source.batch(chosen.ids[:images])).float() / 127.5 - 1
    labels = torch.from_numpy(chosen.labels[:images])
    return DataLoader(TensorDataset(pixels, labels), batch_size=64, shuffle=part == "train", drop_last=True)


if __name__ == "__main__":
    main(*sys.argv[1:2])
