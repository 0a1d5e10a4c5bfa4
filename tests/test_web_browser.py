"""The page in a real browser without a screen: one that is installed, or playwright's own."""

from __future__ import annotations

import io
import re
import shutil
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image, ImageChops, ImageStat
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Error,
    FileChooser,
    Page,
    Route,
    TimeoutError,
    expect,
    sync_playwright,
)
from safetensors.torch import load

from cmidiff.app.web import inputs
from cmidiff.app.web.controls import Limits
from cmidiff.images import Image as ReadImage
from tests.web import LIMITS, Visitor, bomb, png, server

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60_000  # milliseconds: no test measures a time
expect.set_options(timeout=PATIENCE)


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


NEAR = 50  # levels: what a few steps leave of a colour; the colours differ by more
RED, GREEN, BLUE = (200, 30, 40), (20, 190, 60), (30, 40, 210)


def give(page: Page, data: bytes, name: str = "photo.png", where: str = "photo") -> None:
    picker = page.locator(f"#{where} input[type=file]")
    picker.set_input_files({"name": name, "mimeType": "image/png", "buffer": data})


def taken(page: Page, data: bytes, width: int, height: int) -> None:
    """Give a photograph, and wait until its size is told."""
    give(page, data)
    expect(page.locator("#size")).to_contain_text(f"{width} x {height} pixels")
    expect(page.locator("#start")).to_be_enabled(timeout=PATIENCE)


def wish(page: Page, name: str) -> None:
    page.locator("#case").get_by_label(name, exact=True).check()
    expect(page.locator("#paint")).to_be_visible(visible=name == "Remove scratches")


def set_steps(page: Page, steps: int) -> None:
    if not page.locator("#steps").is_visible():
        page.get_by_role("button", name="Settings").click()
    box = page.locator("#steps").get_by_role("textbox")
    box.fill(str(steps))
    box.press("Tab")


def restored(page: Page) -> Image.Image:
    """Press the button, wait for the end, and return the image that is downloaded."""
    page.locator("#start").click()
    finished(page)
    return downloaded(page)


def finished(page: Page) -> None:
    expect(page.locator("#status")).to_contain_text("Finished")
    expect(page.locator("#download")).to_be_visible()


def downloaded(page: Page) -> Image.Image:
    with page.expect_download() as download:
        page.locator("#download").click()
    return Image.open(io.BytesIO(Path(download.value.path()).read_bytes())).convert("RGB")


def archive(page: Page) -> dict[str, bytes]:
    if not page.locator("#archive").is_visible():
        page.get_by_role("button", name="Details").click()
    with page.expect_download() as download:
        page.locator("#archive").click()
    with zipfile.ZipFile(download.value.path()) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def colour(image: Image.Image) -> tuple[float, ...]:
    return tuple(ImageStat.Stat(image).mean)


def stroke(page: Page, left: int, right: int) -> None:
    """Paint a horizontal stroke through the middle of the canvas, from one distance to another in pixels of it."""
    canvas = page.locator("#paint canvas").first
    expect(canvas).to_be_visible(timeout=PATIENCE)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x + left, y)
    page.mouse.down()
    page.mouse.move(x + right, y, steps=8)
    page.mouse.up()


# one photograph after the other


def test_two_photographs_in_one_visit(page: Page) -> None:
    """Each result is that of the photograph that is shown: given over the first, or after it was removed."""
    taken(page, png(40, 32, RED), 40, 32)
    wish(page, "Remove noise")
    set_steps(page, 3)
    assert colour(restored(page)) == pytest.approx(RED, abs=NEAR)
    taken(page, png(48, 32, GREEN), 48, 32)
    expect(page.locator("#status")).to_contain_text("The result appears here")
    expect(page.locator("#slider")).to_be_hidden()
    assert colour(restored(page)) == pytest.approx(GREEN, abs=NEAR)
    page.locator("#photo").get_by_role("button", name="Remove Image").click()
    expect(page.locator("#photo img")).to_have_count(0)
    expect(page.locator("#size")).to_be_empty()
    taken(page, png(56, 32, BLUE), 56, 32)
    assert colour(restored(page)) == pytest.approx(BLUE, abs=NEAR)
    expect(page.locator("#note")).to_be_hidden()


def test_a_second_photograph_before_the_first_run(page: Page) -> None:
    """And with another wish in between; the canvas shows the second one."""
    taken(page, png(40, 32, RED), 40, 32)
    wish(page, "Enlarge")
    taken(page, png(24, 32, GREEN), 24, 32)
    wish(page, "Remove scratches")
    stroke(page, -30, 30)
    set_steps(page, 3)
    image = restored(page)
    assert image.size == (24, 32)
    assert image.getpixel((0, 0)) == Image.open(io.BytesIO(png(24, 32, GREEN))).getpixel((0, 0))


def test_the_example_and_a_photograph(page: Page) -> None:
    taken(page, png(40, 32, RED), 40, 32)
    page.locator("#sample").click()
    expect(page.locator("#size")).to_contain_text("96 x 96")
    wish(page, "Remove noise")
    set_steps(page, 3)
    assert restored(page).size == (64, 64)
    taken(page, png(40, 32, BLUE), 40, 32)
    assert colour(restored(page)) == pytest.approx(BLUE, abs=NEAR)


def test_a_bad_photograph_between_two_good_ones(page: Page) -> None:
    taken(page, png(40, 32, RED), 40, 32)
    wish(page, "Remove noise")
    give(page, b"no image at all")
    only_line(page, "not an image that can be read")
    expect(page.locator("#photo img")).to_have_count(0)
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("no photograph yet")
    taken(page, png(48, 32, GREEN), 48, 32)
    expect(page.locator("#note")).to_be_hidden()
    set_steps(page, 3)
    assert colour(restored(page)) == pytest.approx(GREEN, abs=NEAR)


def test_a_new_photograph_ends_the_run_of_the_old_one(page: Page) -> None:
    taken(page, png(40, 32, RED), 40, 32)
    wish(page, "Remove noise")
    set_steps(page, LIMITS.steps)
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("left")
    taken(page, png(48, 32, GREEN), 48, 32)
    expect(page.locator("#status")).to_contain_text("The result appears here")
    set_steps(page, 3)
    assert colour(restored(page)) == pytest.approx(GREEN, abs=NEAR)


def test_a_photograph_that_is_still_read_can_be_restored_once_it_is(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shown before the server has decoded it: the button waits, and does not say that there is none."""
    reading = threading.Event()
    quickly = inputs.read_upload

    def slowly(path: Path, limits: Limits) -> ReadImage:
        reading.wait(PATIENCE / 1000)
        return quickly(path, limits)

    monkeypatch.setattr(inputs, "read_upload", slowly)
    give(page, png(40, 32))
    expect(page.locator("#photo img")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#start")).to_be_disabled()
    reading.set()
    expect(page.locator("#start")).to_be_enabled(timeout=PATIENCE)
    wish(page, "Remove noise")
    set_steps(page, 3)
    restored(page)


# repairs


def test_scratches_are_painted_over_and_nothing_else_changes(page: Page) -> None:
    photograph = png(64, 48, (90, 140, 200), grain=5)
    taken(page, photograph, 64, 48)
    expect(page.locator("#hint")).to_contain_text("begin each stroke inside the photograph")
    set_steps(page, 5)
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("Nothing is painted yet")
    expect(page.locator("#status")).to_contain_text("beginning each stroke inside the photograph")
    stroke(page, -40, 40)
    image = restored(page)
    lost = 1 - load(archive(page)["measurement.safetensors"])["task.mask"].squeeze()
    rows, columns = torch.nonzero(lost.sum(1)).flatten(), torch.nonzero(lost.sum(0)).flatten()
    assert 0.01 < float(lost.mean()) < 0.5
    assert len(columns) > len(rows), "a horizontal stroke"
    assert float(columns.float().mean()) == pytest.approx(32, abs=6), "in the middle"
    before = Image.open(io.BytesIO(photograph))
    assert image.size == before.size
    changed = ImageChops.difference(image, before).convert("L").point(lambda level: 255 if level else 0)
    left, top, right, bottom = changed.getbbox() or (0, 0, 0, 0)
    assert left >= columns.min() - 1, "unpainted pixels are those of the photograph"
    assert right <= columns.max() + 2
    assert top >= rows.min() - 1
    assert bottom <= rows.max() + 2


def press_for_a_file(page: Page) -> FileChooser:
    """Press Space on an upload button, again where the page was still being drawn."""
    for _ in range(PATIENCE // 5000):
        try:
            with page.expect_file_chooser(timeout=5000) as chooser:
                page.keyboard.press("Space")
            return chooser.value
        except TimeoutError:
            reach(page, "#mask button")
    raise AssertionError("no file chooser opens")


def test_a_mask_is_given_by_keyboard(page: Page) -> None:
    """From the top of the page by Tab alone to the example, a mask and the run."""
    reach(page, "#sample")
    page.keyboard.press("Enter")
    expect(page.locator("#size")).to_contain_text("96 x 96")
    page.get_by_role("button", name="Give a mask").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#mask button").first).to_be_visible()
    reach(page, "#mask button")
    chooser = press_for_a_file(page)
    mask = Image.new("L", (96, 96))
    mask.paste(255, (40, 40, 56, 44))
    data = io.BytesIO()
    mask.save(data, format="PNG")
    chooser.set_files({"name": "mask.png", "mimeType": "image/png", "buffer": data.getvalue()})
    expect(page.locator("#mask img")).to_be_visible(timeout=PATIENCE)
    set_steps(page, 3)
    reach(page, "#start")
    page.keyboard.press("Enter")
    finished(page)
    lost = 1 - load(archive(page)["measurement.safetensors"])["task.mask"]
    assert float(lost.sum()) == pytest.approx(64 * (64 / 96) ** 2, rel=0.8)


def reach(page: Page, selector: str) -> None:
    """Press Tab until the focus is on an element or inside of it."""
    inside = f"document.activeElement.closest('{selector}') !== null"
    for _ in range(60):
        if page.evaluate(inside):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} is not reached by Tab")


# a run


def test_the_page_opens_to_restore(page: Page) -> None:
    expect(page.locator("#case input").first).to_be_checked()
    expect(page.locator("#case")).to_contain_text("Remove scratches")
    expect(page.locator("#paint")).to_be_visible()
    expect(page.locator("#experiment")).to_be_hidden()
    expect(page.locator("#slider")).to_be_hidden()


def test_an_experiment_with_samples_and_cmi(page: Page) -> None:
    """A photograph is degraded and restored, samples with and without CMI follow; the archive holds it all."""
    give(page, png(40, 32, (200, 100, 50), grain=20))
    page.locator("#case").get_by_label("Experiment").check()
    expect(page.locator("#experiment")).to_be_visible()
    set_steps(page, 5)
    page.locator("#start").click()
    finished(page)
    assert {"result/restored.png", "truth.png", "command.txt"} <= set(archive(page))
    page.get_by_role("button", name="Uncertainty").click()
    page.locator("#cmi").get_by_label("compare both").check()
    expect(page.locator("#draw")).to_contain_text("each)")
    page.locator("#draw").click()
    expect(page.locator("#gallery img").first).to_be_visible(timeout=PATIENCE)
    finished(page)
    expect(page.locator("#gallery img")).to_have_count(2 * (4 + 2) + 1)  # samples, mean and map of each; the truth
    expect(page.get_by_role("cell", name="with CMI: mean", exact=True)).to_be_visible()
    expect(page.locator("#command")).to_contain_text("cmidiff restore measurement.safetensors")
    files = archive(page)
    assert {"samples/sample-03.png", "samples-cmi/sample-03.png", "truth.png", "command.txt"} <= set(files)
    mask = load(files["measurement.safetensors"])["task.mask"]
    assert float(mask.mean()) == pytest.approx(0.2, abs=0.01), "80% of the pixels are hidden"


def test_a_doubtful_result_is_marked_beside_the_image(page: Page) -> None:
    taken(page, png(40, 32, RED, grain=40), 40, 32)
    wish(page, "Sharpen")
    page.get_by_role("button", name="The blur is known").click()
    page.get_by_label("Width of the blur").last.fill("2")
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("textbox", name="Noise").fill("0.003")
    set_steps(page, 2)
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("doubtful")
    expect(page.locator("#doubt").get_by_role("alert")).to_contain_text("times the noise")


def test_a_reload_during_a_run_keeps_the_photograph_and_the_result(page: Page) -> None:
    taken(page, png(40, 32, RED), 40, 32)
    wish(page, "Remove noise")
    set_steps(page, 100)
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("left")
    opened(page, page.url)
    expect(page.locator("#photo img")).to_be_visible(timeout=PATIENCE)
    finished(page)
    assert colour(downloaded(page)) == pytest.approx(RED, abs=NEAR)
    opened(page, page.url)
    finished(page)
    taken(page, png(48, 32, GREEN), 48, 32)
    opened(page, page.url)
    expect(page.locator("#size")).to_contain_text("48 x 32")
    expect(page.locator("#status")).to_contain_text("The result appears here")


def test_what_is_given_before_the_first_answer_survives_a_reload(page: Page) -> None:
    """The first answer of the server comes late: the photograph is there already."""
    late, answers = threading.Event(), []

    def hold(route: Route) -> None:
        if late.is_set():
            route.continue_()
        else:
            answers.append(route)
            late.set()

    page.evaluate("sessionStorage.clear()")
    page.route("**/queue/join*", hold)
    opened(page, page.url)
    page.wait_for_function("() => sessionStorage.cmidiff")
    give(page, png(40, 32, RED))
    expect(page.locator("#size")).to_contain_text("40 x 32")
    answers[0].continue_()
    page.unroute("**/queue/join*")
    opened(page, page.url)
    expect(page.locator("#photo img")).to_be_visible()
    expect(page.locator("#size")).to_contain_text("40 x 32")


def test_two_windows_of_one_browser_are_two_visits(page: Page, address: str) -> None:
    other = opened(page.context.new_page(), address)
    for window, shade in ((page, RED), (other, BLUE)):
        taken(window, png(40, 32, shade), 40, 32)
        wish(window, "Remove noise")
        set_steps(window, 3)
    for window, shade in ((page, RED), (other, BLUE)):
        assert colour(restored(window)) == pytest.approx(shade, abs=NEAR)


def test_a_run_is_cancelled(page: Page) -> None:
    taken(page, png(40, 32), 40, 32)
    wish(page, "Remove noise")
    set_steps(page, LIMITS.steps)
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("step")
    expect(page.locator("#status")).to_contain_text("left")
    expect(page.locator("#live img")).to_be_visible()
    page.locator("#cancel").click()
    expect(page.locator("#status")).to_contain_text("Cancelled")
    set_steps(page, 3)
    restored(page)
    page.locator("#cancel").click()
    expect(page.locator("#status")).to_contain_text("Nothing is running")


def test_who_waits_is_told_and_can_leave_the_queue(page: Page, address: str) -> None:
    """All that may run at once run; the next visitor waits, and cancels."""
    others = [opened(page.context.new_page(), address) for _ in range(LIMITS.jobs)]
    for window in (*others, page):
        taken(window, png(40, 32), 40, 32)
        wish(window, "Remove noise")
        set_steps(window, LIMITS.steps)
    for window in (*others, page):
        window.locator("#start").click()
        said = "Waiting for its turn" if window is page else "left"
        expect(window.locator("#status")).to_contain_text(said)
    for window in (page, *others):
        window.locator("#cancel").click()
        expect(window.locator("#status")).to_contain_text("Cancelled")


def test_among_twenty_at_once_a_visitor_waits_and_is_served(page: Page, address: str) -> None:
    """Nineteen others press the button at the same moment; the image that comes back is one's own."""
    others = [Visitor(address) for _ in range(19)]
    begun = threading.Barrier(20)

    def visit(visitor: Visitor) -> str:
        visitor.take(png(24, 24, (250, 250, 250)))
        begun.wait(60)
        return visitor.restore("grainy", noise=0.01)[0]

    taken(page, png(40, 32, RED), 40, 32)
    wish(page, "Remove noise")
    set_steps(page, 3)
    with ThreadPoolExecutor(19) as pool:
        answers = pool.map(visit, others)
        begun.wait(60)
        assert colour(restored(page)) == pytest.approx(RED, abs=NEAR)
        assert all("inished" in line for line in answers)


def test_a_full_queue_and_the_time_limit_are_told(browser: Browser, tmp_path: Path) -> None:
    """One runs, until its time is over; one waits; the third is asked to come back."""

    def window() -> tuple[BrowserContext, Page]:
        context = browser.new_context()
        page = opened(context.new_page(), address)
        taken(page, png(40, 32), 40, 32)
        wish(page, "Remove noise")
        set_steps(page, LIMITS.steps)
        return context, page

    with server(tmp_path, delay=0.3, limits=replace(LIMITS, jobs=1, waiting=1, seconds=25.0)) as (address, _):
        contexts, windows = zip(*[window() for _ in range(3)], strict=True)
        for page, told in zip(
            windows, (re.compile(r"step \d+/"), "Waiting for its turn", "Too many runs"), strict=True
        ):
            page.locator("#start").click()
            expect(page.locator("#status")).to_contain_text(told)
        expect(windows[2].get_by_role("alert")).to_contain_text("nothing was started: try again in a minute")
        expect(windows[0].locator("#status")).to_contain_text("Stopped after 25 seconds: choose")
        for context in contexts:
            context.close()


# what is refused


def only_line(page: Page, told: str) -> None:
    """The refusal beside the image, in our words and no others."""
    expect(page.get_by_role("alert")).to_contain_text(told)
    expect(page.get_by_role("alert")).to_have_count(1)
    expect(page.get_by_test_id("toast-body")).to_have_count(0)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"no image at all", "not an image that can be read: give a PNG, JPEG"),
        (b"", "not an image that can be read"),
        (png(64, 64, grain=40)[:3000], "damaged: save it again"),
        (bomb(60_000, 60_000), "too many pixels: more than can be opened, and at most 0.4 million"),
        (bomb(800, 600), "too many pixels: 800 x 600, and at most 0.4 million can be taken. Shrink it"),
    ],
    ids=["no image", "empty", "damaged", "bomb", "pixels"],
)
def test_a_refusal_is_seen_beside_the_photograph(page: Page, data: bytes, told: str) -> None:
    """And nothing can be restored until a good photograph is given, which takes the line away."""
    give(page, data)
    only_line(page, told)
    page.locator("#start").click()
    expect(page.locator("#status")).to_contain_text("no photograph yet")
    taken(page, png(40, 32), 40, 32)
    expect(page.get_by_text(told)).to_have_count(0)


def test_a_large_file_is_told_and_never_sent(page: Page) -> None:
    sent = []
    page.on("request", lambda request: sent.append(request.url) if "/upload?" in request.url else None)
    give(page, b"\0" * (2 * LIMITS.file_bytes))
    expect(page.get_by_test_id("toast-body")).to_contain_text('exceed the maximum allowed size of 1.0 Mb: "photo.png"')
    assert sent == []
    taken(page, png(40, 32), 40, 32)


def test_a_number_that_cannot_be_meant_is_told(page: Page) -> None:
    taken(page, png(40, 32), 40, 32)
    wish(page, "Remove noise")
    page.get_by_role("button", name="Settings").click()
    page.locator("#seed input").fill("1.5")
    page.locator("#start").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("seed must be a whole number")
    page.locator("#seed input").fill("1")
    restored(page)  # with the default steps, though the settings are open


def test_a_path_in_a_name_is_only_a_name(page: Page, served: tuple[str, Path]) -> None:
    """The photograph is taken under its name, and nothing lies where the name points."""
    before = set(served[1].parent.iterdir())
    give(page, png(40, 32), "../../../evil.png")
    expect(page.locator("#size")).to_contain_text("40 x 32")
    wish(page, "Remove noise")
    set_steps(page, 3)
    restored(page)
    assert set(served[1].parent.iterdir()) == before
    assert all(path.is_relative_to(served[1] / "cache") for path in served[1].rglob("*evil*"))


# for everybody


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "dark"), (375, "light")])
def test_axe_finds_nothing_serious(page: Page, width: int, scheme: Literal["light", "dark"]) -> None:
    """Before and after a run, with everything unfolded; and nothing is wider than the window."""
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    opened(page, page.url)
    check_page(page, width)
    taken(page, png(40, 32, grain=40), 40, 32)
    check_page(page, width)
    wish(page, "Sharpen")
    page.get_by_role("button", name="The blur is known").click()
    check_page(page, width)
    wish(page, "Remove noise")
    set_steps(page, 2)
    page.locator("#start").click()
    finished(page)
    for name in ("Uncertainty", "Details"):
        page.get_by_role("button", name=name).click()
    page.locator("#draw").click()
    expect(page.locator("#gallery img").first).to_be_visible(timeout=PATIENCE)
    check_page(page, width)


def check_page(page: Page, width: int) -> None:
    found = Axe().run(page).response["violations"]
    serious = [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
    assert serious == [], "\n".join(serious)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_empty_canvas_can_be_read(page: Page, scheme: Literal["light", "dark"]) -> None:
    """Its hint lies on white in both schemes, where axe sees no background; its label is not below its tools."""
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 375, "height": 800})
    opened(page, page.url)
    expect(page.locator("#paint .empty div").last).to_have_css("color", "rgb(39, 39, 42)")
    label = page.locator("#paint [data-testid=block-label]").bounding_box()
    tools = page.locator("#paint .icon-button-wrapper").first.bounding_box()
    assert label is not None
    assert tools is not None
    assert label["x"] + label["width"] <= tools["x"]


def test_the_keyboard_is_enough(page: Page) -> None:
    """From the top of the page by Tab alone to the example, a wish and the run."""
    reach(page, "#sample")
    page.keyboard.press("Enter")
    expect(page.locator("#size")).to_contain_text("96 x 96")
    reach(page, "#case")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#case input").nth(1)).to_be_checked()
    expect(page.locator("#strength input[type=number]")).to_have_value("4")
    set_steps(page, 3)
    reach(page, "#start")
    page.keyboard.press("Enter")
    finished(page)


def test_the_comparison_is_moved_by_keyboard(page: Page) -> None:
    taken(page, png(40, 32), 40, 32)
    wish(page, "Remove noise")
    set_steps(page, 3)
    restored(page)
    page.locator("#slider").scroll_into_view_if_needed()
    position = page.get_by_role("slider", name="range slider for Before to after")
    after = page.locator("#slider img").nth(1)
    for key, place in (("ArrowRight", "51"), ("ArrowLeft", "50"), ("Home", "0")):
        position.press(key)
        expect(after).to_have_css("clip-path", re.compile(rf"inset\(0px 0px 0px {place}(\.0\d*)?%\)"))


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
