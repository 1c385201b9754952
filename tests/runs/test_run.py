"""Trained runs: opened as they were trained, and those that cannot be opened."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from offramp.config import Config, build_method, build_net, flat, resolve
from offramp.runs import check_data, load_data, load_run
from offramp.runs.run import as_trained
from offramp.train.checkpoint import save_weights

TINY = Config(method="muse", width=4, method_options={"alpha": "0.25"}, precision="32", device="cpu")


def a_run(folder: Path, config: Config = TINY) -> Path:
    """A folder as a finished run leaves it, with untrained weights."""
    config = resolve(config)
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(flat(config)))
    torch.manual_seed(0)
    net = build_net(config, build_method(config), classes=10, shape=(1, 8, 8))
    about = {"epoch": 1, "val_accuracy": None, "classes": list("0123456789"), "shape": [1, 8, 8]}
    save_weights(folder / "last.safetensors", net.state_dict(), about)
    return folder


def test_a_run_is_opened_as_it_was_trained(tmp_path: Path) -> None:
    run = load_run(a_run(tmp_path / "a"))
    torch.manual_seed(0)
    config = resolve(TINY)
    net = build_net(config, build_method(config), classes=10, shape=(1, 8, 8)).eval()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(run.net(x).logits, net(x).logits)
    assert not run.net.training and run.about["epoch"] == 1 and run.policy is None
    assert run.config.options["method"]["alpha"] == 0.25


def test_a_run_trained_on_more_devices_opens_on_one(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "a")
    values = yaml.safe_load((folder / "config.yaml").read_text())
    before = {"device": "cuda", "devices": 2, "precision": "tf32"}
    (folder / "config.yaml").write_text(yaml.safe_dump({**values, **before}))
    opened = load_run(folder, device="cpu")
    assert (opened.config.device, opened.config.devices, opened.config.precision) == ("cpu", 1, "32")
    assert vars(as_trained(opened)) == {**vars(opened.config), **before}


@pytest.mark.parametrize(("before", "precision"), [("cpu", "bf16"), ("cuda", "bf16-dense")])
def test_a_precision_that_pays_off_on_cpus_is_not_that_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, precision: str
) -> None:
    folder = a_run(tmp_path / "a")
    values = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**values, "device": before, "precision": "bf16-dense"}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_run(folder, device="cuda").config.precision == precision


def test_runs_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere is not a run: the folder does not exist"):
        load_run(tmp_path / "nowhere")
    folder = a_run(tmp_path / "a")
    for name in ("comparison.yaml", "a/result.json"):
        (tmp_path / name).write_text("{}")
    says = f"{tmp_path} is a comparison, but this takes one run: name one of its runs, such as {folder}"
    with pytest.raises(ValueError, match=re.escape(says)):
        load_run(tmp_path)
    with pytest.raises(ValueError, match=r"has no best\.safetensors: it held nothing out"):
        load_run(folder, "best")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("width: 4", "width: 8"))
    with pytest.raises(ValueError, match=r"last\.safetensors does not fit the network of .*size mismatch"):
        load_run(folder)
    (folder / "config.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match=r"config\.yaml is damaged: it is not YAML"):
        load_run(folder)
    (folder / "config.yaml").write_text(config)
    weights = folder / "last.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"last\.safetensors cannot be read as safetensors"):
        load_run(folder)


@pytest.mark.parametrize(
    "asked",
    [
        {"net": "resnet18", "net.width": 100_000},
        {"net": "wrn16-4", "net.blocks": 1_000_000},
        {"net": "timm:vit_tiny_patch16_224", "net.depth": 20_000},
        {"net": "timm:vit_tiny_patch16_224", "net.depth": 10**9},
    ],
)
def test_a_configuration_that_asks_for_far_more_than_its_weights_takes_no_memory(
    tmp_path: Path, asked: dict[str, object]
) -> None:
    folder = a_run(tmp_path / "a")
    values = yaml.safe_load((folder / "config.yaml").read_text())
    kept = {name: part for name, part in values.items() if name != "width" and not name.startswith("net")}
    (folder / "config.yaml").write_text(yaml.safe_dump({**kept, **asked}))
    says = (
        r"config\.yaml: (it asks for a network of more than 4 times the|net\.\w+ is \d+, but there are only) [\d,]+ v"
    )
    with pytest.raises(ValueError, match=says):
        load_run(folder)


def test_a_policy_that_does_not_fit_is_named_and_not_needed_to_make_a_new_one(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "a")
    policy = folder / "policy.json"
    for text, says in (
        ("{", r"policy\.json is damaged: it is not JSON"),
        (
            '{"format": "offramp-policy", "version": 1, "thresholds": [0.5, 0.5], "enabled": [true, true], '
            '"score": "margin", "temperatures": [1, 1], "answer": "exit", "patience": 1}',
            r"policy\.json is for 2 exits, but this network has 4: fit it again with `offramp calibrate .*a --max",
        ),
    ):
        policy.write_text(text)
        with pytest.raises(ValueError, match=says):
            load_run(folder)
        assert load_run(folder, with_policy=False).policy is None


def test_data_of_other_classes_or_images_are_refused(tmp_path: Path) -> None:
    run = load_run(a_run(tmp_path / "a"))
    data = load_data(run)
    assert data.shape == (1, 8, 8) and len(data.classes) == 10
    for classes, says in (
        ([*"012345678", "nine"], "class 9 is '9', not 'nine'"),
        ([*"012345678"], "class 9 is '9', not no such class"),
        ([*"0123456789", "ten"], "class 10 is no such class, not 'ten'"),
    ):
        with pytest.raises(ValueError, match=f"digits has other classes than runs/a was trained on: {says}; name"):
            check_data(data, classes, (1, 8, 8), "runs/a")
    with pytest.raises(
        ValueError, match="digits has images of 1×8×8, but runs/a was trained on 3×32×32: name the data"
    ):
        check_data(data, data.classes, [3, 32, 32], "runs/a")
