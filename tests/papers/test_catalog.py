"""Cells, trainings, tables, figures and claims fit each other, and every training can be trained."""

from pathlib import Path

import pytest
import torch

from offramp.config import build_method, build_net, prepare_objective, resolve
from offramp.lookup import ParameterError
from offramp.papers import catalog
from offramp.papers.catalog import FULL, Training, config_of, protocol_from, trainings
from offramp.papers.claims import claims
from offramp.papers.selection import figures, select
from offramp.papers.tables import cells, chosen, tables

SHAPES = {"cifar100": ((3, 32, 32), 100), "folder:imagenet": ((3, 224, 224), 1000)}


def test_every_printed_cell_is_in_a_table_and_every_row_has_a_training() -> None:
    assert len(cells()) == 1146
    assert sum(len(row.cells) for table in tables().values() for row in table.rows) == 1146
    assert sum(len(table.rows) for table in tables().values()) == 346
    values = sorted(cell.value for table in tables().values() for row in table.rows for cell in row.cells)
    assert values == sorted(cell["value"] for cell in cells())


def test_the_tables_need_275_trainings_of_which_50_are_of_imagenet() -> None:
    listed = [one.name for one in catalog.expanded("trainings")]
    assert len(listed) == len(set(listed)) == 275
    assert sum(name.startswith(("imagenet", "in")) for name in listed) == 50
    needed = {row.training for table in tables().values() for row in table.rows if table.metric != "gflops"}
    assert needed == set(listed)


def test_further_trainings_are_those_of_figures_and_claims() -> None:
    listed = {one.name for one in catalog.expanded("further")}
    tabled = {one.name for one in catalog.expanded("trainings")}
    used = {name for figure in figures().values() for name in (*figure.full, *figure.reduced)}
    used |= {name for claim in claims().values() for name in claim.trainings}
    assert listed.isdisjoint(tabled)
    assert listed == used - tabled


def test_papers_that_print_the_same_number_share_the_training() -> None:
    by_name = {table.name: {row.label: row.training for row in table.rows} for table in tables().values()}
    assert by_name["eed-table-4"]["ResNet18 EED MSE beta=0 teacher=Main"] == "c100.resnet18.eed.eed-dbt-mse"
    assert by_name["muse-table-4"]["ResNet18 SML SBC"] == by_name["msd-table-2"]["ResNet18 MSD"]
    assert by_name["muse-table-2"]["ResNet18 vanilla"] == by_name["beed-table-2"]["ResNet18 baseline (no exits)"]
    assert (
        by_name["hdkd-table-3"]["MSDNet 5 exits alpha=0.5"]
        == by_name["hdkd-table-3"]["MSDNet 5 exits HDKD init DS-like"]
    )


def test_configurations_are_those_of_the_papers() -> None:
    muse = config_of(trainings()["c100.resnet152.sketch.muse"], FULL)
    assert (muse.epochs, muse.batch_size, muse.holdout, muse.width) == (200, 128, 0, None)
    assert (muse.method_options["beta_begin"], muse.method_options["beta_end"]) == (1e-5, 1e-6)
    hdkd = config_of(trainings()["c150.msdnet-cifar-8.own.hdkd"], FULL)
    assert (hdkd.epochs, hdkd.per_class, hdkd.holdout, hdkd.milestones) == (300, 150, 0.1, (0.5, 0.75))
    assert config_of(trainings()["c100.msdnet-1.own.muse"], FULL).batch_size == 64
    assert config_of(trainings()["c100.wrn22-10.plain.dml"], FULL).nesterov
    fixed = config_of(trainings()["in300.msdnet-imagenet-23.own.hdkd-fixed-2"], FULL)
    assert str(fixed.method_options["fixed"]) == "in300.msdnet-imagenet-23.own.hdkd-seed-1"


def test_a_reduced_protocol_takes_the_place_of_the_recipe_and_narrows_networks() -> None:
    quick = catalog.quick()
    resnet = config_of(trainings()["c100.resnet18.byot.muse"], quick)
    assert (resnet.epochs, resnet.holdout, resnet.width, resnet.branch) == (5, 0.1, 16, "byot")
    assert config_of(trainings()["c100.wrn16-4.beed.beed"], quick).width == 4
    assert config_of(trainings()["c100.pyramidnet.eed.joint"], quick).net_options["alpha"] == 64
    msdnet = config_of(trainings()["c150.msdnet-cifar-5.own.hdkd"], quick)
    assert (msdnet.width, msdnet.per_class, msdnet.epochs) == (None, 150, 5)
    assert not catalog.runnable(trainings()["imagenet.resnet18.sketch.muse"], quick)


SMALL = ("resnet18", "msdnet-cifar-5", "wrn16-4")


def distinct() -> list[Training]:
    """Few trainings with every network, every method and every structure of exits in one; small ones if possible."""
    first_small = sorted(trainings().values(), key=lambda one: one.network not in SMALL)
    points = {one: {("network", one.network), ("exits", one.exits), ("method", one.method)} for one in first_small}
    missing, chosen = set().union(*points.values()), list[Training]()
    while missing:
        chosen.append(max(first_small, key=lambda one: len(points[one] & missing)))
        missing -= points[chosen[-1]]
    return chosen


def assert_builds(one: Training, protocol: catalog.Protocol) -> None:
    config = resolve(config_of(one, protocol))
    shape, classes = SHAPES[config.data]
    fixed = config.method_options.get("fixed")
    method = build_method(config)
    with torch.device("meta"):
        net = build_net(config, method, classes=classes, shape=shape)
    if fixed is None:  # otherwise it needs the run that gives the weights
        prepare_objective(method, net, shape)
    printed = {
        len(row.cells)
        for table in tables().values()
        for row in table.rows
        if row.training == one.name and table.name not in ("eed-table-4", "beed-table-1", "muse-table-8")
    }
    exits = getattr(net, "exits", None)
    if exits is not None and one.method not in ("vanilla", "dml") and not fixed:
        ensemble = one.exits == "beed"
        assert printed <= {exits + ensemble}, one.name


@pytest.mark.parametrize("one", distinct(), ids=lambda one: one.name)
def test_trainings_resolve_and_build(one: Training) -> None:
    assert_builds(one, FULL)


@pytest.mark.full
@pytest.mark.parametrize("one", list(trainings().values()), ids=lambda one: one.name)
def test_every_training_resolves_and_builds_in_both_protocols(one: Training) -> None:
    for protocol in (FULL, catalog.quick()):
        if catalog.runnable(one, protocol):
            assert_builds(one, protocol)


def test_an_unknown_name_and_row_get_the_nearest() -> None:
    with pytest.raises(
        ParameterError, match="unknown table, figure or claim 'muse-tabel-4'; the nearest is 'muse-table-4'"
    ):
        select("muse-tabel-4")
    with pytest.raises(ParameterError, match="rows 'resnet19' fits no row of muse-table-4: the nearest is 'ResNet18"):
        select("muse-table-4", ["resnet19"])
    with pytest.raises(ParameterError, match="rows selects rows of one table, but muse is not a table"):
        select("muse", ["resnet18"])
    with pytest.raises(ParameterError, match="protocol nowhere is neither a file nor a recipe"):
        catalog.protocol_from("nowhere")


def test_rows_are_chosen_by_words() -> None:
    table = tables()["muse-table-4"]
    assert {row.network for row in chosen(table, ["resnet18"])} == {"ResNet18"}
    assert len(chosen(table, [])) == 8
    selection = select("muse-table-4", ["resnet18 sml"])
    assert [one.name for one in selection.trainings(FULL)] == ["c100.resnet18.byot.muse", "c100.resnet18.sketch.muse"]
    assert selection.claims == ()


def test_what_a_name_stands_for() -> None:
    assert [claim.table for claim in select("muse-table-5").claims] == ["muse-table-5"]
    assert {table.paper for table, _ in select("eed").tables} == {"eed"}
    assert len(select("all").trainings(FULL)) == len(trainings()) - len(set(reduced_only()))
    assert not select("claims").tables


def reduced_only() -> set[str]:
    needed = {one.name for one in select("all").trainings(FULL)}
    return set(trainings()) - needed


def test_the_device_is_that_of_the_protocol_unless_another_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "protocol.yaml"
    path.write_text("data: digits\nholdout: 0.3\ndevice: cpu\n")
    one, protocol = trainings()["c100.resnet18.sketch.joint"], protocol_from(path)
    assert config_of(one, protocol).device == "cpu"
    assert config_of(one, protocol, device="cuda").device == "cuda"
    assert config_of(one, FULL).device == "auto"
