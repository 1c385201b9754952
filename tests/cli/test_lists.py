"""offramp nets | branches | methods | data: what there is, and the parameters of one by name."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp import branches, data, methods, models
from offramp.hyperparameters import arguments

Offramp = Callable[..., Any]
OFFERS = {
    "nets": models.available(),
    "branches": branches.available(),
    "methods": methods.available(),
    "data": dict(data.available()),
}


@pytest.mark.parametrize("verb", OFFERS)
def test_every_offer_has_its_line(offramp: Offramp, verb: str) -> None:
    ran = offramp(verb)
    assert ran.status == 0, ran.err
    lines = " ".join(ran.out.split())
    assert all(len(line) < 81 for line in ran.out.splitlines())
    listed = offramp(verb, "--json").json
    for name, about in OFFERS[verb].items():
        assert about and f" {name} " in f" {lines} " and " ".join(about.split()) in lines
        assert (listed[name]["line"] if verb == "methods" else listed[name]) == about
    assert set(OFFERS[verb]) <= set(listed)


@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb, offers in OFFERS.items() for name in offers])
def test_every_offer_tells_its_parameters(offramp: Offramp, verb: str, name: str) -> None:
    ran = offramp(verb, name, "--json")
    assert ran.status == 0, ran.err
    assert ran.json["name"] == name and ran.json["about"] == OFFERS[verb][name]
    assert all(set(spec) == {"type", "default", "about"} for spec in ran.json["parameters"].values())
    shown = offramp(verb, name)
    assert shown.status == 0 and shown.out.startswith(name)
    assert all(len(line) < 81 for line in shown.out.splitlines())
    kind = {"nets": "net", "branches": "branch", "methods": "method", "data": "data"}[verb]
    words = " ".join(shown.out.split())
    for key, spec in ran.json["parameters"].items():
        assert f"--{kind}.{key} " in words and f"({spec['type']}) {' '.join(spec['about'].split())}" in words
        assert spec["about"] or kind != "method"


@pytest.mark.parametrize("name", methods.available())
def test_every_method_says_family_fit_and_measured_cost(offramp: Offramp, name: str) -> None:
    said = methods.about()[name]
    assert said.family != "other" and said.fits != "not said", f"{name} needs `Family: WORDS. Fits: WORDS.`"
    costs = "not measured."  # a new method, until the benchmark has run
    if said.time is not None:
        assert said.memory is not None and 0.1 < said.time < 20 and 0.1 < said.memory < 20
        costs = f"time {said.time:.2f} x joint's, memory {said.memory:.2f} x joint's."
    shown = " ".join(offramp("methods", name).out.split())
    assert f"Family: {said.family}. A training step: {costs} Fits {said.fits}." in shown


@pytest.mark.parametrize("name", methods.available())
def test_values_for_other_data_are_ones_that_train_takes(offramp: Offramp, name: str) -> None:
    build = methods.find(name).build
    sets = offramp("methods", name, "--json").json["data_sets"]
    for data_set, values in sets.items():
        assert values, data_set
        build(**arguments("method", name, build, values))
        written = " ".join(f"--method.{key} {value}" for key, value in values.items())
        assert f"{data_set}: {written}" in " ".join(offramp("methods", name).out.split())


def test_what_is_listed_is_what_train_takes(offramp: Offramp) -> None:
    listed = offramp("methods", "muse", "--json").json["parameters"]
    assert listed["alpha"]["type"] == "float" and listed["alpha"]["default"] == 0.5
    assert listed["schedule"]["type"] == "cosine | constant | off"
    assert offramp("methods", "muse", "--json").json["data_sets"]["ImageNet"] == {"alpha": ".1", "temperature": "20"}
    assert set(offramp("nets", "resnet18", "--json").json["parameters"]) >= {"width", "form"}
    assert "classes" not in offramp("nets", "resnet18", "--json").json["parameters"]
    assert "channels" not in offramp("nets", "resnet18", "--json").json["parameters"]


@pytest.mark.parametrize(
    ("verb", "name", "says"),
    [
        ("nets", "resnet81", "unknown net 'resnet81'; the nearest is 'resnet18' (see `offramp nets`)"),
        ("branches", "skech", "unknown branch 'skech'; the nearest is 'sketch' (see `offramp branches`)"),
        ("methods", "muze", "unknown method 'muze'; the nearest is 'muse' (see `offramp methods`)"),
        ("data", "digitz", "unknown data 'digitz'; the nearest is 'digits' (see `offramp data`)"),
    ],
)
def test_unknown_names(offramp: Offramp, verb: str, name: str, says: str) -> None:
    ran = offramp(verb, name)
    assert (ran.status, ran.err, ran.out) == (2, f"offramp: {says}\n", "")


def test_listing_imports_no_torch() -> None:
    program = (
        "import sys\nfrom offramp.cli import main\n"
        "for verb in ('nets', 'branches', 'methods', 'data'):\n"
        "    try: main([verb])\n"
        "    except SystemExit as left: assert not left.code\n"
        "assert 'torch' not in sys.modules and 'pyarrow' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_the_document_shows_the_costs_that_the_list_shows() -> None:
    text = (Path(__file__).parents[2] / "docs/methods.md").read_text(encoding="utf-8")
    inside = text.split("<!-- costs: ")[1].split("<!-- costs end -->")[0]
    rows = {
        cells[1].strip().strip("`"): tuple(cell.strip() for cell in cells[2:5])
        for cells in (line.split("|") for line in inside.splitlines() if line.startswith("| `"))
    }
    listed = {
        name: (said.family, f"{said.time:.2f}", f"{said.memory:.2f}")
        for name, said in methods.about().items()
        if said.time is not None and said.memory is not None
    }
    assert rows == listed


@pytest.mark.parametrize("verb", ["nets", "branches", "data"])
def test_a_narrow_terminal_is_enough(offramp: Offramp, verb: str) -> None:
    lines = offramp(verb).out.splitlines()
    names = {*OFFERS[verb], *models.EXTERNAL}
    assert all(len(line) <= 80 for line in lines)
    assert all(line.startswith(" ") or line.split()[0] in names for line in lines)


def test_networks_of_a_family_stand_together(offramp: Offramp) -> None:
    lines = offramp("nets").out.splitlines()
    assert "resnet18 resnet34 resnet50 resnet101 resnet152" in lines
    assert sum("ResNet 18/34/50/101/152" in line for line in lines) == 1


def test_details_are_told_in_what_is_typed(offramp: Offramp) -> None:
    for verb, offers in OFFERS.items():
        for name in offers:
            out = offramp(verb, name).out
            for word in (
                "collections.abc",
                "pathlib",
                "None)",
                "`SETTINGS`",
                "`NORMALISE`",
                "`AUGMENTATIONS`",
                "Raises",
            ):
                assert word not in out, (name, word)
            assert "request: " not in out and "exit: number" not in out
    assert "--branch.widths –   (int, comma-separated)" in offramp("branches", "beed").out
    assert "hdkd-cifar-4" in offramp("nets", "msdnet").out
