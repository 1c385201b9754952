"""Checks of training methods: documented parameters, finite float32 terms, labels, progress, learning."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from offramp.branches import linear, sketch
from offramp.methods._method import Method
from offramp.outputs import Batch, ExitOutputs
from offramp.protocols import Objective, PreparedObjective
from offramp.testing.data import small_backbone
from offramp.testing.expect import expect
from offramp.train.step_trainer import StepTrainer

SAMPLES, CLASSES, WIDTH = 6, 3, 4
BuildMethod = Callable[..., Method]


def check_method(build: BuildMethod, **parameters: Any) -> None:
    """Run all checks on a method; takes seconds.

    Args:
        build: the method's `build`; parameters: what it is called with.
    Raises:
        AssertionError: naming the check that failed, and why.
    """
    for check in METHOD_CHECKS:
        check(build, parameters)


def parameters_are_documented(build: BuildMethod, parameters: dict[str, Any]) -> None:
    """Every parameter is keyword-only, annotated, and explained in the docstring's `Args`."""
    text = inspect.getdoc(build) or ""
    for spec in inspect.signature(build).parameters.values():
        expect(spec.kind is spec.KEYWORD_ONLY, f"parameter {spec.name} of build must be keyword-only")
        expect(spec.annotation is not spec.empty, f"parameter {spec.name} of build must have a type")
        expect(f"\n    {spec.name}: " in text, f"the docstring of build must explain {spec.name} in Args")


def terms_are_finite_with_a_gradient(build: BuildMethod, parameters: dict[str, Any]) -> None:
    """For 2, 4 and 7 exits all terms are finite scalars, and the final exit gets a gradient."""
    for exits in (2, 4, 7):
        exit_outputs = outputs(exits)
        terms = prepared_objective(build, parameters, exits)(exit_outputs, batch(), 0.3)
        expect(bool(terms), "an objective must return at least one term")
        for name, term in terms.items():
            expect(term.shape == () and bool(term.isfinite()), f"term {name} must be a finite scalar, got {term}")
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        gradient = exit_outputs.logits.grad
        expect(gradient is not None and bool(gradient.isfinite().all()), "gradients of logits must be finite")
        expect(gradient is not None and bool(gradient[-1].any()), "the final exit must get a gradient")


def one_exit_works_or_is_refused(build: BuildMethod, parameters: dict[str, Any]) -> None:
    """One exit trains, or both `prepare_for_exits` and the objective refuse it in one sentence."""
    objective = _objective(build, parameters)
    attempts: list[Callable[[], Any]] = []
    if isinstance(objective, PreparedObjective):
        attempts.append(lambda: objective.prepare_for_exits(exits=1, widths=(WIDTH,)))
    attempts.append(lambda: objective(outputs(1), batch(), 0.0))
    refusals = []
    for attempt in attempts:
        try:
            attempt()
        except ValueError as error:
            refusals.append(str(error))
    expect(len(refusals) in (0, len(attempts)), f"one exit must be refused always or never, got {refusals}")
    expect(all(text and "\n" not in text for text in refusals), f"a refusal must be one sentence, got {refusals}")


def soft_labels_of_one_class_are_that_class(build: BuildMethod, parameters: dict[str, Any]) -> None:
    """One-hot labels (B, C) give the terms of class indices (B,)."""
    hard = prepared_objective(build, parameters, 4)(outputs(4), batch(), 0.3)
    soft = prepared_objective(build, parameters, 4)(outputs(4), batch(soft=True), 0.3)
    torch.testing.assert_close(soft, hard)


def progress_changes_only_scheduled_terms(build: BuildMethod, parameters: dict[str, Any]) -> None:
    """Exactly the terms that the method lists as `scheduled` change with progress."""
    early, late = (prepared_objective(build, parameters, 4)(outputs(4), batch(), progress) for progress in (0.0, 0.9))
    changed = {name for name in early if not torch.equal(early[name], late[name])}
    scheduled = set(build(**parameters).scheduled)
    expect(changed == scheduled, f"terms {sorted(changed)} change over a run, but scheduled is {sorted(scheduled)}")


def half_precision_gives_float32_terms(build: BuildMethod, parameters: dict[str, Any]) -> None:
    """Terms of bfloat16 outputs are float32 and equal those of the same values in float32."""
    half = outputs(4, torch.bfloat16)
    full = ExitOutputs(half.logits.float(), *(tuple(t.float() for t in group) for group in half[1:]))
    objective = prepared_objective(build, parameters, 4)
    learned = isinstance(objective, nn.Module) and any(len(p.shape) > 1 for p in objective.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = objective(half, batch(), 0.3)
    for name, exact in prepared_objective(build, parameters, 4)(full, batch(), 0.3).items():
        expect(rounded[name].dtype == torch.float32, f"term {name} must be float32, got {rounded[name].dtype}")
        # a learned layer itself runs in bfloat16
        torch.testing.assert_close(rounded[name], exact, rtol=2e-2 if learned else 1e-6, atol=1e-7, msg=name)


def steps_lower_the_loss(build: BuildMethod, parameters: dict[str, Any]) -> None:
    """On a small network, the steps of the method's last phase lower what it minimises; all weights stay finite."""
    torch.manual_seed(0)
    method = build(**parameters)
    exits = sketch if method.scheduled else linear
    net = method.network(lambda: small_backbone(CLASSES), lambda trunk, exit: _exit(exits, trunk, exit))
    images, labels = torch.randn(12, 3, 16, 16), torch.arange(12) % CLASSES
    try:
        trainer = _trainer(method, net, [(images.flip(0), labels.flip(0))])
    except ValueError:  # features of unequal width
        net = method.network(lambda: small_backbone(CLASSES), lambda trunk, exit: _exit(sketch, trunk, exit))
        trainer = _trainer(method, net, [(images.flip(0), labels.flip(0))])
    losses: list[float] = []
    for epoch in range(len(trainer.spans)):
        trainer.start_epoch(epoch)
        losses = [_total(trainer.step(images, labels).values()) for _ in range(8)]
    expect(min(losses[1:]) < losses[0], f"eight steps must lower the loss, got {losses}")
    expect(all(bool(p.isfinite().all()) for p in net.parameters()), "weights must stay finite")


METHOD_CHECKS: tuple[Callable[[BuildMethod, dict[str, Any]], None], ...] = (
    parameters_are_documented,
    terms_are_finite_with_a_gradient,
    one_exit_works_or_is_refused,
    soft_labels_of_one_class_are_that_class,
    progress_changes_only_scheduled_terms,
    half_precision_gives_float32_terms,
    steps_lower_the_loss,
)


def _exit(structure: Any, trunk: Any, exit: int) -> nn.Module | None:
    branch: nn.Module | None = structure.build(trunk, exit, CLASSES)
    return branch


def _trainer(method: Method, net: nn.Module, held_out: list[tuple[Tensor, Tensor]]) -> StepTrainer:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.005)
    shape, epochs = (3, 16, 16), len(method.phases)
    return StepTrainer(method, net, optimizer, input_shape=shape, epochs=epochs, held_out=held_out)


def outputs(exits: int, dtype: torch.dtype = torch.float32) -> ExitOutputs:
    """Random outputs of a network, leaves that take gradients; every exit has its own."""
    generator = torch.Generator().manual_seed(exits)
    logits = torch.randn(exits, SAMPLES, CLASSES, generator=generator).to(dtype).requires_grad_()
    maps = [torch.randn(SAMPLES, WIDTH, 2, 2, generator=generator).to(dtype).requires_grad_() for _ in range(exits)]
    return ExitOutputs(logits, tuple(features.mean((2, 3)) for features in maps), tuple(maps))


def batch(soft: bool = False) -> Batch:
    """Labels for `outputs`, as class indices or one-hot."""
    labels = torch.arange(SAMPLES) % CLASSES
    return Batch(torch.zeros(SAMPLES, 1), one_hot(labels, CLASSES).float() if soft else labels, torch.arange(SAMPLES))


def prepared_objective(build: BuildMethod, parameters: dict[str, Any], exits: int) -> Objective:
    """The method's objective, prepared for that many exits of equal width."""
    objective = _objective(build, parameters)
    if isinstance(objective, PreparedObjective):
        notes = objective.prepare_for_exits(exits=exits, widths=(WIDTH,) * exits)
        expect(notes == (), f"exits of equal width need no note, got {notes}")
    return objective


def _objective(build: BuildMethod, parameters: dict[str, Any]) -> Objective:
    torch.manual_seed(0)
    return build(**parameters).objective


def _total(terms: Iterable[Tensor]) -> float:
    return sum(term.item() for term in terms)
