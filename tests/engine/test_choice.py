"""Which engine is refused, before anything is trained or written."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from offramp.engine.choice import opened
from offramp.engine.ray import cannot_connect
from offramp.lookup import ParameterError


def refused(name: str, address: str | None = None) -> str:
    with pytest.raises(ParameterError) as caught, opened(name, address):
        pass
    return str(caught.value)


def test_names_and_addresses_that_do_not_fit() -> None:
    assert refused("slurm") == "engine must be local or ray, got slurm"
    assert refused("local", "a:1") == "address=a:1 is that of a Ray cluster: add engine=ray"
    with pytest.raises(ParameterError, match=r"^fetch is for the nodes of a Ray cluster: add engine=ray$"):
        opened("local", None, fetch=True).__enter__()
    pytest.importorskip("ray")
    for address in ("head", "head:", ":6379", "ray://head:10001"):
        assert f"HOST:PORT of the Ray cluster's head, got {address}" in refused("ray", address)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refused("ray") == "engine=ray needs the package ray: pip install 'offramp[ray]'"


def test_an_address_that_does_not_answer_is_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from offramp.cli import main

    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        address = f"127.0.0.1:{free.getsockname()[1]}"
        words = ["compare", "--data", "digits", "--methods", "joint", "--engine", "ray", "--address"]
        with pytest.raises(SystemExit) as left:
            main([*words, address, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert left.value.code == 2 and f"--address {address} does not answer" in said, said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_an_address_from_the_environment_is_called_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from offramp.cli import main

    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    words = ["compare", "--data", "digits", "--methods", "joint", "--engine", "ray", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(words)
    said = capsys.readouterr().err
    assert said == "offramp: RAY_ADDRESS must be HOST:PORT of the Ray cluster's head, got nonsense\n"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:0")
    assert refused("ray").startswith("RAY_ADDRESS=127.0.0.1:0 does not answer")


def test_an_address_where_something_else_answers_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("offramp.engine.ray_address.CONNECT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts connections and says nothing
        assert "does not answer (timed out)" in refused("ray", f"127.0.0.1:{mute.getsockname()[1]}")


def test_the_local_engine_takes_every_folder(tmp_path: Path) -> None:
    with opened("local", None) as engine:
        check: Callable[..., Any] = engine.check
        check(tmp_path, gpus=True)


@pytest.mark.parametrize(
    ("gpus", "at_once", "share"), [([4], 1, 1), ([4], 4, 1), ([1], 4, 0.25), ([2], 3, 0.5), ([0, 8, 2], 8, 0.25)]
)
def test_runs_share_gpus_if_a_node_has_fewer_than_it_runs_at_a_time(
    gpus: list[int], at_once: int, share: float
) -> None:
    pytest.importorskip("ray")
    from offramp.engine.ray import Cluster

    nodes = [{"Alive": True, "Resources": {"CPU": 8.0} | ({"GPU": float(count)} if count else {})} for count in gpus]
    assert Cluster(SimpleNamespace(nodes=lambda: nodes)).gpu_share(at_once) == share


def test_a_cluster_that_may_want_a_token_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray sends none to an address unless a variable says so; what it reports itself is that it cannot connect."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    error = ConnectionError("Failed to connect to Ray cluster at a:1")
    said = "address=a:1: Ray cannot connect: Failed to connect to Ray cluster at a:1"
    hint = "; if the cluster wants a token, as `ray start` says, set RAY_AUTH_MODE=token"
    assert str(cannot_connect("address", "a:1", error)) == said + hint
    assert "RAY_AUTH_MODE" not in str(cannot_connect("address", None, error))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert str(cannot_connect("address", "a:1", error)) == said
