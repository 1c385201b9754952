"""Leaving early on real networks answers what all exits and then the policy would, in every way segments are run."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import forked
import pytest
import torch

from offramp.branches import eed, linear, own
from offramp.early_exit.policy import NEVER, ExitPolicy
from offramp.early_exit.runtime import answer
from offramp.models import msdnet, resnet, wrn
from offramp.net import MultiExitNet, attach, only_behind, segments

CLASSES, POOL = 5, 64
INPUTS = torch.randn(POOL, 3, 32, 32, generator=torch.Generator().manual_seed(3))
BUILDS: dict[str, Callable[[], MultiExitNet]] = {
    "one map": lambda: attach(
        resnet.build("resnet18", classes=CLASSES, width=2), lambda trunk, exit: eed.build(trunk, exit, CLASSES)
    ),
    "two exits": lambda: attach(
        wrn.build("wrn16-4", classes=CLASSES, width=2, blocks=1),
        only_behind([3], lambda trunk, exit: linear.build(trunk, exit, CLASSES)),
    ),
    "several maps": lambda: attach(
        msdnet.build("msdnet", classes=CLASSES, setting="beed-4", width=2, growth=2),
        lambda trunk, exit: own.build(trunk, exit, CLASSES),
    ),
}
SCOPES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "fp32": nullcontext,
    "bf16": lambda: torch.autocast("cpu", torch.bfloat16),
}


@cache
def network(kind: str) -> MultiExitNet:
    """Newly initialised, its batch statistics those of the inputs, so that scores differ from sample to sample."""
    torch.manual_seed(0)
    net = BUILDS[kind]().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        for _ in range(10):
            net(INPUTS)
        for branch in net.branches:
            for part in branch.modules():
                if isinstance(part, torch.nn.Linear):
                    part.weight.mul_(4)
    return net.eval()


def judged(net: MultiExitNet, policy: ExitPolicy, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and logits of every enabled exit, nobody leaving."""
    carry: dict[str, Any] = {}
    logits = net(inputs).logits
    rows = []
    for exit in [exit for exit, on in enumerate(policy.enabled) if on]:
        carry, values, score, _ = policy.step(carry, logits[exit], exit)
        rows.append((score, values))
    scores, answers = zip(*rows, strict=True)
    return torch.stack(scores), torch.stack(answers)


def with_gaps(net: MultiExitNet, enabled: tuple[bool, ...], answer: str) -> ExitPolicy:
    """Each threshold in the widest gap of the middle of its scores: rounding carries nobody across."""
    policy = ExitPolicy(thresholds=(NEVER,) * net.exits, enabled=enabled, answer=answer)
    scores, thresholds = iter(judged(net, policy, INPUTS)[0]), []
    for on in enabled:
        middle = next(scores).sort().values[POOL // 3 : -POOL // 4] if on else torch.tensor([NEVER, NEVER])
        widest = int(middle.diff().argmax())
        thresholds.append(float(middle[widest : widest + 2].mean()))
    return ExitPolicy(thresholds=tuple(thresholds), enabled=enabled, answer=answer)


def assert_same_answer(
    net: MultiExitNet, parts: list[Any], policy: ExitPolicy, size: int, tolerance: float = 1e-5
) -> None:
    inputs = INPUTS.repeat(-(-size // POOL), 1, 1, 1)[:size].to(memory_format=torch.channels_last)
    enabled = [exit for exit, on in enumerate(policy.enabled) if on]
    result = answer(parts, policy, inputs)
    scores, answers = judged(net, policy, inputs)
    levels = torch.tensor([policy.thresholds[exit] for exit in enabled[:-1]])[:, None]
    leaves = torch.cat([scores[:-1] >= levels, torch.ones(1, size, dtype=torch.bool)])
    taken = leaves.int().argmax(0)
    assert result.exit.tolist() == [enabled[place] for place in taken.tolist()]
    wanted = answers[taken, torch.arange(size)]
    torch.testing.assert_close(result.logits, wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))
    if size >= POOL:
        assert len(taken.unique()) > 1, "a policy that uses several exits tests more"


@pytest.mark.parametrize("answer", ["exit", "arithmetic"])
@pytest.mark.parametrize("skip", [None, 1])
@pytest.mark.parametrize("precision", SCOPES)
@pytest.mark.parametrize("kind", ["one map", "several maps"])
def test_eager_segments(kind: str, precision: str, skip: int | None, answer: str) -> None:
    net = network(kind)
    with torch.inference_mode(), SCOPES[precision]():
        policy = with_gaps(net, tuple(exit != skip for exit in range(net.exits)), answer)
        for size in (1, 2, 5, 64):
            assert_same_answer(net, list(segments(net, policy.enabled)), policy, size)


@pytest.mark.parametrize("kind", ["one map", "several maps"])
def test_a_batch_of_1024(kind: str) -> None:
    net = network(kind)
    with torch.inference_mode():
        policy = with_gaps(net, (True,) * net.exits, "exit")
        assert_same_answer(net, list(segments(net)), policy, 1024)


def compiled(kind: str, backend: str) -> None:
    """Called in a process of its own, where shapes are not checked at run time: that cannot be compiled."""
    resnet._BLOCKS["resnet18"] = (1, 1, 1, 1)  # every block is traced again for every kind of batch size
    net = network(kind)
    with torch.no_grad():
        policy = with_gaps(net, (True,) * net.exits, "exit")
        parts: list[Any] = [torch.compile(part, backend=backend, dynamic=True) for part in segments(net)]
        for size in (64, 9, 1):
            assert_same_answer(net, parts, policy, size)


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        ("two exits", "aot_eager"),  # every segment is traced once for one sample and once for more
        *(
            pytest.param(kind, "inductor", marks=[pytest.mark.full, pytest.mark.timeout(1800)])
            for kind in ("one map", "several maps")
        ),
    ],
)
def test_compiled_segments(kind: str, backend: str) -> None:
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('here', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "module.compiled(*sys.argv[2:])\n"
    )
    ran = forked.run_code(code, __file__, kind, backend)
    assert ran.returncode == 0, ran.stderr


def test_maps_keep_their_order_of_memory() -> None:
    """A state that turned to another layout would be converted by every convolution behind it."""
    seen: list[bool] = []

    def keep(segment: Any) -> Any:
        def run(state: Any, carry: Any) -> Any:
            seen.append(state.is_contiguous(memory_format=torch.channels_last))
            return segment(state, carry)

        return run

    net = network("one map")
    with torch.inference_mode():
        policy = with_gaps(net, (True,) * net.exits, "exit")
        inputs = INPUTS.to(memory_format=torch.channels_last)
        answer([keep(part) for part in segments(net)], policy, inputs)
    assert seen == [True] * net.exits
