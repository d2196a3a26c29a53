"""The report in a real browser: what it shows, what it says on the console, what it asks of the network."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hwnas.deploy.report import report
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: install the package 'chromium' of the system, as .ci/run does"
)

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    "--allow-file-access-from-files",
]

HOSTILE = "\"><script>console.log(1)</script><img src=http://127.0.0.1:9/x onerror='console.log(2)'>"

WIDTHS = (400, 1200)


@dataclass(frozen=True)
class Visit:
    """What a page became, said and asked for."""

    dom: str
    console: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Visit]:
    """Opens a page; further flags may ask for a screenshot."""

    def opened(page: Path, *flags: str) -> Visit:
        folder = tmp_path_factory.mktemp("browser")
        log = folder / "net.json"
        output = [f"--user-data-dir={folder}", f"--log-net-log={log}", "--enable-logging=stderr", "--dump-dom"]
        command = [str(CHROMIUM), *FLAGS, *output, *flags, page.as_uri()]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        console = re.findall(r"CONSOLE.*?\] (.*)", ended.stderr)
        return Visit(ended.stdout, console, requests(log))

    return opened


def requests(log: Path) -> list[str]:
    """Addresses outside this machine's files that a page asked for; those of the browser itself have no initiator."""
    started = (event.get("params", {}) for event in json.loads(log.read_text())["events"])
    return [
        each["url"]
        for each in started
        if each.get("url", "").startswith(("http", "ws")) and each.get("initiator", "not an origin") != "not an origin"
    ]


@pytest.fixture(scope="module")
def page(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with hostile names."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("page") / "run"))
    derivation = json.loads((run / "derivation.json").read_text())
    derivation["layers"][0]["name"] = derivation["rounds"][0]["id"] = HOSTILE
    (run / "derivation.json").write_text(json.dumps(derivation))
    verification = json.loads((run / "verification.json").read_text())
    verification["failures"] = [HOSTILE]
    (run / "verification.json").write_text(json.dumps(verification))
    return report(run)


def framed(page: Path, *widths: int, script: str = "") -> Path:
    """A page that shows another one in frames of these widths; a window cannot be as narrow as a telephone."""
    frames = (f'<iframe src="{page.name}" style="border:0;width:{w}px;height:3000px"></iframe>' for w in widths)
    path = page.with_name(f"framed{'-'.join(map(str, widths))}.html")
    path.write_text(f'<!DOCTYPE html><body style="margin:0">{"".join(frames)}<pre></pre><script>{script}</script>')
    return path


MEASURE = """onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    page.querySelectorAll("details").forEach(each => each.open = true);
    const low = [...page.querySelectorAll("svg")].filter(each => each.getBoundingClientRect().height < 50);
    return {scroll: root.scrollWidth, client: root.clientWidth, low: low.length};
  });
  document.querySelector("pre").textContent = JSON.stringify(found);
};"""


def test_the_page_shows_its_figures_and_asks_for_nothing(visit: Callable[..., Visit], page: Path) -> None:
    seen = visit(page)
    assert seen.console == []
    assert seen.requests == []
    for figure in ("Target met", "0.195\u00a0ms", "22\u00a0%", "Pareto front", "Chosen options over the search"):
        assert figure in html.unescape(seen.dom)
    assert seen.dom.count("<svg") == page.read_text().count("<svg") > 5
    assert "<script" not in seen.dom


def test_the_browser_would_tell(visit: Callable[..., Visit], tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://127.0.0.1:9/x"><script>console.error("complaint")</script>')
    seen = visit(bad)
    assert any("complaint" in line for line in seen.console)
    assert "http://127.0.0.1:9/x" in seen.requests


def test_the_policy_of_the_page_stops_what_gets_into_it(visit: Callable[..., Visit], page: Path) -> None:
    infected = page.with_name("infected.html")
    infected.write_text(page.read_text().replace("<header>", f'<header><b title="{HOSTILE}'))
    seen = visit(infected)
    assert seen.requests == []
    assert seen.console, "the browser says what it refused"
    assert all("Content Security Policy" in line for line in seen.console)


def test_nothing_sticks_out_on_a_telephone_or_a_screen(visit: Callable[..., Visit], page: Path) -> None:
    seen = visit(framed(page, *WIDTHS, script=MEASURE))
    found = re.search(r"<pre>(.*?)</pre>", seen.dom)
    assert found
    measured = json.loads(found[1])
    assert [each["client"] for each in measured] == list(WIDTHS)
    for each in measured:
        assert each["scroll"] <= each["client"], each
        assert each["low"] == 0, "a drawing has collapsed"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True])
def test_the_picture_is_drawn_in_light_and_dark(
    visit: Callable[..., Visit], page: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    path = tmp_path / "page.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    visit(framed(page, width), f"--screenshot={path}", f"--window-size={max(width, 600)},3000", *scheme)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))[:, :width]
    assert pixels.shape[1] == width
    background = np.median(pixels.reshape(-1, 3), axis=0)
    assert (background < 40).all() if dark else (background > 220).all()
    for part in np.array_split(pixels, 3):
        inked = (np.abs(part.astype(int) - background).max(2) > 30).mean()
        assert 0.01 < inked < 0.5, "neither blank nor one surface"
