"""Methods that train in phases: each phase trains its own part, and a run cut anywhere ends the same to the bit."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from offramp.data.splits import ArraySource, DataSet, Split
from offramp.methods import available, find
from offramp.methods._method import Method, Phase
from offramp.methods._taps import equilibrium
from offramp.net import Backbone, Branch, Head, MultiExitNet
from offramp.train import checkpoint, log
from offramp.train.device import make_fabric
from offramp.train.loop import Loop
from offramp.train.recipe import Recipe
from offramp.train.reporter import Interrupted

CLASSES, SHAPE, WIDTHS = 4, (1, 6, 6), (6, 8, 8)


class Silent:
    def start(self, epochs: int, steps: int, epoch: int, step: int) -> None: ...

    def stepped(self, epoch: int, step: int, terms: dict[str, float]) -> None: ...

    def epoch_done(self, record: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...


def data(train: int = 32) -> DataSet:
    rng = np.random.default_rng(0)
    labels = np.arange(train + 13, dtype=np.int64) % CLASSES
    pixels = rng.integers(0, 200, (train + 13, *SHAPE), dtype=np.uint8)
    pixels[:, 0, 2, 2] = 80 * labels
    source = ArraySource("toy", tuple("abcd"), labels, pixels)
    parts = {"train": np.arange(train, dtype=np.int64), "val": np.arange(train, train + 13, dtype=np.int64)}
    splits = {name: Split(source, indices, name) for name, indices in parts.items()}
    return DataSet("toy", splits, source.classes, SHAPE, (0.5,), (0.25,), "none")


def network(method: Method) -> MultiExitNet:
    torch.manual_seed(3)
    stages = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise((1, *WIDTHS))
    ]
    backbone = Backbone(tuple(nn.Sequential(stage) for stage in stages), Head(WIDTHS[-1], CLASSES), SHAPE)
    net = method.network(
        lambda: backbone, lambda trunk, exit: Branch(nn.BatchNorm2d(WIDTHS[exit]), Head(WIDTHS[exit], CLASSES))
    )
    assert isinstance(net, MultiExitNet)
    return net


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"epochs": 3, "batch_size": 16, "precision": "32", "device": "cpu", "lr": 0.05, **changes})


def loop(folder: Path, how: Recipe, method: Method, still: bool = False, dataset: DataSet | None = None) -> Loop:
    net = network(method)
    for part in net.modules() if still else ():
        if isinstance(part, nn.BatchNorm2d):
            part.__class__ = Still
    if hasattr(method.objective, "prepare_for_exits"):
        torch.manual_seed(4)
        method.objective.prepare_for_exits(exits=net.exits, widths=WIDTHS[-net.exits :])
    folder.mkdir(exist_ok=True, parents=True)
    fabric = make_fabric(how, freezes=method.freezes)
    return Loop(fabric, folder, how, net, method, dataset or data(), Silent())


class Still(nn.BatchNorm2d):
    """Batch norm whose statistics stay: those of half a batch are not those of the whole."""

    def train(self, mode: bool = True) -> "Still":
        return super().train(False)


PROCESSES = (
    ("ztw", {"fit": "val"}),
    ("imta", {"links": False}),
    ("ztw", {}),
    ("ztw", {"shares": (0.0, 1.0, 0.0)}),
    ("ztw", {"shares": (1.0, 0.0, 0.0)}),
)


def train_all(folder: Path, devices: int) -> None:
    how = recipe(devices=devices, ema=0.9)
    for number, (name, hyper) in enumerate(PROCESSES):
        loop(folder / f"{number}-{devices}", how, find(name).build(**hyper), still=True).run(resume=False)


# the part above runs as a program of its own, too
def trained_in(folder: Path, how: Recipe, method: Method) -> list[set[str]]:
    """What changed in every epoch, by name, in a run that keeps the weights of all its epochs."""
    running = loop(folder, how, method)
    seen = [{name: tensor.clone() for name, tensor in running.net.state_dict().items()}]
    finish = running._finish_epoch

    def finished() -> None:
        seen.append({name: tensor.clone() for name, tensor in running.net.state_dict().items()})
        finish()

    running._finish_epoch = finished  # type: ignore[method-assign]
    running.run(resume=False)
    return [{name for name in old if not torch.equal(old[name], new[name])} for old, new in pairwise(seen)]


def grouped(names: set[str]) -> set[str]:
    """The parts of the network that these weights and statistics belong to."""
    kinds = {"mixture": "ensembles", "link": "links", "on": "switches", "weight": "teacher", "bias": "teacher"}
    result = set()
    for name in names:
        words = [word for word in name.split(".") if word != "branch"]
        if words[0] == "stages":
            result.add("statistics" if "running" in name or "num_batches" in name else "stages")
        else:
            result.add(kinds.get(words[2], "final" if words[1] == "2" else "exits"))
    return result


def test_ztw_trains_the_backbone_then_the_exits_then_the_ensembles(tmp_path: Path) -> None:
    changed = trained_in(tmp_path, recipe(), find("ztw").build())
    first, second, third = map(grouped, changed)
    assert first == {"stages", "statistics", "final"}
    assert second == {"exits", "links"} and third == {"ensembles", "switches"}
    terms = [set(record["terms"]) for record in log.read(tmp_path / "metrics.jsonl", "step")]
    assert terms == [{"final"}] * 2 + [{"early"}] * 2 + [{"ce"}] * 2


def test_the_backbone_of_ztw_answers_as_before(tmp_path: Path) -> None:
    """To the bit, where the final exit is left out of the ensembles."""
    alone = recipe(epochs=1)
    loop(tmp_path / "a", alone, find("ztw").build(shares=(1.0, 0.0, 0.0), ensemble_final=False)).run(resume=False)
    loop(tmp_path / "b", recipe(), find("ztw").build(shares=(1.0, 1.0, 1.0), ensemble_final=False)).run(resume=False)
    records = [log.read(tmp_path / name / "metrics.jsonl", "epoch") for name in "ab"]
    assert {record["val_accuracy"][-1] for part in records for record in part} == {records[0][0]["val_accuracy"][-1]}
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in "ab")
    final = [name for name in one if name.startswith(("stages", "branches.2"))]
    assert len(final) > 10 and all(torch.equal(one[name], two[name]) for name in final)


@pytest.mark.parametrize("norms", ["still", "moving"])
def test_imta_trains_everything_then_the_classifiers(tmp_path: Path, norms: Any) -> None:
    first, *_, last = trained_in(tmp_path, recipe(epochs=4), find("imta").build(norms=norms))
    assert {"stages", "exits", "final", "statistics"} <= grouped(first)
    moving = {"statistics"} if norms == "moving" else set()
    assert grouped(last) == {"exits", "final", "links"} | moving
    assert not any("2.branch" in name and "classifier" not in name and "link" not in name for name in last)


@pytest.mark.parametrize("tune", ["all", "mixed"])
def test_links_begin_as_they_were_made(tmp_path: Path, tune: Any) -> None:
    """Neither weight decay nor momentum moves them before they are used."""
    changed = trained_in(tmp_path, recipe(epochs=6, tune=tune, weight_decay=0.1), find("imta").build())
    listening = ["links" in grouped(names) for names in changed]
    assert listening == [False] * (3 if tune == "all" else 4) + [True] * (3 if tune == "all" else 2)


def test_the_schedules_of_a_method_begin_with_its_phase(tmp_path: Path) -> None:
    seen: list[float] = []
    running = loop(tmp_path, recipe(epochs=4, tune="mixed"), find("joint").build())
    step = running.step

    def watched(batch: Any, progress: float) -> None:
        seen.append(progress)
        step(batch, progress)

    running.step = watched  # type: ignore[method-assign]
    running.run(resume=False)
    assert seen == [0.0, 0.0, 0.5, 0.5] * 2


@pytest.mark.parametrize("name", ["boostnet", "equilibrium"])
def test_a_backbone_first_is_the_plain_network(tmp_path: Path, name: str) -> None:
    """To the bit: whatever the exits before the final one would say, and however the method reshapes gradients."""
    how = recipe(epochs=2, tune="mixed", ema=0.5)
    watched = {subject: loop(tmp_path / subject, how, find(subject).build()) for subject in (name, "joint")}
    result = {}
    for subject, running in watched.items():
        stopping(running, 2)
        with pytest.raises(Interrupted):
            running.run(resume=False)
        result[subject] = [part.clone() for part in running.net.stages.parameters()]
    assert all(torch.equal(*pair) for pair in zip(*result.values(), strict=True))


def test_imta_s_teacher_is_the_final_exit_of_its_first_stage(tmp_path: Path) -> None:
    running = loop(tmp_path, recipe(epochs=4), find("imta").build())
    kept: list[Tensor] = []
    begin = running.spans[1].phase.begin
    assert begin is not None

    def watched(net: nn.Module) -> None:
        assert isinstance(net, MultiExitNet)
        kept.append(net.eval()(data_inputs()).logits.detach()[-1])
        begin(net)

    running.spans[1] = running.spans[1]._replace(phase=Phase(**{**vars(running.spans[1].phase), "begin": watched}))
    running.run(resume=False)
    outputs = running.net.eval()(data_inputs())
    torch.testing.assert_close(running.net.branches[-1].branch.teach(outputs.features[-1])[0], kept[0])
    assert not torch.allclose(outputs.logits[-1], kept[0])


def data_inputs() -> Tensor:
    return torch.from_numpy(data().splits["val"].source.pixels[:5]).float() / 64 - 2


def stopping(running: Loop, stop_at: int) -> None:
    """Ctrl-C during the run's `at`-th step."""
    step, calls = running.step, [0]

    def counted(*args: Any) -> None:
        calls[0] += 1
        if calls[0] == stop_at:
            running.stop.set()
        step(*args)

    running.step = counted  # type: ignore[method-assign]


CUT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("ztw", {"fit": "val"}, {}),
    ("ztw", {}, {"tune": "mixed", "epochs": 4}),
    ("imta", {"shares": (1.0, 2.0)}, {"optimizer": "adamw"}),
    ("eed", {"weights": "learned"}, {"tune": "mixed"}),
]


@pytest.mark.parametrize(
    ("name", "hyper", "how"),
    [CUT[0], CUT[3], *(pytest.param(*more, marks=pytest.mark.full) for more in CUT[1:3])],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_in_phases_that_is_cut_is_the_same_to_the_bit(
    tmp_path: Path, name: str, hyper: dict[str, Any], how: dict[str, Any]
) -> None:
    """Cut within every phase, and exactly between two."""
    chosen = recipe(**{"ema": 0.8, "mixup": 0.3, **how})
    loop(tmp_path / "whole", chosen, find(name).build(**hyper)).run(resume=False)
    for place in range(1, 2 * chosen.epochs):
        folder = tmp_path / str(place)
        cut = loop(folder, chosen, find(name).build(**hyper))
        stopping(cut, place)
        with pytest.raises(Interrupted):
            cut.run(resume=False)
        loop(folder, chosen, find(name).build(**hyper)).run(resume=True)
        one, other = (load_file(path / "last.safetensors") for path in (tmp_path / "whole", folder))
        assert all(torch.equal(one[key], other[key]) for key in one), place
        records = [
            [{key: value for key, value in record.items() if key != "seconds"} for record in log.read(path)]
            for path in (tmp_path / "whole/metrics.jsonl", folder / "metrics.jsonl")
        ]
        assert records[0] == records[1], place


def test_momentum_and_average_start_anew_with_every_phase(tmp_path: Path) -> None:
    """The second of two equal phases is the run that starts with the first one's weights."""
    joint = find("joint").build()
    whole = loop(tmp_path / "whole", recipe(epochs=2, ema=0.5), Method(joint.objective, phases=(Phase(), Phase())))
    whole.run(resume=False)
    first = loop(tmp_path / "first", recipe(epochs=1, ema=0.5), joint)
    first.run(resume=False)
    newest, _ = checkpoint.latest(tmp_path / "first/checkpoints")
    assert newest is not None
    second = loop(tmp_path / "second", recipe(epochs=1, ema=0.5), joint)
    second.net.load_state_dict(newest.weights)
    for batch in second.batches.train.epoch(1):
        second.context.net.train()
        second.step(batch, 0.0)
    result = load_file(tmp_path / "whole/last.safetensors")
    for name, tensor in second.average.module.state_dict().items():
        assert torch.equal(result[name], tensor), name


QUICK = ("muse", "hdkd", "ztw", "boostnet")
MIXED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.full)
    for name in available()
    if name not in ("vanilla", "dml", "one")
]


@pytest.mark.parametrize("method", MIXED)
def test_mixed_combines_with_every_method(tmp_path: Path, method: str) -> None:
    """The backbone first, then the method's own phases; a loss is the sum of its terms. Several networks refuse it."""
    built = find(method).build()
    loop(tmp_path, recipe(tune="mixed", epochs=2 * len(built.phases)), built).run(resume=False)
    steps = log.read(tmp_path / "metrics.jsonl", "step")
    assert set(steps[0]["terms"]) == {"final"} and set(steps[-1]["terms"]) != {"final"}
    assert all(record["loss"] == pytest.approx(sum(record["terms"].values())) for record in steps)


@pytest.mark.parametrize(("name", "hyper"), [("ztw", {}), ("ztw", {"ensemble_final": False}), ("joint", {})])
def test_only_the_exits_of_a_method_in_phases(tmp_path: Path, name: str, hyper: dict[str, Any]) -> None:
    changed = trained_in(tmp_path, recipe(tune="exits"), find(name).build(**hyper))
    assert not any({"stages", "statistics", "final"} & grouped(names) for names in changed)
    assert all(changed)


def test_a_tap_of_one_s_own_on_top(tmp_path: Path) -> None:
    """Gradient equilibrium on a frozen trunk changes nothing; no gradient is asked for where there is none."""
    one, two = find("ztw").build(shares=(0.0, 1.0, 1.0)), find("ztw").build(shares=(0.0, 1.0, 1.0))
    loop(tmp_path / "a", recipe(epochs=2), one).run(resume=False)
    loop(tmp_path / "b", recipe(epochs=2), Method(**{**vars(two), "tap": equilibrium})).run(resume=False)
    torch.testing.assert_close(*(load_file(tmp_path / name / "last.safetensors") for name in "ab"))


@pytest.mark.full
def test_two_processes_train_in_phases_as_one(tmp_path: Path) -> None:
    train_all(tmp_path, 1)
    source = Path(__file__).read_text(encoding="utf-8")
    script = tmp_path / "script.py"
    begins = source[: source.index("# the part above")].replace("import pytest\n", "")
    script.write_text(begins + "if __name__ == '__main__':\n    train_all(Path(sys.argv[1]), 2)\n")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=250, env=env
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    for number, (name, _) in enumerate(PROCESSES):
        one, two = (load_file(tmp_path / f"{number}-{devices}/last.safetensors") for devices in (1, 2))
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5, msg=name)
