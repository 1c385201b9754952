"""Weights under the names that the unsplit model gives them, in both directions, and from files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from offramp import digests, finite
from offramp.net import Backbone, MultiExitNet
from offramp.split.graph_module import Subgraph

Net = Backbone | MultiExitNet

CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network")
"""Keys under which training code keeps the weights in a checkpoint."""

_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
_RESNET_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")


def state(net: Net) -> dict[str, Tensor]:
    """The trunk's weights by the unsplit model's names: what its `load_state_dict` takes. Early exits are left out.

    The tensors are the network's own. A network that was not split has the names `blocks.0...`, `blocks.1...` and
    `head...`, whatever its exits are.
    """
    blocks, head = _trunk(net)
    tensors: dict[str, Tensor] = {}
    for name, block in [*((f"blocks.{index}.", block) for index, block in enumerate(blocks)), ("head.", head)]:
        prefix = "" if isinstance(block, Subgraph) else name
        tensors |= {prefix + key: tensor for key, tensor in block.state_dict(keep_vars=True).items()}
    return tensors


def _trunk(net: Net) -> tuple[list[nn.Module], nn.Module]:
    """The blocks of all stages, and the head.

    Raises:
        ValueError: if the final exit holds no head.
    """
    last: Any = net if isinstance(net, Backbone) else net.branches[-1]
    while not hasattr(last, "head"):
        if not hasattr(last, "branch"):
            raise ValueError(f"the final exit, a {type(last).__name__}, has neither a `head` nor a `branch` around one")
        last = last.branch  # a method's own around it
    head: nn.Module = last.head
    blocks: list[nn.Module] = []
    for stage in net.stages:
        blocks += list(stage) if isinstance(stage, nn.Sequential) else [stage]
    return blocks, head


def load_state(
    net: Net, tensors: Mapping[str, Tensor], source: str = "the weights", classes: bool = False
) -> list[str]:
    """Load the trunk's weights by the unsplit model's names.

    Args:
        source: names the weights in errors.
        classes: let the classifier keep its weights if those given are for another number of classes.
    Returns:
        The names of the weights that were not loaded.
    Raises:
        ValueError: naming the weights that are missing, unexpected or of another shape.
    """
    current = state(net)
    tensors = _of_usual_resnet(_of_run(tensors, split=isinstance(_trunk(net)[1], Subgraph)), current)
    wrong = {name for name in current if name in tensors and current[name].shape != tensors[name].shape}
    skipped = sorted(wrong & set(_classifier(net, current))) if classes else []
    missing, unexpected = (
        [name for name in current if name not in tensors],
        [name for name in tensors if name not in current],
    )
    problems = [
        *_listed("missing", missing),
        *_listed("unexpected", unexpected),
        *_listed(
            "of another shape",
            [
                f"{name} {tuple(tensors[name].shape)} instead of {tuple(current[name].shape)}"
                for name in current
                if name in wrong - {*skipped}
            ],
        ),
    ]
    if problems:
        raise ValueError(f"{source} do not fit the network: {'; '.join(problems)}")
    with torch.no_grad():
        for name, tensor in current.items():
            if name not in skipped and not tensor.is_meta:
                tensor.copy_(tensors[name])
    return skipped


def _listed(what: str, names: list[str], shown: int = 4) -> list[str]:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return [f"{len(names)} {what} ({', '.join(names[:shown])}{more})"] if names else []


def _classifier(net: Net, current: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights of the layer that makes the logits: the last linear or convolution layer's of the head."""
    head = _trunk(net)[1]
    layers = [part for part in head.modules() if isinstance(part, nn.Linear | nn.modules.conv._ConvNd)]
    last = {id(tensor) for tensor in layers[-1].parameters()} if layers else set()
    return [name for name, tensor in current.items() if id(tensor) in last]


def _of_run(tensors: Mapping[str, Tensor], split: bool) -> Mapping[str, Tensor]:
    """Weights of a run of offramp by the names that `state` gives: the last branch is the head, others are left out.

    Blocks are counted through all stages, so that weights fit networks with other exits, or none.
    """
    exits = [int(name.split(".")[1]) for name in tensors if name.startswith("branches.")]
    if not exits or not any(name.startswith("stages.") for name in tensors):
        return tensors
    head = re.compile(rf"branches\.{max(exits)}\.(branch\.)*head\.")  # a method may put its own around a branch
    blocks = sorted({tuple(map(int, name.split(".")[1:3])) for name in tensors if name.startswith("stages.")})
    number = {f"stages.{stage}.{block}.": index for index, (stage, block) in enumerate(blocks)}
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = ".".join(name.split(".")[:3]) + "."
        if place in number:
            named[("" if split else f"blocks.{number[place]}.") + name.removeprefix(place)] = tensor
        elif head.match(name):
            named[("" if split else "head.") + head.sub("", name, count=1)] = tensor
    return named


def _of_usual_resnet(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights of a ResNet of this package by the names that `state` gives; others are returned as they are.

    Understood are the names of torchvision, timm and the usual code for CIFAR: conv1, bn1, layer1.0.conv1,
    layer2.0.shortcut.0 or .downsample.0, and linear or fc for the classifier.
    """
    blocks = sorted({tuple(map(int, match.groups())) for name in tensors if (match := _RESNET_BLOCK.match(name))})
    if not blocks or "blocks.0.conv.weight" not in expected or "conv1.weight" not in tensors:
        return tensors
    number = {f"layer{layer}.{block}.": index for index, (layer, block) in enumerate(blocks, start=1)}
    stem = {
        "conv1.": "blocks.0.conv.",
        "bn1.": "blocks.0.bn.",
        "linear.": "head.classifier.",
        "fc.": "head.classifier.",
    }
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _RESNET_BLOCK.match(name)
        if match is not None:
            rest = name[match.end() :].replace("downsample.", "shortcut.")
            named[f"blocks.{number[match[0]]}.{rest}"] = tensor
        else:
            place = next((prefix for prefix in stem if name.startswith(prefix)), "")
            named[stem.get(place, "") + name.removeprefix(place)] = tensor
    return named


def read(path: Path, parameter: str = "weights") -> dict[str, Tensor]:
    """The weights in a file: safetensors, or a checkpoint of PyTorch that holds nothing but tensors and plain values.

    Checkpoints that keep their weights under one of `CONTAINERS` are understood, and names that begin with `module.`
    (DataParallel) or `_orig_mod.` (torch.compile).

    Args:
        parameter: names the file in errors.
    Raises:
        ValueError: if there is no such file, it holds something else, a value is not finite, or weights of a run have
            changed since they were written.
    """
    named = f"{parameter}={path}"
    if path.is_dir():
        raise ValueError(f"{named} is a folder: name a file in it, such as {path / 'last.safetensors'} of a run")
    if not path.is_file():
        raise ValueError(f"{named}: the file does not exist")
    try:
        content, whole = _content(path)
    except SafetensorError as error:
        raise ValueError(f"{named} is not a safetensors file: {error}") from None
    except Exception as error:  # what PyTorch says is about its options
        raise ValueError(f"{named} {_why_unreadable(error, path)}") from None
    for key in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(each, Tensor) for each in content.values()):
        raise ValueError(f"{named} contains no weights: it must be a mapping of names to tensors")
    finite.check(content.items(), named)
    if not whole:
        raise ValueError(f"{named} was changed since it was written: restore it, or train again")
    return {_WRAPPERS.sub("", str(name)): tensor for name, tensor in content.items()}


def _content(path: Path) -> tuple[Any, bool]:
    """What a file holds, and whether it is what the digest in its header is of, which weights of a run have."""
    if path.suffix != ".safetensors":
        return torch.load(path, "cpu", weights_only=True), True
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    digest = header.get("blake2b")
    return tensors, digest is None or digest == digests.of_weights(tensors, header.get("about", ""))


def _why_unreadable(error: Exception, path: Path) -> str:
    """What a file is that holds more than weights, and how to get the weights out of it."""
    text = str(error)
    if "TorchScript" in text:
        return (
            f"is a TorchScript archive: torch.save(torch.jit.load({str(path)!r}).state_dict(), FILE) writes its weights"
        )
    foreign = re.search(r"GLOBAL ([\w.]+)", text)
    if foreign is None:
        return (
            "cannot be read as weights alone: it is not a PyTorch checkpoint, is damaged, or holds more than tensors "
            "and plain values; torch.save(model.state_dict(), FILE) writes what can"
        )
    return (
        f"cannot be read as weights alone: it holds {foreign[1]}, such as a whole pickled model has, and loading that "
        "may run its code; if you trust it, load it with torch.load(…, weights_only=False) and write its weights with "
        "torch.save(model.state_dict(), FILE)"
    )
