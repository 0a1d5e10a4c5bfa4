"""The page in a real browser without a screen: one that is installed, or playwright's own."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright
from safetensors.torch import load

from tests.web import LIMITS, png, server

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 30_000  # milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"no browser can be started: install chromium, or run playwright install chromium ({error})")
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(tmp_path_factory.mktemp("prior"), delay=0.02) as (address, _):
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page in a window of its own, which must ask no other host and meet no error."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    asked, failed = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(address)
    expect(page.locator("#start")).to_be_visible(timeout=PATIENCE)
    yield page
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert failed == []
    context.close()


def give(page: Page, data: bytes, name: str = "photo.png") -> None:
    page.locator("#photo input[type=file]").set_input_files({"name": name, "mimeType": "image/png", "buffer": data})


def set_steps(page: Page, steps: int) -> None:
    if not page.locator("#steps").is_visible():
        page.get_by_role("button", name="Settings").click()
    page.locator("#steps input[type=number]").fill(str(steps))
    page.locator("#steps input[type=number]").press("Tab")


def finished(page: Page) -> None:
    expect(page.locator("#status")).to_contain_text("Finished", timeout=PATIENCE)


def test_degrade_restore_compare_and_download(page: Page) -> None:
    """A photograph is uploaded, degraded and restored with and without CMI; the archive holds it all."""
    give(page, png(40, 32, (200, 100, 50), grain=20))
    expect(page.locator("#photo img")).to_be_visible(timeout=PATIENCE)
    set_steps(page, 5)
    page.locator("#cmi").get_by_label("compare both").check()
    page.locator("#start").click()
    finished(page)
    expect(page.locator("#slider img").first).to_be_visible()
    page.get_by_role("tab", name="Curves").click()
    expect(page.get_by_role("cell", name="with CMI: mean", exact=True)).to_be_visible()
    page.get_by_role("tab", name="Download").click()
    expect(page.locator("#command")).to_contain_text("cmidiff restore measurement.safetensors")
    with page.expect_download() as download:
        page.locator("#download").click()
    path = download.value.path()
    with zipfile.ZipFile(io.BytesIO(Path(path).read_bytes())) as archive:
        names = set(archive.namelist())
        mask = load(archive.read("measurement.safetensors"))["task.mask"]
    assert {"base/sample-01.png", "cmi/sample-01.png", "truth.png", "command.txt"} <= names
    assert float(mask.mean()) == pytest.approx(0.2, abs=0.01), "80% of the pixels are hidden"


def test_scratches_are_painted_over(page: Page) -> None:
    give(page, png(64, 48, (90, 140, 200), grain=5))
    expect(page.locator("#photo img")).to_be_visible(timeout=PATIENCE)
    page.locator("#preset-scratches").click()
    expect(page.locator("#paint canvas").first).to_be_visible(timeout=PATIENCE)
    set_steps(page, 5)
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("Nothing is painted yet")
    page.locator("#paint canvas").first.scroll_into_view_if_needed()
    box = page.locator("#paint canvas").first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=8)
    page.mouse.up()
    page.locator("#start").click()
    finished(page)
    page.get_by_role("tab", name="Download").click()
    with page.expect_download() as download:
        page.locator("#download").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        lost = 1 - load(archive.read("measurement.safetensors"))["task.mask"].squeeze()
    rows = torch.nonzero(lost.sum(1)).flatten()
    columns = torch.nonzero(lost.sum(0)).flatten()
    assert 0.01 < float(lost.mean()) < 0.5
    assert len(columns) > len(rows), "a horizontal stroke"
    assert float(columns.float().mean()) == pytest.approx(32, abs=6), "in the middle"


def test_a_run_is_cancelled(page: Page) -> None:
    give(page, png(40, 32))
    expect(page.locator("#photo img")).to_be_visible(timeout=PATIENCE)
    set_steps(page, LIMITS.steps)
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("step", timeout=PATIENCE)
    expect(page.locator("#status")).to_contain_text("left")
    expect(page.locator("#live img")).to_be_visible()
    page.locator("#cancel").click()
    expect(page.locator("#status")).to_contain_text("Cancelled")
    set_steps(page, 3)
    page.locator("#start").click()
    finished(page)


def test_who_waits_is_told_and_can_leave_the_queue(page: Page, address: str) -> None:
    """All that may run at once run; the next visitor waits, cancels, and finds nothing running."""
    others = [page.context.new_page() for _ in range(LIMITS.jobs)]
    for window in (*others, page):
        if window is not page:
            window.goto(address)
        give(window, png(40, 32))
        expect(window.locator("#photo img")).to_be_visible(timeout=PATIENCE)
        set_steps(window, LIMITS.steps)
        window.locator("#start").click()
        said = "Waiting for its turn" if window is page else "left"
        expect(window.locator("#status")).to_contain_text(said, timeout=PATIENCE)
    for window in (page, *others, page):
        window.locator("#cancel").click()
        expect(window.locator("#status")).to_contain_text("Cancelled", timeout=PATIENCE)
    expect(page.locator("#status")).to_contain_text("nothing is running")


def test_a_wrong_file_is_told_beside_the_picture(page: Page) -> None:
    give(page, b"no picture at all")
    expect(page.get_by_role("alert")).to_contain_text("no picture that can be read")
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("no photograph yet")
    give(page, png(40, 32))
    expect(page.locator("#note")).to_be_hidden()


def test_a_narrow_screen_is_not_overflown(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.locator("#sample").click()
    expect(page.locator("#photo img")).to_be_visible(timeout=PATIENCE)
    set_steps(page, 3)
    page.locator("#cmi").get_by_label("on", exact=True).check()
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) <= 360
    page.locator("#start").click()
    finished(page)
    assert page.evaluate(width) <= 360
    page.locator("#preset-scratches").click()
    expect(page.locator("#paint canvas").first).to_be_visible(timeout=PATIENCE)
    assert page.evaluate(width) <= 360


def test_the_keyboard_is_enough(page: Page) -> None:
    """From the top of the page by Tab alone to the sample picture, a preset and the run."""

    def reach(element: str) -> None:
        inside = f"document.querySelector('#{element}').contains(document.activeElement)"
        for _ in range(60):
            if page.evaluate(inside):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{element} is not reached by Tab")

    reach("sample")
    page.keyboard.press("Enter")
    expect(page.locator("#photo img")).to_be_visible(timeout=PATIENCE)
    reach("preset-small")
    page.keyboard.press("Space")
    expect(page.locator("#mode input").first).to_be_checked()
    expect(page.locator("#strength input[type=number]")).to_have_value("4")
    set_steps(page, 3)
    reach("start")
    page.keyboard.press("Enter")
    finished(page)
