"""The page at `/` in a browser: drop, file and camera; light, dark and narrow; no scripts from elsewhere."""

import base64
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest

import offramp
from offramp.serve.costs import CostCurve
from offramp.serve.page import PAGE, POLICY
from offramp.serve.server import Server

sys.path.insert(0, str(Path(__file__).parent))
from browser import Page, chromium

LINES_OF_EXITED = """(() => {
    const text = document.querySelector("tr.here td").firstChild, word = document.createRange();
    word.setStart(text, text.data.indexOf("("));
    word.setEnd(text, text.data.length);
    return word.getClientRects().length;
})()"""
SHOTS = os.environ.get("OFFRAMP_SCREENSHOTS")


@pytest.fixture(scope="module")
def server(folder: Path, costs: tuple[CostCurve, ...]) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offramp.serve.predictor.measure", lambda bundle, most: costs)
        with Server(folder, port=0, log="none") as running:
            yield running


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as opened:
        yield opened


def look(page: Page, name: str) -> None:
    """Keep a screenshot, for people who ask for it by OFFRAMP_SCREENSHOTS=FOLDER."""
    if SHOTS:
        page.picture(Path(SHOTS) / f"{name}.png")


def drop(page: Page, content: bytes, name: str) -> None:
    """Drop a file on the page, as a person would."""
    page.run(
        f"""(() => {{
            const bytes = Uint8Array.from(atob("{base64.b64encode(content).decode()}"), c => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "{name}", {{type: "image/png"}}));
            document.getElementById("drop").dispatchEvent(new DragEvent("drop", {{dataTransfer: data, bubbles: true}}));
        }})()"""
    )


@pytest.mark.parametrize(("width", "dark"), [(1100, False), (1100, True), (800, False), (360, False), (360, True)])
def test_an_image_is_dropped(page: Page, server: Server, images: list[bytes], width: int, dark: bool) -> None:
    page.open(server.url, width, dark)
    page.until("document.getElementById('model').value")
    drop(page, images[0], "a.png")
    answer = page.until("document.querySelector('#exits tbody tr') && document.getElementById('answer').textContent")
    row = next(iter(_asked(server, images[0])))
    assert answer == row["label"]
    detail = page.run("document.getElementById('detail').textContent")
    where = "the final exit" if row["final"] else f"exit {row['exit']}"
    assert f"exited at {where}, " in detail and "of the network's operations" in detail and " ms" in detail
    said = page.run("[...document.querySelectorAll('#exits tbody tr')].map(row => row.cells[1].textContent)")
    assert said == [each["label"] for each in row["exits"]]
    assert page.run("document.querySelectorAll('tr.here').length") == 1
    page.until("[...document.querySelectorAll('#shares tr')].some(row => row.cells[3].textContent !== '0')")
    look(page, f"page-{width}-{'dark' if dark else 'light'}")
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("[...document.querySelectorAll('section')].every(each => each.scrollWidth <= each.clientWidth)")
    assert page.run(LINES_OF_EXITED) == 1
    background = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(","))) < 3 * 128) == dark
    assert page.complaints == []


def test_what_is_no_image(page: Page, server: Server) -> None:
    page.open(server.url)
    drop(page, b"nothing", "b.png")
    page.until("document.getElementById('detail').textContent.includes('image')")
    assert page.run("document.getElementById('answer').textContent") == "–"
    assert page.run("document.getElementById('exits').hidden") is True
    page.until("document.getElementById('shown').hidden")  # no broken picture


def test_a_late_answer_is_not_shown_beside_another_image(page: Page, server: Server, images: list[bytes]) -> None:
    first, second = images[0], next(each for each in images if _label(server, each) != _label(server, images[0]))
    page.open(server.url)
    page.until("document.getElementById('model').value")
    page.run(
        """(() => {
            const real = window.fetch, held = new Promise(done => window.release = done);
            let asked = 0;
            window.answered = 0;
            window.fetch = async (path, options) => {
                if (!path.startsWith("predict")) return real(path, options);
                if (!asked++) await held;
                const answer = await real(path, options);
                window.answered++;
                return answer;
            };
        })()"""
    )
    drop(page, first, "a.png")
    assert page.run("document.getElementById('detail').textContent") == "Waiting for the prediction."
    drop(page, second, "b.png")
    page.until("window.answered === 1 && !!document.querySelector('#exits tbody tr')")
    page.run("window.release()")
    page.until("window.answered === 2")
    page.run("new Promise(done => setTimeout(done, 200))")
    assert page.run("document.getElementById('answer').textContent") == _label(server, second)


def test_the_latest_version_is_chosen_and_stays(page: Page, folder: Path, tmp_path: Path) -> None:
    for number in ("1", "2"):
        copytree(folder, tmp_path / "many" / number)
    with offramp.Server(tmp_path / "many", port=0, log="none") as server:
        page.open(server.url)
        assert page.until("document.getElementById('model').value") == "many\n2"
        page.run("window.kept = document.getElementById('model').options[0]; window.kept.selected = true")
        page.run("refresh()")
        assert page.run("window.kept.isConnected && window.kept.selected") is True  # an open list does not close


def test_the_camera(page: Page, server: Server) -> None:
    page.open(server.url)
    page.run("document.getElementById('camera').click()")
    page.until("document.getElementById('video').videoWidth > 0")
    page.run("document.getElementById('take').click()")
    page.until("document.getElementById('answer').textContent !== '–'")
    look(page, "camera")
    assert page.run("document.getElementById('video').hidden") is True and page.complaints == []


def test_a_token_is_asked_for(page: Page, folder: Path, images: list[bytes], server: Server) -> None:
    with offramp.Server(folder, port=0, log="none", token="secret") as guarded:
        page.open(guarded.url)
        page.until("!document.getElementById('keyed').hidden")
        page.run("document.getElementById('token').value = 'secret'; document.getElementById('use').click()")
        page.until("document.getElementById('model').value")
        drop(page, images[0], "a.png")
        page.until("!!document.querySelector('#exits tbody tr')")
        assert len(page.complaints) == 1 and "401 (Unauthorized)" in page.complaints[0]


def test_nothing_comes_from_elsewhere() -> None:
    assert "http://" not in PAGE and "https://" not in PAGE and " src=" not in PAGE
    assert "default-src 'none'" in POLICY and "script-src 'sha256-" in POLICY and "unsafe" not in POLICY


def _label(server: Server, image: bytes) -> str:
    return str(_asked(server, image)[0]["label"])


def _asked(server: Server, image: bytes) -> list[dict]:  # type: ignore[type-arg]
    import httpx

    answer = httpx.post(f"{server.url}/predict?all_exits=true", files={"images": ("a.png", image)}, trust_env=False)
    rows: list[dict] = answer.json()["predictions"]  # type: ignore[type-arg]
    return rows
