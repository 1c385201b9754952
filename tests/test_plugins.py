"""Code from outside: installed plugins by entry points, and modules of the user's as `python:MODULE`."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import offramp
from offramp import branches, data, methods, models, plugins, trust
from offramp.cli import main
from offramp.config import build_method, build_net, resolve
from offramp.hyperparameters import arguments
from offramp.lookup import ParameterError
from offramp.runs.run_data import with_data_dir
from offramp.study.ledger import label

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "examples" / "plugin"
NET = "--net stack8 --width 4 --branch pointwise --method neighbour --data stripes --data.noise 60"
TRAIN = f"train {NET} --method.weight 0.5 --epochs 1 --batch-size 100 --lr 0.01 --precision 32 --device cpu"
KINDS = {
    "methods": ("neighbour", "Neighbour distillation: every exit learns"),
    "branches": ("pointwise", "One 1x1 convolution to the network's own width"),
    "nets": ("stack12", "Stacks of plain 3x3 convolutions in four stages"),
    "data": ("stripes", "600 generated images of horizontal or vertical stripes"),
}

Install = Callable[..., Path]


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Modules and packages that a test loads are forgotten; what is trusted is trusted in this test alone."""
    monkeypatch.setenv("OFFRAMP_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(plugins, "_loaded", {})
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("offramp_example", "mine", "sibling", "bad"):
            del sys.modules[name]


@pytest.fixture
def install(clean: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Install a package as pip does: its metadata lie in a folder of `sys.path`, beside its modules."""

    def installed(name: str, entries: str, version: str = "1.0", **sources: str) -> Path:
        folder = tmp_path / f"site-{name}"
        metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(entries)
        for module, source in sources.items():
            (folder / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(folder)
        return folder

    return installed


@pytest.fixture
def example(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin of `examples/plugin`, installed."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    groups = project["entry-points"].items()
    entries = "".join(f"[{group}]\n{name} = {value}\n" for group, pairs in groups for name, value in pairs.items())
    install(project["name"], entries, project["version"])
    monkeypatch.syspath_prepend(PLUGIN)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """The program: exit status and what it printed."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    printed = capsys.readouterr()
    return int(left.value.code or 0), printed.out, printed.err


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("verb", KINDS)
def test_a_plugin_is_listed_without_importing_it(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, line = KINDS[verb]
    status, out, err = run(capsys, verb)
    assert status == 0 and not err and name in out
    assert f"{line}" in " ".join(out.split()) and "(package offramp-example 0.1.0)" in " ".join(out.split())
    listed = json.loads(run(capsys, verb, "--json")[1])[name]
    assert (listed["line"] if verb == "methods" else listed).startswith(line)
    assert "offramp_example" not in sys.modules


@pytest.mark.usefixtures("example")
def test_a_method_of_a_plugin_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    said = methods.about()["neighbour"]
    assert (said.family, said.fits, said.time) == ("mutual", "any network with 2 exits or more", None)
    status, out, _ = run(capsys, "methods", "neighbour")
    assert status == 0 and "Package: offramp-example 0.1.0." in out and "mutual. A training step: not measured." in out
    assert "--method.weight 1.0   (float)\n    weight of the distillation term." in out
    known = json.loads(run(capsys, "methods", "neighbour", "--json")[1])
    assert known["package"] == "offramp-example 0.1.0" and known["parameters"]["temperature"]["default"] == 3.0
    for verb, (name, _) in KINDS.items():
        assert json.loads(run(capsys, verb, name, "--json")[1])["package"] == "offramp-example 0.1.0"
    assert "the nearest is 'weight'" in run(capsys, *f"{TRAIN} --method.wieght 1 --out no".split())[2]


@pytest.mark.usefixtures("example")
def test_a_plugin_trains_resumes_and_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    status, out, err = run(capsys, *TRAIN.split(), "--out", folder, "--json")
    assert status == 0, err
    assert json.loads(out)["provenance"]["versions"]["offramp-example"] == "0.1.0"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["method"] == "neighbour" and config["method.weight"] == 0.5 and config["data.noise"] == "60"
    assert not trust.code_names(config) and not list((tmp_path / "state").rglob("*.json"))
    status, _, err = run(capsys, "train", "--out", folder, "--resume")
    assert status == 0 and "is finished" in err
    status, out, err = run(capsys, "evaluate", folder, "--json")
    assert status == 0, err
    evaluated = json.loads(out)
    assert evaluated["provenance"]["versions"]["offramp-example"] == "0.1.0" and len(evaluated["accuracy"]) == 4
    assert label(evaluated["config"]) == "neighbour(weight=0.5)"


EXAMPLE_TESTS = PLUGIN / "tests" / "test_plugin.py"


def _example_tests() -> Any:
    spec = importlib.util.spec_from_file_location("example_tests", EXAMPLE_TESTS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("name", re.findall(r"^def (test_\w+)", EXAMPLE_TESTS.read_text(), re.MULTILINE))
def test_the_tests_of_the_plugin_pass(name: str) -> None:
    assert getattr(_example_tests(), name)() is None, "a test returns nothing, and fails by an exception"


GOOD = '"""A good method."""\nfrom offramp.methods.joint import build\n'
JOINT = "[offramp.methods]\n{name} = {value}\n"


def test_a_built_in_keeps_its_name(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("other", JOINT.format(name="joint", value="bad"), bad="raise RuntimeError")
    assert methods.find("joint").__name__ == "offramp.methods.joint"  # type: ignore[union-attr]
    status, out, err = run(capsys, "methods")
    assert status == 0 and "package other" not in out
    assert err == (
        "offramp: method 'joint' of the package other 1.0 cannot be used: a method of offramp has this name\n"
    )


def test_a_name_in_two_packages_is_refused(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("first", JOINT.format(name="mine", value="mine"), mine=GOOD)
    install("second", JOINT.format(name="mine", value="mine"), version="2.0", mine=GOOD)
    sentence = "method 'mine' is in several installed packages (second 2.0 and first 1.0): uninstall all but one of"
    with pytest.raises(ParameterError) as refused:
        methods.find("mine")
    assert str(refused.value).startswith(sentence)
    _, out, err = run(capsys, "methods")
    assert "mine" not in out.split() and err.count("\n") == 1 and sentence in err


def test_an_installation_that_hides_another_is_no_double(install: Install) -> None:
    install("same-name", JOINT.format(name="mine", value="mine"), mine=GOOD)
    install("same.name", JOINT.format(name="mine", value="mine"), version="2.0", mine=GOOD)
    assert methods.about()["mine"].package == "same.name 2.0"


@pytest.mark.parametrize("here", ["", "."])
def test_the_working_directory_installs_nothing(install: Install, monkeypatch: pytest.MonkeyPatch, here: str) -> None:
    """A folder that was downloaded may hold the metadata of a package."""
    folder = install("downloaded", JOINT.format(name="mine", value="mine"), mine=GOOD)
    assert "mine" in methods.available()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [here, *sys.path])
    assert "mine" not in methods.available()
    with pytest.raises(ParameterError, match="unknown method 'mine'"):
        methods.find("mine")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_thing", "cannot be imported: No module named 'no_such_thing'"),
        ("raise RuntimeError('no GPU here')", "cannot be imported: RuntimeError: no GPU here"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("def biuld(): pass", "bad has no function 'build'; the nearest is 'biuld'"),
    ],
)
def test_a_plugin_that_fails_is_named(
    source: str, reason: str, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("broken", JOINT.format(name="bad", value="bad"), bad=source)
    status, out, err = run(capsys, "methods", "bad")
    assert status == 2 and not out
    assert err.startswith("offramp: method 'bad' of the package broken 1.0") and reason in err and err.count("\n") == 1
    assert label({"method": "bad", "method.a": 1}) == "bad(a=1)"  # a ledger that lists it can be read
    assert run(capsys, "methods", "joint")[0] == run(capsys, "methods")[0] == 0


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ("[offramp.methods]\nbad\n", "the entry points of the package broken 1.0 cannot be read"),
        ("[offramp.methods]\na:b = bad\n", "method 'a:b' of the package broken 1.0 cannot be used: a name has letters"),
        ("[offramp.methods]\nbad = a-b\n", "'a-b' is not package.module or package.module:function"),
        ("[offramp.methods]\nbad = none.of_this\n", "there is no module 'none' among what is installed"),
        ("[offramp.methods]\nbad = bad\n", "bad.py cannot be read: '(' was never closed"),
    ],
)
def test_a_broken_entry_is_said_and_hides_nothing(
    entries: str, reason: str, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("broken", entries, bad="print(")
    install("good", JOINT.format(name="mine", value="mine"), mine=GOOD)
    status, out, err = run(capsys, "methods")
    assert status == 0 and "A good method. (package good 1.0)" in out
    assert reason in err and err.startswith("offramp: ") and err.count("\n") == 1
    assert methods.find("mine").build().objective is methods.find("joint").build().objective


def test_networks_without_names_are_said(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("broken", "[offramp.models]\nbad = bad\n", bad="x = 1")
    status, _, err = run(capsys, "nets")
    assert status == 0 and "net 'bad' of the package broken 1.0 cannot be used: bad has no NETS" in err


def test_a_network_that_is_none_is_refused(install: Install) -> None:
    install("broken", "[offramp.models]\nbad = bad\n", bad="NETS = ('badnet',)\ndef build(name, **options): return 3")
    config = resolve(offramp.Config(net="badnet", branch="linear", method="joint", device="cpu"))
    with pytest.raises(ValueError, match=r"^badnet: build must return an offramp\.Backbone, got int"):
        build_net(config, build_method(config), classes=3, shape=(3, 8, 8))


def test_help_does_not_look_for_plugins(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("broken", "[offramp.methods]\nbad\n")
    assert run(capsys, "--help")[0] == 0


MINE = '''"""A module of mine.

Family: mine. Fits: all.
"""
import sibling
from offramp.branches.linear import build as exits
from offramp.data.digits import build as digits
from offramp.methods.joint import build as joint

def build(*, scale=2, words: "NotThere" = ()):
    """Joint training.

    Args:
        scale: not used.
    """
    import sibling
    if scale == 3:
        raise ValueError("scale must not be 3")
    return joint() if scale == 2 else sibling.wrong(scale)

def fails():
    from offramp import Method
    def objective(outputs, batch, progress):
        return {"ce": outputs.logit.sum()}
    return Method(objective)

def nothing(*values):
    return "nothing"
'''
SIBLING = "def wrong(scale):\n    return {}[scale]\n"


@pytest.fixture
def mine(clean: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with a module `mine`."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "sibling.py").write_text(SIBLING)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_modules_from_the_working_directory(mine: Path) -> None:
    before = list(sys.path)
    assert methods.find("python:mine").build().objective is methods.find("joint").build().objective
    assert branches.find("python:mine:exits").build.__wrapped__ is branches.find("linear").build
    assert data.find("python:mine:digits").build.__wrapped__ is data.find("digits").build
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("python:", "python: must be python:package.module or python:package.module:function"),
        ("python:a:b:c", "python:a:b:c must be python:package.module or python:package.module:function"),
        ("python:mine:", "python:mine: must be python:package.module or python:package.module:function"),
        ("python:no_such_module", "python:no_such_module cannot be imported: No module named 'no_such_module'"),
        (
            "python:mine.py:digits",
            "python:mine.py cannot be imported: No module named 'mine.py'; 'mine' is not a package: name the module, "
            "without .py",
        ),
        ("python:sys:exiit", "python:sys:exiit: sys has no function 'exiit'; the nearest is 'exit'"),
        ("python:mine:nothin", "python:mine:nothin: mine has no function 'nothin'; the nearest is 'nothing'"),
    ],
)
def test_a_name_that_leads_nowhere(mine: Path, name: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    for find in (methods.find, branches.find, data.find):
        with pytest.raises(ParameterError) as refused:
            find(name)
        assert str(refused.value) == sentence
    assert run(capsys, "methods", name) == (2, "", f"offramp: {sentence}\n")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scale": 3}, "method.scale must not be 3"),
        ({"scale": 1}, "python:mine failed: sibling.py, line 2: `return {}[scale]`: KeyError: 1"),
        ({"scael": 1}, "unknown parameter of method python:mine 'scael'; the nearest is 'scale' (see"),
    ],
)
def test_what_a_method_of_the_users_says(mine: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        build_method(resolve(offramp.Config(method="python:mine", method_options=options)))
    assert str(refused.value).startswith(sentence)


def test_what_does_not_return_the_right_thing(mine: Path) -> None:
    config = offramp.Config(method="python:mine:nothing", device="cpu")
    with pytest.raises(ValueError, match=r"^python:mine:nothing: build must return an offramp\.Method, got str"):
        build_method(resolve(config))
    with pytest.raises(ValueError, match=r"^python:mine:nothing: build must return offramp\.data\.splits\.RawDataSet"):
        data.load("python:mine:nothing")
    config = resolve(offramp.Config(branch="python:mine:nothing", method="joint", device="cpu"))
    with pytest.raises(ValueError, match=r"^python:mine:nothing: build must return a module or None, got str"):
        build_net(config, build_method(config), classes=3, shape=(3, 8, 8))


def test_an_error_while_training_names_the_line_of_the_users(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "train --method python:mine:fails --net resnet18 --width 4 --branch linear --precision 32 --device cpu"
    status, _, err = run(capsys, *words.split(), "--out", "run")
    line = next(number for number, text in enumerate(MINE.splitlines(), 1) if "outputs.logit.sum" in text)
    said = "AttributeError: 'ExitOutputs' object has no attribute 'logit' (mine.py, line"
    assert status == 1 and f'{said} {line}: `return {{"ce": outputs.logit.sum()}}`; OFFRAMP_DEBUG=1' in err
    assert "please report" not in err


def test_a_module_is_documented(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "methods", "python:mine")
    assert status == 0, err
    assert out.startswith("python:mine  A module of mine.\n") and "--method.scale 2   (int)\n    not used." in out
    assert run(capsys, "data", "python:mine:digits")[0] == run(capsys, "branches", "python:mine:exits")[0] == 0
    assert "unknown net 'python:mine:exits'" in run(capsys, "nets", "python:mine:exits")[2]


def test_a_run_of_ones_own_code_is_opened_only_if_it_is_trusted(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"method": "python:mine", "branch": "python:mine:exits", "data": "python:mine:digits"}
    common = {"width": 4, "epochs": 1, "batch-size": 256, "precision": "32", "device": "cpu"}
    (mine / "config.yaml").write_text(yaml.safe_dump({**names, **common}))
    status, _, err = run(capsys, "train", "--config", "config.yaml", "--method.scale", "2", "--out", "run")
    assert status == 0, err
    assert set(trust.code_names(yaml.safe_load(Path("run/config.yaml").read_text()))) == set(names.values())
    assert run(capsys, "evaluate", "run")[0] == run(capsys, "train", "--out", "run", "--resume")[0] == 0
    for kind, name in names.items():
        shutil.rmtree("downloaded", ignore_errors=True)
        shutil.copytree("run", "downloaded")
        values = yaml.safe_load(Path("downloaded/config.yaml").read_text())
        others = {"method": "joint", "branch": "linear", "data": "digits"} | {"method.scale": None, "seed": 1}
        values = {key: value for key, value in {**values, **others, kind: name}.items() if value is not None}
        Path("downloaded/config.yaml").write_text(yaml.safe_dump(values))
        sys.modules.pop("mine", None)
        for words in (("evaluate", "downloaded"), ("train", "--out", "downloaded", "--resume")):
            status, _, err = run(capsys, *words)
            assert status and f"would run code that it names ('{name}')" in err, (words, err)
        assert "mine" not in sys.modules


def test_types_of_parameters_without_annotations() -> None:
    def build(*, whole=2, half=0.5, words=(), free=None, odd: "NotThere" = True):  # type: ignore[no-untyped-def] # noqa: F821
        """Nothing."""

    received = {"whole": "3", "half": "1e-3", "words": "a,b", "free": "[1]", "odd": "false"}
    result = {"whole": 3, "half": 0.001, "words": ("a", "b"), "free": [1], "odd": False}
    assert arguments("method", "mine", build, received) == result
    with pytest.raises(ParameterError, match=r"^method\.whole takes a whole number, got 'x'"):
        arguments("method", "mine", build, {"whole": "x"})


def test_the_data_folder_does_not_change_what_is_imported() -> None:
    config = with_data_dir(offramp.Config(data="python:mine:digits"), Path("elsewhere"))
    assert config.data == "python:mine:digits" and config.data_dir == Path("elsewhere")


def test_the_names_of_networks_are_those_of_this_package_without_plugins() -> None:
    assert {"resnet18", "msdnet"} <= set(models.built_in())


WALK = """
import json, sys
from offramp.cli import main
sys.path.append(sys.argv[2])
for words in json.loads(sys.argv[1]):
    print("$", *words, flush=True)
    try:
        main(words)
    except SystemExit as left:
        if left.code:
            raise
"""


@pytest.mark.full
def test_a_plugin_in_a_fresh_environment_from_methods_to_export(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    Path(site, "parent.pth").write_text("\n".join([str(ROOT), *(path for path in sys.path if "site-packages" in path)]))
    shutil.copytree(PLUGIN, tmp_path / "plugin")
    options = "--quiet --no-deps --no-build-isolation --no-index --no-cache-dir --disable-pip-version-check"
    installed = subprocess.run(
        [python, "-m", "pip", "install", *options.split(), tmp_path / "plugin"], capture_output=True, text=True
    )
    assert installed.returncode == 0, installed.stderr
    shutil.rmtree(tmp_path / "plugin")
    shared = "--epochs 1 --batch-size 100 --lr 0.01 --precision 32 --device cpu"
    compared = NET.replace("--method neighbour ", "")
    commands = [
        "methods",
        "methods neighbour",
        f"{TRAIN} --out run",
        "train --out run --resume",
        "evaluate run",
        "calibrate run --macs 0.9",
        f"compare {compared} {shared} --methods joint,neighbour(weight=0.5),python:own_method --out compared --jobs 1",
        "export run --out bundle",
    ]
    words = json.dumps([command.split() for command in commands])
    environment = {**os.environ, "OFFRAMP_STATE": str(tmp_path / "state"), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [python, "-c", WALK, words, ROOT / "examples"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr
    assert "(package offramp-example 0.1.0)" in ran.stdout
    lines = [json.loads(line) for line in (tmp_path / "compared/results.jsonl").read_text().splitlines()]
    assert [line["config"]["method"] for line in lines] == ["joint", "neighbour", "python:own_method"]
    assert all(line["provenance"]["versions"]["offramp-example"] == "0.1.0" for line in lines)
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert manifest["provenance"]["versions"]["offramp-example"] == "0.1.0"
