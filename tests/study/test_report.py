"""The page: complete without a network, the same for the same runs, and harmless whatever names it shows."""

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offramp.branches import sketch
from offramp.early_exit.curves import anytime, budgeted
from offramp.early_exit.policy import ExitPolicy
from offramp.measure import cost
from offramp.measure.accuracy import summary
from offramp.measure.network_summary import describe
from offramp.models import resnet
from offramp.net import attach, plain
from offramp.outputs import Trace
from offramp.study.report import page
from offramp.study.run_report import RunReport

HOSTILE = ("<script>alert(1)</script>", 'a "quoted" & long_name_without_any_break_in_it', "naïve", "4")
PROVENANCE = {
    "command": "offramp report <x>",
    "date": "2026-01-01T00:00:00Z",
    "commit": None,
    "versions": {"python": "3"},
    "device": "cpu",
    "hardware": {"cpu": "one", "gpu": None, "threads": 1},
}
POLICY = ExitPolicy(thresholds=(0.5, 0.4, 1e8, 0.0), enabled=(True, False, True, True))
STEPS = [{"kind": "step", "step": step, "weights": [1.0 + step] * 10} for step in range(3)]
EPOCHS = [
    {"kind": "epoch", "epoch": epoch, "val_accuracy": [0.2, 0.3, 0.4, 0.5], "train": {"loss": 2.0, "ce": 2.0}}
    for epoch in range(2)
]


@pytest.fixture(scope="module")
def see() -> Callable[..., RunReport]:
    """A run of a network that was never trained: what is drawn is random, but complete."""
    net = attach(resnet.build("resnet18", classes=4, width=4), lambda trunk, exit: sketch.build(trunk, exit, 4))
    labels = torch.arange(60) % 4
    logits = torch.randn(4, 60, 4, generator=torch.Generator().manual_seed(0))
    logits[:, torch.arange(60), labels] += 1
    trace = Trace(logits, labels, torch.arange(100, 160), "test")
    pixels = np.random.RandomState(0).randint(0, 256, (60, 3, 8, 8)).astype(np.uint8)

    shape, seen = (3, 32, 32), (logits.numpy(), labels.numpy())
    prices = cost.macs_cumulative(net, shape)
    network, pieces = describe(net, shape), cost.measure(net, shape)
    curves = {
        "anytime": anytime(*seen, prices),
        "budgeted": budgeted(seen, seen, prices),
        "plain": {"accuracy": 0.5, "cost": cost.macs(net, shape)[-1]},
    }

    def built(**fields: Any) -> RunReport:
        return RunReport(
            **{
                "name": "first <i>run</i>",
                "folder": "runs/a",
                "weights": "last",
                "epoch": 2,
                "config": {
                    "method": "muse",
                    "net": "resnet18",
                    "branch": "sketch",
                    "data": "<data>",
                    "precision": "32",
                },
                "precision": "32",
                "training": {"seconds": 3.0, "provenance": PROVENANCE},
                "classes": HOSTILE,
                "trace": trace,
                "summary": summary(trace),
                "curves": curves,
                "network": network,
                "pieces": pieces,
                "ms": None,
                "batch_size": None,
                "policy": POLICY,
                "fitted": {"goal": {"macs": 0.7}, "weights": "last", "epoch": 2},
                "history": [*STEPS, *EPOCHS],
                "pictures": lambda ids: pixels[ids - 100],
                "images": 3,
                "made_from": {},
                **fields,
            }
        )

    return built


def test_the_same_images_in_other_classes_do_not_compare(see: Callable[..., RunReport]) -> None:
    said = "These runs are on different data"
    runs = [see(), see(name="second", classes=(*HOSTILE[:3], "other")), see(name="third")]
    assert said not in page([runs[0], runs[2]], PROVENANCE)
    assert f"{said} (&lt;data&gt; in 4 classes, &lt;data&gt; in 4 classes)" in page(runs, PROVENANCE)


def test_runs_of_several_seeds_are_put_together(see: Callable[..., RunReport]) -> None:
    one = see()
    worse = {**one.curves, "anytime": [{**point, "accuracy": 0.25} for point in one.curves["anytime"]]}
    runs = [see(name=f"s{seed}", folder=f"runs/{seed}", config={**one.config, "seed": seed}) for seed in (0, 1)]
    runs[1] = dataclasses.replace(runs[1], curves=worse)
    text = page(runs, PROVENANCE)
    read(text)
    first = one.curves["anytime"][0]["accuracy"]
    assert f"{50 * (first + 0.25):.2f} ± {100 * abs(first - 0.25) / 2**0.5:.2f}" in text
    assert "muse, 2 seeds" in text and "Over seeds" in text and "Over seeds" not in page(runs[:1], PROVENANCE)
    assert "Over seeds" not in page([see(), see(name="copy", folder="runs/b")], PROVENANCE), "the same seed twice"


class Reader(HTMLParser):
    """Collects elements and what they point at, and sees to it that they are closed in order."""

    VOID = ("meta", "img", "br", "wbr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element, line {self.getpos()}"


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    return reader


@pytest.fixture(scope="module")
def full(see: Callable[..., RunReport]) -> str:
    return page([see(), see(name="second", policy=None, fitted={}, history=[])], PROVENANCE)


def test_the_page_is_whole_and_points_at_nothing_outside_itself(full: str) -> None:
    reader = read(full)
    ids = {attrs["id"] for _, attrs in reader.seen if attrs.get("id")}
    for tag, attrs in reader.seen:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") or name in ("style", "srcset", "action") for name in attrs)
        for name in ("href", "src", "xlink:href"):
            target = attrs.get(name) or ""
            assert not target or target.startswith("data:image/png;base64,") or target.removeprefix("#") in ids
    assert "url(" not in full and "@import" not in full
    assert set(re.findall(r"https?://[^\"' ]*", full)) == {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_names_are_shown_as_they_are_and_never_run(full: str) -> None:
    assert "<script" not in full and "<i>" not in full and "&lt;script&gt;alert(1)&lt;/script&gt;" in full
    assert "offramp report &lt;x&gt;" in full and "&lt;data&gt;" in full


def test_every_section_is_there(full: str) -> None:
    sections = (
        "Accuracy against cost; Where images exit; What deeper exits change; Confidence against accuracy; "
        "exit 1, easiest; exit 1, hardest; "
        "macs_<wbr>cumulative; msdnet_ops; eed_flops; Accuracy on val; weights: exit 1 learns from; Configuration; "
        "provenance of the policy; confidence ≥ 0.5000; never; always"
    )
    for words in sections.split("; "):
        assert words in full, words
    one, two = full.split('<section id="run-')[1:]
    assert "no policy yet" in two and "no policy yet" not in one and "Without a policy: among all test images" in two
    assert "exit 2, easiest" in two and "exit 2, easiest" not in one  # switched off
    shown = [run.split("Easiest and hardest images")[1].count("<img") for run in (one, two)]
    assert shown == [2 * 3 * 2, 4 * 3 * 2]  # nobody leaves at exit 3
    assert "images that no other exit gets right" in one


def test_the_same_runs_give_the_same_page(full: str, see: Callable[..., RunReport]) -> None:
    later = {**PROVENANCE, "date": "2027-01-01T00:00:00Z"}
    again = page([see(), see(name="second", policy=None, fitted={}, history=[])], later)
    differing = [pair for pair in zip(full.splitlines(), again.splitlines(), strict=True) if len(set(pair)) > 1]
    assert [old for old, _ in differing] == ['<p class="soft" id="date">2026-01-01T00:00:00Z</p>']


def test_a_run_trained_on_everything_without_images(see: Callable[..., RunReport]) -> None:
    run = see(policy=None, fitted={}, training=None, pictures=None, images=0)
    text = page([RunReport(**{**vars(run), "curves": {**run.curves, "budgeted": []}})], PROVENANCE)
    read(text)
    assert "trained with <code>holdout 0</code>" in text and "Training is not finished" in text
    assert "<img" not in text and "Where images exit" not in text


def test_milliseconds_where_they_were_measured(see: Callable[..., RunReport]) -> None:
    ms = cost.Pieces((0.5, 0.25, 0.25, 0.25), (0.125, 0.1, 0.1, 0.0), (False,) * 4)
    text = page([see(ms=ms, batch_size=8)], PROVENANCE)
    assert "at batch 8 on one in 32" in text and "<td>0.5000</td><td>0.1250</td><td>0.6250</td>" in text


def test_a_policy_of_other_weights_says_so(see: Callable[..., RunReport]) -> None:
    assert "fitted on the best weights of epoch 1" in page([see(fitted={"weights": "best", "epoch": 1})], PROVENANCE)


def test_a_network_with_one_exit_and_many_classes(see: Callable[..., RunReport]) -> None:
    net = plain(resnet.build("resnet18", classes=30, width=4))
    logits, labels = torch.randn(1, 90, 30), torch.arange(90) % 30
    trace, shape = Trace(logits, labels, torch.arange(100, 190), "test"), (3, 32, 32)
    prices = cost.macs_cumulative(net, shape)
    run = see(
        trace=trace,
        summary=summary(trace),
        network=describe(net, shape),
        pieces=cost.measure(net, shape),
        classes=[str(number) for number in range(30)],
        policy=ExitPolicy(thresholds=(0.0,), enabled=(True,)),
        curves={
            "anytime": anytime(logits.numpy(), labels.numpy(), prices),
            "budgeted": [],
            "plain": {"accuracy": 0.1, "cost": prices[-1]},
        },
        history=[],
        pictures=None,
    )
    text = page([run], PROVENANCE)
    read(text)
    assert "The 5 of 30 classes that exit earliest" in text and 'class="gap"' in text


WRAP = """<!doctype html><body><iframe id="a" src="report.html" style="width:360px;height:900px"></iframe>
<iframe id="b" src="report.html" style="width:1600px;height:900px"></iframe><script>
onload = () => { document.title = ["a", "b"].map((id) => {
  const page = document.getElementById(id).contentDocument;
  const broken = [...page.images].filter((image) => !image.naturalWidth).length;
  return [page.documentElement.scrollWidth, broken, page.querySelectorAll("svg").length > 9].join(" ");
}).join("; ") }
</script></body>"""


def test_a_browser_shows_it_narrow_and_wide(full: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    (tmp_path / "report.html").write_text(full, encoding="utf-8")
    (tmp_path / "wrap.html").write_text(WRAP, encoding="utf-8")
    words = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--hide-scrollbars --allow-file-access-from-files --virtual-time-budget=10000 "
        "--enable-logging=stderr --dump-dom"
    )
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    try:
        ran = subprocess.run(
            [browser, *words.split(), profile, f"file://{tmp_path}/wrap.html"],
            capture_output=True,
            text=True,
            timeout=200,
            check=True,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("chromium did not answer: the machine is too busy")
    assert "CONSOLE" not in ran.stderr, ran.stderr  # errors, and whatever the page's own policy refuses to load
    title = re.search(r"<title>(.*?)</title>", ran.stdout)
    assert title and title[1] == "360 0 true; 1600 0 true"  # nothing wider than the window, no image broken
