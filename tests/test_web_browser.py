"""The page in a real browser without a screen: one that is installed, or playwright's own."""

from __future__ import annotations

import io
import shutil
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright
from safetensors.torch import load

from cmidiff.app.web import layout
from cmidiff.app.web.inputs import Limits, Photograph
from tests.web import LIMITS, Visitor, bomb, png, server

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
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with server(tmp_path_factory.mktemp("prior"), delay=0.02) as served:
        yield served


@pytest.fixture(scope="module")
def address(served: tuple[str, Path]) -> str:
    return served[0]


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page in a window of its own, which must ask no other host and meet no error."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    asked, failed = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    opened(page, address)
    yield page
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert failed == []
    context.close()


def opened(page: Page, address: str) -> Page:
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    expect(page.locator("#start")).to_be_visible(timeout=PATIENCE)
    return page


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
    expect(page.get_by_role("img", name="measurement")).to_be_visible()
    expect(page.locator("#versus").get_by_role("img", name="with CMI", exact=True)).to_be_visible()
    for tab, pictures in (
        ("Samples", 5),
        ("Uncertainty", 4),
    ):  # two of each run, and the truth; a mean and a map of each
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tabpanel").filter(visible=True).get_by_role("img")).to_have_count(pictures)
    page.get_by_role("tab", name="Curves").click()
    expect(page.locator("canvas.marks, svg.marks").filter(visible=True)).to_have_count(2)
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


def test_a_photograph_that_is_still_read_can_be_restored_once_it_is(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shown before the server has decoded it: the button waits, and does not say that there is none."""
    reading = threading.Event()
    slowly = layout.photograph

    def photograph(path: Path, limits: Limits) -> Photograph:
        reading.wait(PATIENCE / 1000)
        return slowly(path, limits)

    monkeypatch.setattr(layout, "photograph", photograph)
    give(page, png(40, 32))
    expect(page.locator("#photo img")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#start")).to_be_disabled()
    reading.set()
    expect(page.locator("#start")).to_be_enabled(timeout=PATIENCE)
    set_steps(page, 3)
    page.locator("#start").click()
    finished(page)


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


def only_line(page: Page, told: str) -> None:
    """The refusal beside the picture, in our words and no others."""
    expect(page.get_by_role("alert")).to_contain_text(told, timeout=PATIENCE)
    expect(page.get_by_role("alert")).to_have_count(1)
    expect(page.get_by_test_id("toast-body")).to_have_count(0)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"no picture at all", "no picture that can be read: give a PNG, JPEG"),
        (b"", "no picture that can be read"),
        (png(64, 64, grain=40)[:3000], "damaged: save it again"),
        (bomb(60_000, 60_000), "too many pixels: more than can be opened, and at most 0.4 million"),
        (bomb(800, 600), "too many pixels: 800 x 600, and at most 0.4 million can be taken. Shrink it"),
        (png(400, 300, grain=255) + b"\0" * LIMITS.file_bytes, "MB, and at most 1 MB can be taken. Shrink it"),
        (b"\0" * (5 * LIMITS.file_bytes), "photo.png is too large: 5.00 MB, and at most 1 MB can be taken"),
    ],
    ids=["no picture", "empty", "damaged", "bomb", "pixels", "large", "very large"],
)
def test_a_refusal_is_seen_beside_the_picture(page: Page, data: bytes, told: str) -> None:
    """And nothing can be restored until a good picture is given, which takes the line away."""
    give(page, data)
    only_line(page, told)
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("no photograph yet")
    give(page, png(40, 32))
    expect(page.locator("#photo img")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text(told)).to_have_count(0)


def test_a_large_file_is_told_however_it_comes(page: Page) -> None:
    """Dropped, or pasted; and it is never sent."""
    sent = []
    page.on("request", lambda request: sent.append(request.url) if "/upload?" in request.url else None)
    page.evaluate(
        """size => {
            const given = new DataTransfer();
            given.items.add(new File([new Uint8Array(size)], "dropped.png", { type: "image/png" }));
            const drop = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: given });
            document.querySelector("#photo button").dispatchEvent(drop);
        }""",
        2 * LIMITS.file_bytes,
    )
    only_line(page, "dropped.png is too large: 2.00 MB")
    page.locator("#sample").click()
    expect(page.get_by_role("alert")).to_have_count(0)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened(page, page.url)
    size = page.evaluate(
        """async () => {
            const canvas = Object.assign(document.createElement("canvas"), { width: 900, height: 700 });
            const drawing = canvas.getContext("2d"), grain = drawing.createImageData(900, 700);
            grain.data.forEach((_, k) => { grain.data[k] = k % 4 === 3 ? 255 : Math.random() * 256; });
            drawing.putImageData(grain, 0, 0);
            const png = await new Promise((done) => canvas.toBlob(done));
            await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
            return png.size;
        }"""
    )
    assert size > LIMITS.file_bytes
    page.locator("#photo .source-selection button").last.click()
    only_line(page, "This picture is too large: 1.8")
    assert sent == []


def test_a_path_in_a_name_is_only_a_name(page: Page, served: tuple[str, Path]) -> None:
    """The picture is taken under its name, and nothing lies where the name points."""
    before = set(served[1].parent.iterdir())
    give(page, png(40, 32), "../../../evil.png")
    expect(page.locator("#photo img")).to_be_visible(timeout=PATIENCE)
    set_steps(page, 3)
    page.locator("#start").click()
    finished(page)
    assert set(served[1].parent.iterdir()) == before
    assert all(path.is_relative_to(served[1] / "cache") for path in served[1].rglob("*evil*"))


def test_among_twenty_at_once_a_visitor_waits_and_is_served(page: Page, address: str) -> None:
    """Nineteen others press the button at the same moment; the picture that comes back is one's own."""
    others = [Visitor(address) for _ in range(19)]
    begun = threading.Barrier(20)

    def visit(visitor: Visitor) -> str:
        visitor.take(png(24, 24, (250, 250, 250)))
        begun.wait(60)
        return visitor.restore("grainy", noise=0.01)[0]

    give(page, png(40, 32, (200, 30, 40)))
    expect(page.locator("#photo img")).to_be_visible(timeout=PATIENCE)
    page.locator("#preset-small").click()
    set_steps(page, 3)
    with ThreadPoolExecutor(19) as pool:
        answers = pool.map(visit, others)
        begun.wait(60)
        page.locator("#start").click()
        expect(page.locator("#status")).to_contain_text("Waiting for its turn")
        finished(page)
        assert all("Finished" in line for line in answers)
    page.get_by_role("tab", name="Download").click()
    with page.expect_download() as download:
        page.locator("#download").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        y = load(archive.read("measurement.safetensors"))["y"]
    torch.testing.assert_close(y.mean((0, 2, 3)) * 255, torch.tensor([200.0, 30.0, 40.0]), rtol=0, atol=0.1)


def test_a_full_queue_and_the_time_limit_are_told(browser: Browser, tmp_path: Path) -> None:
    """One runs, until its time is over; one waits; the third is asked to come back."""

    def window() -> tuple[BrowserContext, Page]:
        context = browser.new_context()
        page = opened(context.new_page(), address)
        give(page, png(40, 32))
        expect(page.locator("#photo img")).to_be_visible(timeout=PATIENCE)
        expect(page.locator("#paint canvas")).to_have_count(0)
        return context, page

    with server(tmp_path, delay=0.3, limits=replace(LIMITS, jobs=1, waiting=1, seconds=6.0)) as (address, _):
        contexts, windows = zip(*[window() for _ in range(3)], strict=True)
        for page, told in zip(windows, ("step 1 of", "Waiting for its turn", "Too many visitors"), strict=True):
            page.locator("#start").click()
            expect(page.locator("#status")).to_contain_text(told, timeout=PATIENCE)
        expect(windows[2].get_by_role("alert")).to_contain_text("nothing was started. Try again in a minute")
        expect(windows[0].locator("#status")).to_contain_text("Stopped after 6 seconds: take fewer", timeout=PATIENCE)
        for context in contexts:
            context.close()


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


def test_the_comparison_is_moved_by_keyboard(page: Page) -> None:
    """Both pictures have their names; the arrows, Home and End say where they meet."""
    page.locator("#sample").click()
    expect(page.locator("#photo img")).to_be_visible(timeout=PATIENCE)
    set_steps(page, 3)
    page.locator("#start").click()
    finished(page)
    slider = page.get_by_role("slider", name="how much is measurement")
    cut = "input => getComputedStyle(input.parentElement.querySelectorAll('img')[1]).clipPath"
    page.get_by_role("tab", name="Compare").focus()
    for _ in range(8):
        page.keyboard.press("Tab")
        if slider.evaluate("input => input === document.activeElement"):
            break
    expect(slider).to_be_focused()
    assert slider.evaluate("input => getComputedStyle(input.parentElement).outlineStyle") == "solid"
    for keys, place in ((["ArrowRight"] * 3, 53), (["ArrowLeft"] * 5, 48), (["Home"], 0), (["End"], 100)):
        for key in keys:
            page.keyboard.press(key)
        assert slider.evaluate(cut) == f"inset(0px 0px 0px {place}%)"


def test_every_control_is_reached_and_has_a_name(page: Page) -> None:
    """All that can be clicked, moved or written in is met by Tab alone, or by arrows within its group."""
    page.get_by_role("button", name="Settings").click()
    expect(page.locator("#steps")).to_be_visible()
    page.evaluate(
        """() => document.querySelectorAll("button, input, select, textarea, [role=tab]").forEach((control, k) => {
            if (control.checkVisibility() && !control.disabled && control.tabIndex >= 0) control.dataset.control = k;
        })"""
    )
    described = """control => control.type === "radio" ? "radio:" + control.name : control.dataset.control"""
    wanted = set(page.locator("[data-control]").evaluate_all(f"all => all.map({described})"))
    page.evaluate("document.body.focus(), window.scrollTo(0, 0)")
    met = set()
    for _ in range(3 * len(wanted)):
        page.keyboard.press("Tab")
        met.add(page.evaluate(f"(({described})(document.activeElement))"))
    assert wanted - met == set()
    unnamed = page.locator("[data-control]").evaluate_all(
        """all => all.filter(control => !(control.ariaLabel || control.title || control.innerText?.trim()
            || control.labels?.length || control.type === "file")).map(control => control.outerHTML)"""
    )
    assert unnamed == []
