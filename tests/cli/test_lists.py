"""offramp nets | branches | methods | data: what there is, and the parameters of one by name."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from offramp import branches, data, methods, models

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
    for name, about in OFFERS[verb].items():
        assert about and f"{name} {' '.join(about.split())}" in lines
    assert offramp(verb, "--json").json == OFFERS[verb]


@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb, offers in OFFERS.items() for name in offers])
def test_every_offer_tells_its_parameters(offramp: Offramp, verb: str, name: str) -> None:
    ran = offramp(verb, name, "--json")
    assert ran.status == 0, ran.err
    assert ran.json["name"] == name and ran.json["about"] == OFFERS[verb][name]
    assert all(set(spec) == {"type", "default"} for spec in ran.json["parameters"].values())
    shown = offramp(verb, name)
    assert shown.status == 0 and shown.out.startswith(name)
    kind = {"nets": "net", "branches": "branch", "methods": "method", "data": "data"}[verb]
    assert all(f"--{kind}.{key}" in shown.out for key in ran.json["parameters"])


def test_what_is_listed_is_what_train_takes(offramp: Offramp) -> None:
    listed = offramp("methods", "muse", "--json").json["parameters"]
    assert listed["alpha"] == {"type": "float", "default": 0.5}
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
    assert (ran.status, ran.err, ran.out) == (1, f"offramp: {says}\n", "")


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
