"""Networks of others by name; what is said about names that are wrong and things that do not go together."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp import models
from offramp.net import Backbone
from offramp.split import model_sources, state


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm:resnet18", {}),
        ("torchvision:resnet18", {}),
        ("transformers:resnet", {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}),
    ],
)
def test_by_name(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        backbone = model_sources.build(name, classes=7, exits=3, size=(64, 64), options=options)
    assert isinstance(backbone, Backbone) and len(backbone.stages) == 3 and backbone.shape == (3, 64, 64)
    assert any(tensor.shape[0] == 7 for tensor in state(backbone).values() if tensor.dim() == 2)


def test_sizes_and_channels_are_passed_on() -> None:
    with torch.device("meta"):
        vit = model_sources.build(
            "timm:vit_tiny_patch16_224", classes=3, channels=1, size=(48, 32), options={"depth": 2}, exits=2
        )
        usual = model_sources.build("timm:vit_tiny_patch16_224", classes=3, options={"depth": 2}, exits=2)
    assert vit.shape == (1, 48, 32) and state(vit)["pos_embed"].shape[1] == 7
    assert usual.shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tim:resnet50", "unknown net 'tim:resnet50'; before a colon the nearest is 'timm'"),
        ("timm:resnet5", "unknown network of timm 'resnet5'; the nearest is 'resnet5"),
        ("torchvision:resnet19", "unknown network of torchvision 'resnet19'; the nearest is 'resnet1"),
        (
            "transformers:vti",
            "unknown type of image classifier, nor folder with a config.json, of transformers 'vti'; the",
        ),
        ("python:my_nets", "python:my_nets must be python:package.module:function"),
        ("python:my_nets:smal", "python:my_nets:smal: my_nets has no function 'smal'; the nearest is 'small'"),
        ("python:no_such_module:fn", "python:no_such_module cannot be imported: No module named 'no_such_module'"),
        (
            "python:my_nets:wrong",
            "python:my_nets:wrong cannot be built: the function must return an nn.Module or a Backbone",
        ),
        (
            "python:my_nets:careless",
            "python:my_nets:careless cannot be built: my_nets.py, line 80: `return nets[\"model\"]`: KeyError: 'model'",
        ),
        ("python:my_nets:larger", "python:my_nets:larger cannot be built: my_nets.py, line 85: `import no_such_pack"),
        ("python:broken:fn", "python:broken cannot be imported: invalid syntax (broken.py, line 1)"),
        ("python:failing:fn", "python:failing cannot be imported: RuntimeError: no GPU here"),
        (
            "python:my_nets:deaf",
            "python:my_nets:deaf: deaf must take the number of classes as `classes` or `num_classes`",
        ),
    ],
)
def test_wrong_names(my_nets: str, name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("import this is wrong")
    (tmp_path / "failing.py").write_text("raise RuntimeError('no GPU here')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError) as caught:
        model_sources.build(name, classes=3)
    assert str(caught.value).startswith(said)


def test_what_does_not_go_together(my_nets: str) -> None:
    with pytest.raises(
        ValueError, match=r"^exits_after names the layers to place them after, exits how many to place: give one"
    ):
        model_sources.build("timm:resnet18", classes=3, exits_after=["layer1"], exits=2)
    with pytest.raises(ValueError, match=r"^torchvision:resnet18 takes images of 3 channels, not 1; timm:resnet18 may"):
        model_sources.build("torchvision:resnet18", classes=3, channels=1)
    with pytest.raises(ValueError, match=r"^timm:resnet18 cannot be built: .*unexpected keyword argument 'widht'"):
        model_sources.build("timm:resnet18", classes=3, options={"widht": 3})
    with pytest.raises(
        ValueError, match=r"^python:my_nets:staged is divided into stages already: exits_after and exits are"
    ):
        model_sources.build("python:my_nets:staged", classes=3, exits=2)
    assert len(model_sources.build("python:my_nets:staged", classes=3).stages) == 2


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("timm:resnet18", {"pretrained": True}, "net.pretrained: nothing is downloaded here; omit it and use w"),
        ("timm:resnet18", {"checkpoint_path": "w.pth"}, "net.checkpoint_path: nothing is downloaded here"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "net.weights: nothing is downloaded here"),
        ("timm:resnet18", {"num_classes": 4}, "net.num_classes follows from the data: omit it"),
        ("python:my_nets:small", {"channels": 3}, "net.channels follows from the data: omit it"),
        ("torchvision:vit_b_16", {"image_size": "x"}, "net.image_size must be a whole number of at least 1, got 'x'"),
        ("transformers:vit", {"num_labels": 3}, "net.num_labels follows from the data"),
        (
            "transformers:vit",
            {"attn_implementation": "someone/kernel"},
            "transformers:vit asks for the attention 'someone/kernel', which may have to be downloaded: use net.attn",
        ),
    ],
)
def test_constructors_fetch_nothing_and_contradict_nothing(
    my_nets: str, name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError) as caught:
        model_sources.build(name, classes=3, options=options)
    assert str(caught.value).startswith(said)


def test_exits_are_counted_from_one(my_nets: str) -> None:
    with pytest.raises(
        ValueError, match=r"^exits takes a number from 1 to \d+ on this network, got 0; exits_after can"
    ):
        model_sources.build("python:my_nets:small", classes=3, size=(16, 16), exits=0)


@pytest.mark.parametrize(
    ("name", "package", "extra"), [("timm:x", "timm", "vision"), ("transformers:x", "transformers", "transformers")]
)
def test_a_missing_package_names_the_command(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError) as caught:
        model_sources.build(name, classes=3)
    assert str(caught.value) == f"this needs the package {package}: pip install 'offramp[{extra}]'"


def test_every_door_is_listed() -> None:
    assert {name.partition(":")[0] for name in models.EXTERNAL} == {"timm", "torchvision", "transformers", "python"}
    assert not any(models.is_external(name) for name in models.available())
