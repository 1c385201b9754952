"""A vision transformer of timm trains with the methods that differentiate through a step of the optimiser."""

import pytest
import torch

from offramp import methods
from offramp.branches import linear
from offramp.split import model_sources
from offramp.train.step_trainer import StepTrainer

SHAPE, CLASSES = (3, 16, 16), 4


@pytest.mark.parametrize("name", ["hdkd", "l2w"])
def test_one_step(name: str) -> None:
    """Fused attention has no forward-mode derivative; its plain form has one, which these methods take."""
    torch.manual_seed(0)
    options = {"patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
    backbone = model_sources.build(
        "timm:vit_tiny_patch16_224",
        classes=CLASSES,
        size=SHAPE[1:],
        exits_after=["blocks.0"],
        options=options,
        check=False,
    )
    method = methods.find(name).build()
    net = method.network(lambda: backbone, lambda trunk, exit: linear.build(trunk, exit, CLASSES))
    images, labels = torch.rand(8, *SHAPE), torch.arange(8) % CLASSES
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    trainer = StepTrainer(method, net, optimizer, input_shape=SHAPE, epochs=1, held_out=[(images.flip(3), labels)])
    before = {key: tensor.clone() for key, tensor in net.named_parameters()}
    trainer.start_epoch(0)
    terms = trainer.step(images, labels)
    assert all(torch.isfinite(value).all() for value in terms.values())
    assert {key.split(".")[-2] for key, tensor in net.named_parameters() if not torch.equal(tensor, before[key])} >= {
        "qkv", "proj", "fc1", "fc2"
    }  # fmt: skip
