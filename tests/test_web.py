"""The page's server, by real requests: what it refuses, whom it serves, and that the archive repeats the run."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import matplotlib
import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load, load_file
from typer.testing import CliRunner

from cmidiff import restore
from cmidiff.app.cli import app
from cmidiff.app.problem import JPEG, load_problem, save_problem
from cmidiff.app.repair import fit_mask, put_back
from cmidiff.app.settings import Settings, adapt, make_settings
from cmidiff.app.speed import Speed
from cmidiff.app.summary import advise
from cmidiff.app.web import inputs, visits
from cmidiff.app.web.controls import CASES, EXPERIMENTS, WISHES, Ask, Limits
from cmidiff.app.web.inputs import result_size, work_of
from cmidiff.app.web.jobs import Job
from cmidiff.app.web.shown import doubt, status
from cmidiff.app.web.visits import Visits
from cmidiff.images import Image as ReadImage
from cmidiff.images import read_image, to_pil, write_image
from cmidiff.physics import TASKS, denoise
from cmidiff.prior import load_prior
from cmidiff.prior.base import Denoiser
from cmidiff.registry import SOLVERS
from cmidiff.result import MISFIT_BOUND, Status
from tests.web import LIMITS, Visitor, bomb, gaussian_prior, png, server, shown_text

# what a visitor gives


def photograph_of(folder: Path, height: int = 48, width: int = 64) -> Path:
    """The file of a smooth photograph."""
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    values = torch.stack([rows * columns, 1 - rows + 0 * columns, 0.5 + 0 * rows * columns])
    write_image(folder / "photo.png", values)
    return folder / "photo.png"


def test_every_task_of_the_command_line_is_an_experiment() -> None:
    assert set(EXPERIMENTS) == set(TASKS)
    assert all(case.task == name for name, case in EXPERIMENTS.items())
    assert all(case.task in (None, JPEG, *TASKS) for case in WISHES.values())


@pytest.mark.parametrize("name", [name for name in CASES if name != "blocks"])
def test_every_case_is_a_problem_that_its_file_restores(tmp_path: Path, name: str) -> None:
    case, photo = CASES[name], photograph_of(tmp_path)
    mask = torch.zeros(1, 96, 128)
    mask[:, 40:50] = 1
    ask = Ask(name, case.strength.value if case.strength else 0.0, 0.03, 64)
    work = work_of(ask, photo, LIMITS, mask)
    assert (work.truth is not None) == (name in EXPERIMENTS)
    assert work.problem.noise_std == pytest.approx(0.03)
    save_problem(tmp_path / "m.safetensors", work.problem)
    again = load_problem(tmp_path / "m.safetensors")
    torch.testing.assert_close(again.y, work.problem.y, rtol=0, atol=0)
    x = torch.rand(1, *work.problem.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.physics.A(x), work.problem.physics.A(x), rtol=0, atol=0)
    if ask.case != "scratches":
        assert result_size(ask, (48, 64)) == work.problem.result_shape[1:] == again.result_shape[1:]


def test_paint_hides_what_was_painted_and_nothing_else(tmp_path: Path) -> None:
    """Painted on a canvas of another size than the photograph: the pixels under the paint are unknown."""
    mask = torch.zeros(1, 192, 256)
    mask[:, 64:96, 128:160] = 1  # 8 x 8 pixels of the photograph
    work = work_of(Ask("scratches", 0, 0.02, 64, whole=True), photograph_of(tmp_path), LIMITS, mask)
    seen = work.problem.physics.A(torch.ones(1, *work.problem.shape))[0, 0]
    expected = torch.ones(48, 64)
    expected[16:24, 32:40] = 0
    assert bool((seen[16:24, 32:40] == 0).all())
    assert int((seen != expected).sum()) <= 4 * 8 + 4, "no more than the rim, where paint touches a pixel"


@pytest.mark.parametrize("side", [64, 256], ids=["computed at a lower resolution", "at full resolution"])
def test_a_repair_changes_painted_pixels_alone(tmp_path: Path, side: int) -> None:
    """The computed region is the paint and its surroundings; it returns to its place in the whole photograph."""
    photo, mask = photograph_of(tmp_path, 200, 300), torch.zeros(1, 200, 300)
    mask[:, 90:110, 100:160] = 1
    work = work_of(Ask("scratches", 0, 0.02, side), photo, LIMITS, mask)
    assert work.finish is not None
    assert max(work.problem.shape) <= side
    assert 200 > max(work.problem.shape[1:]) >= 64, "not the whole photograph"
    before, after = read_image(photo).values, work.finish(torch.full(work.problem.shape, 0.5)).values
    changed = (after != before).any(0)
    assert after.shape == before.shape
    assert bool((changed <= fit_mask(mask, (200, 300))[0]).all()), "a pixel outside of the paint has changed"
    assert float((after - 0.5).abs()[:, 98:102, 110:150].mean()) < 0.05, "inside, it is the restoration"


def test_the_border_of_a_repair_is_continuous(tmp_path: Path) -> None:
    """A restoration with a constant offset leaves no step at the border of the paint."""
    photo, painted = photograph_of(tmp_path, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
    painted[:, 24:40, 24:40] = True
    before = ReadImage(read_image(photo).values * 0.5 + 0.2, torch.zeros(1, 64, 64))
    after = put_back(before, before.values + 0.1, painted)
    difference = (after.values - before.values).abs().amax(0)
    assert float(difference[24, 24:40].max()) < 0.05, "half of the offset is gone at the first painted pixel"
    assert float(difference[32, 32]) > 0.08, "far inside, the restoration is kept"
    assert after.alpha is not None
    torch.testing.assert_close(after.alpha, painted.float(), rtol=0, atol=0)


def test_a_kernel_shrinks_with_its_photograph(tmp_path: Path) -> None:
    """A streak of 16 pixels in an upload of 256 is one of 4 in an image of 64."""
    blur = torch.zeros(1, 24, 24)
    blur[:, 11:13, 4:20] = 1
    write_image(tmp_path / "blur.png", blur)
    ask = Ask("blurred", 1, 0.02, 64)
    work = work_of(ask, photograph_of(tmp_path, 192, 256), LIMITS, None, tmp_path / "blur.png")
    kernel = work.problem.task.tensors["kernel"]
    columns = torch.arange(6.0) - 2.5
    spread = float(((kernel.sum(0) * columns**2).sum() - (kernel.sum(0) * columns).sum() ** 2).sqrt())
    assert kernel.shape == (6, 6)
    assert spread == pytest.approx(16 / 4 / 12**0.5, rel=0.25)


def test_enlarging_measures_what_is_there(tmp_path: Path) -> None:
    photo = photograph_of(tmp_path, 24, 32)
    problem = work_of(Ask("small", 4, 0.02, 128), photo, LIMITS).problem
    assert problem.shape == (3, 96, 128)
    torch.testing.assert_close(problem.y[0], read_image(photo).values, rtol=0, atol=0)


@pytest.mark.parametrize("noise_std", [0.02, 0.1])
def test_the_noise_of_a_photograph_is_estimated(tmp_path: Path, noise_std: float) -> None:
    clean = read_image(photograph_of(tmp_path, 64, 64)).values
    noisy = clean + noise_std * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    write_image(tmp_path / "noisy.png", noisy * 0.5 + 0.25)
    work = work_of(Ask("grainy"), tmp_path / "noisy.png", LIMITS)
    assert work.problem.noise_std == pytest.approx(noise_std / 2, rel=0.25)  # rounded to eight bits
    assert "estimated" in work.notes[0]


@pytest.mark.parametrize(
    ("painted", "told"),
    [
        (None, "Nothing is painted yet.*inside the photograph"),
        (torch.zeros(1, 48, 64), "Nothing is marked as damaged"),
        (torch.ones(1, 48, 64), "Everything is marked as damaged"),
        (torch.eye(64)[None], "The mask has 64 x 64 pixels and the photograph 64 x 48"),
    ],
)
def test_a_mask_that_cannot_be_meant_is_refused(tmp_path: Path, painted: torch.Tensor | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        work_of(Ask("scratches"), photograph_of(tmp_path), LIMITS, painted)


def test_a_mask_that_hides_nearly_everything_is_doubted(tmp_path: Path) -> None:
    painted = torch.ones(1, 48, 64)
    painted[:, :10] = 0
    work = work_of(Ask("scratches"), photograph_of(tmp_path), LIMITS, painted)
    assert any("hides 79% of the photograph" in note and "inverted" in note for note in work.notes)


def test_the_time_is_measured_and_learnt(tmp_path: Path) -> None:
    settings = settings_for("pigdm", steps=10, samples=2)
    speed = Speed(gaussian_prior(0.01))
    first = speed.seconds(settings, (3, 64, 64))
    assert first >= 0.01 * 10 * 2, "no less than the network alone"
    assert speed.seconds(settings, (3, 128, 64)) == pytest.approx(2 * first)
    problem = work_of(Ask("grainy", side=64), photograph_of(tmp_path, 64, 64), LIMITS).problem
    speed.learn(settings, problem, 0, 7.0)
    assert speed.seconds(settings, (3, 64, 64)) == pytest.approx(14.0)
    assert speed.seconds(settings_for("pigdm", steps=5, samples=2), (3, 64, 64)) == pytest.approx(7.0)
    best = settings_for(None, samples=0)
    assert speed.seconds(best, (3, 64, 64)) > 0


def jpeg_of(folder: Path, height: int = 48, width: int = 64) -> Path:
    """A strongly compressed photograph."""
    values = read_image(photograph_of(folder, height, width)).values
    grain = 0.1 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    to_pil(values + grain).save(folder / "photo.jpg", quality=10)
    return folder / "photo.jpg"


def test_a_jpeg_is_repaired_at_its_own_resolution(tmp_path: Path) -> None:
    """Smaller than the size that is asked for, and of the strength that its file tells."""
    ask = Ask("blocks", side=24)
    work = work_of(ask, jpeg_of(tmp_path), LIMITS)
    assert work.problem.shape == (3, 48, 64)
    assert result_size(ask, (48, 64)) == (48, 64)
    assert work.problem.tables is not None
    assert "quality 10" in work.notes[0]
    with pytest.raises(ValueError, match="no sign of JPEG compression"):
        work_of(ask, photograph_of(tmp_path), LIMITS)
    with pytest.raises(ValueError, match="too large for the repair"):
        work_of(ask, jpeg_of(tmp_path), replace(LIMITS, side=32))


# a job


def settings_for(solver: str | None, **given: Any) -> Settings:
    values = {"steps": 3, "samples": 2, "seed": 5, "batch": 1, "device": "cpu", "prior": "natural-64"} | given
    return make_settings(solver=solver, **{"cmi": False, "eta": None} | values)


def job_of(folder: Path, prior: Denoiser, name: str = "natural-64", limits: Limits = LIMITS, **asked: Any) -> Job:
    work = work_of(Ask("inpaint-random", 0.5, 0.05, 24), photograph_of(folder, 18, 24), limits)
    given = {"prior": name} | asked
    runs = {"base": settings_for("pigdm", **given), "cmi": settings_for("pigdm", cmi=True, eta=-0.25, **given)}
    return Job(work, runs, prior, folder / "job", limits)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_the_commands_of_an_archive_repeat_it_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the embedded prior, both runs of a comparison; another seed is another result."""
    job = job_of(tmp_path, load_prior("natural-64"))
    job.run()
    assert job.view.state == "done", job.view.message
    assert all(len(result.good) == 2 for result in job.view.results)
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(job.archive) as archive:
        archive.extractall(unpacked)
    monkeypatch.chdir(unpacked)
    for line, name in zip(Path("command.txt").read_text().splitlines(), ("base", "cmi"), strict=True):
        words = line.split()
        assert words[0] == "cmidiff"
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, result.output
        for k in range(2):
            file = f"sample-{k:02d}.safetensors"
            before, after = load_file(f"{name}/{file}"), load_file(f"{name}-again/{file}")
            torch.testing.assert_close(after["sample"], before["sample"], rtol=0, atol=0)
        assert Path(name, "mean.png").read_bytes() == Path(f"{name}-again", "mean.png").read_bytes()
    base, cmi = (load_file(f"{name}/sample-00.safetensors")["sample"] for name in ("base", "cmi"))
    assert not torch.equal(base, cmi)
    seeds = [word if word != "5" else "6" for word in Path("command.txt").read_text().splitlines()[0].split()[1:-1]]
    assert CliRunner().invoke(app, [*seeds, "other"]).exit_code == 0
    assert not torch.equal(base, load_file("other/sample-00.safetensors")["sample"])


@pytest.mark.parametrize("name", ["inpaint-random", "blocks"])
def test_the_command_of_an_estimate_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The first result of the page is one estimate by default."""
    photo = jpeg_of(tmp_path, 18, 24) if name == "blocks" else photograph_of(tmp_path, 18, 24)
    work = work_of(Ask(name, 0.5, None, 24), photo, LIMITS)
    settings = adapt(settings_for(None, samples=0), work.problem)
    job = Job(work, {"result": settings}, load_prior("natural-64"), tmp_path / "job", LIMITS)
    job.run()
    assert job.view.state == "done", job.view.message
    (result,) = job.view.results
    assert result.best is not None
    assert result.samples == []
    assert [row.name for row in result.rows] == ["restored"]
    monkeypatch.chdir(job.folder)
    words = Path("command.txt").read_text().split()
    ran = CliRunner().invoke(app, words[1:])
    assert ran.exit_code == 0, ran.output
    before, after = (load_file(f"{folder}/estimate.safetensors")["sample"] for folder in ("result", "result-again"))
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert Path("result.png").read_bytes() == Path("result/restored.png").read_bytes()


def test_a_job_stops_at_any_step_and_keeps_what_is_finished(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    job = job_of(tmp_path, gaussian_prior(0.01), str(tmp_path), steps=40, samples=4)
    job.start(pool)
    while not job.view.results[0].samples:
        time.sleep(0.01)
    job.cancel()
    assert job.wait(5)
    view = job.view
    assert view.state == "cancelled"
    assert 0 < view.fraction < 1
    finished = sum(len(result.samples) for result in view.results)
    with zipfile.ZipFile(job.archive) as archive:
        names = archive.namelist()
    assert sum(name.endswith(".safetensors") and "sample-" in name for name in names) == finished >= 1
    assert "result.png" in names


@pytest.mark.parametrize(
    ("limit", "state"), [({"seconds": 0.3}, "out of time"), ({"away": 0.3}, "cancelled")], ids=["time", "nobody looks"]
)
def test_a_job_has_limits(tmp_path: Path, limit: dict[str, float], state: str) -> None:
    """Of its time, and of the time in which no browser asks for it."""
    job = job_of(tmp_path, gaussian_prior(0.05), str(tmp_path), replace(LIMITS, **limit), steps=200)
    job.run()
    assert job.view.state == state
    assert job.view.fraction < 0.5


def test_a_job_that_waits_can_be_cancelled_at_once(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    over = threading.Event()
    pool.submit(over.wait)
    job = job_of(tmp_path, gaussian_prior())
    job.start(pool)
    assert job.view.state == "waiting"
    job.cancel()
    assert job.wait(0)
    assert job.view.state == "cancelled"
    over.set()


def test_what_restore_refuses_is_told(tmp_path: Path) -> None:
    work = work_of(Ask("hdr", 2, 0.05, 24), photograph_of(tmp_path, 18, 24), LIMITS)
    job = Job(work, {"result": settings_for("pigdm")}, gaussian_prior(), tmp_path / "job", LIMITS)
    job.run()
    assert job.view.state == "failed"
    assert "needs a linear physics" in job.view.message
    assert str(tmp_path) not in job.view.message


def test_a_misfit_far_from_one_is_a_doubt(tmp_path: Path) -> None:
    """Of an optimisation that is cut off; a run that ends well is not doubted."""
    work = work_of(Ask("grainy", 0, 0.01, 24), photograph_of(tmp_path, 18, 24), LIMITS)
    views = []
    for solver, steps in (("red-diff", 2), ("pigdm", 30)):
        settings = settings_for(solver, prior=str(tmp_path), steps=steps)
        job = Job(work, {"result": settings}, gaussian_prior(), tmp_path / str(steps), LIMITS)
        job.run()
        views.append(job.view)
    rough, good = (view.results[0].rows[-1].misfit for view in views)
    assert rough is not None
    assert good is not None
    assert rough > MISFIT_BOUND > good, (rough, good)
    assert f"{rough:.1f} times the noise" in doubt(views[0])
    assert "doubtful" in status(views[0])
    assert doubt(views[1]) == ""
    assert ">Finished<" in status(views[1])


def test_amplified_noise_is_a_doubt_of_its_own() -> None:
    """Its misfit is right: the result leaves the range of images."""
    row: Any = SimpleNamespace(misfit=0.9, status="doubtful")
    view: Any = SimpleNamespace(results=[SimpleNamespace(rows=[row])])
    assert "sharpening amplifies" in doubt(view)
    sample: Any = SimpleNamespace(ok=True, name="restored", status=Status(True, None, "", 0.9, False))
    problem: Any = SimpleNamespace(noise_std=0.01)
    assert advise([sample], problem, cast(Any, None)).startswith("cmidiff: restored leaves the range of images")


def test_old_visits_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their files and their jobs; what is no token opens a visit that nobody finds again."""
    all_visits = Visits(tmp_path / "work", LIMITS)
    visit = all_visits.open("0123456789abcdef" * 2)
    assert all_visits.open(visit.token) is visit
    for wrong in ("", "../../etc", "0123456789ABCDEF" * 2, visit.token + "\n", None, 7):
        stray = all_visits.open(wrong)
        assert stray.token not in (wrong, visit.token)
        assert stray.folder.parent == visit.folder.parent
    job = job_of(tmp_path, gaussian_prior(0.05), str(tmp_path), steps=200)
    all_visits.submit(visit, "result", job)
    monkeypatch.setattr(visits, "KEEP", -1.0)
    all_visits.sweep()
    assert job.wait(5)
    assert not visit.folder.exists()
    assert all_visits.open(visit.token) is not visit
    all_visits.close()


# the server


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with server(tmp_path_factory.mktemp("prior")) as served:
        yield served


@pytest.fixture
def visitor(page: tuple[str, Path]) -> Visitor:
    return Visitor(page[0])


def test_the_page_asks_no_other_host(visitor: Visitor) -> None:
    answer = visitor.http.get("/")
    assert answer.status_code == 200
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?://[^"]+)"', answer.text)
    own = visitor.address.rsplit(":", 1)[1]
    assert [url for url in loaded if f":{own}/" not in url] == []
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert not visitor.config.get("is_space")
    assert "@import" not in visitor.http.get("/theme.css").text


def test_too_large_a_file_is_refused(visitor: Visitor, page: tuple[str, Path]) -> None:
    stored = set(page[1].rglob("*"))
    files = {"files": ("large.png", b"\0" * (LIMITS.file_bytes + 1))}
    answer = visitor.http.post("/gradio_api/upload", files=files)
    assert answer.status_code == 413
    files = {"files": ("large.png", b"\0" * (2 * LIMITS.file_bytes))}
    answer = visitor.http.post("/gradio_api/upload", files=files)
    assert (answer.status_code, answer.text) == (413, "This is too large: at most 1 MB can be taken.")
    unknown = visitor.http.post("/gradio_api/upload", content=iter([b"x"]))
    assert unknown.status_code == 411
    assert [p for p in page[1].rglob("*") if p.is_file() and p not in stored] == []


@pytest.mark.parametrize(
    ("length", "code"),
    [("Content-Length: 1000000000000", 413), ("Content-Length: 9\r\nTransfer-Encoding: chunked", 411)],
)
def test_a_file_without_end_is_refused_before_it_is_sent(page: tuple[str, Path], length: str, code: int) -> None:
    """The answer comes after the headers, whatever was to follow; a length that is not kept to is no length."""
    address = httpx.URL(page[0])
    with socket.create_connection(("127.0.0.1", address.port or 80), timeout=10) as connection:
        kind = "Content-Type: multipart/form-data; boundary=x"
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost:{address.port}\r\n{kind}\r\n{length}\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(4096).decode()
    assert answer.startswith(f"HTTP/1.1 {code} "), answer


@pytest.mark.parametrize(
    ("data", "name", "told"),
    [
        (b"no image at all", "photo.png", "not an image that can be read"),
        (b"", "photo.png", "not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "photo.eps", "not an image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "photo.svg", "not an image that can be read"),
        (png(64, 64, grain=40)[:3000], "cut.png", "damaged"),
        (bomb(60_000, 60_000), "bomb.png", "too many pixels"),
        (bomb(800, 600), "many.png", "too many pixels"),
        (png(600, 3), "strip.png", "too narrow"),
    ],
)
def test_a_wrong_file_is_refused_with_a_line(
    visitor: Visitor, page: tuple[str, Path], data: bytes, name: str, told: str
) -> None:
    line = visitor.take(data, name) or visitor.restore("grainy")[0]
    assert told in line
    assert str(page[1]) not in line
    assert "Traceback" not in line


def test_no_photograph_is_told(visitor: Visitor) -> None:
    line, archive = visitor.restore("grainy")
    assert "no photograph yet" in line
    assert archive == {}


def test_a_path_in_a_name_stays_a_name(visitor: Visitor, page: tuple[str, Path]) -> None:
    for name in ("../../../evil.png", "/etc/evil.png", "..\\..\\evil.png", "a/../../evil.png"):
        given = visitor.upload(png(20, 20), name)
        assert Path(given["path"]).resolve().is_relative_to(page[1] / "cache")
    assert not list(page[1].parent.glob("evil*"))
    assert {p.parent.parent for p in page[1].rglob("*evil.png")} == {page[1] / "cache"}


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../../etc/passwd", "http://localhost:1/x.png", "https://example.org/x.png", "file:///x"]
)
def test_no_path_of_a_request_is_used(visitor: Visitor, path: str) -> None:
    given = {"path": path, "meta": {"_type": "gradio.FileData"}}
    answer = visitor.join(visitor.event("photo", "upload"), [given, None])
    assert answer.status_code == 403
    painted = {"background": None, "layers": [given], "composite": None}
    answer = visitor.join(visitor.event("start", "click"), visitor.asked("scratches", paint=painted))
    assert answer.status_code == 403
    assert visitor.http.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_a_visitors_folder_cannot_be_fetched(visitor: Visitor, page: tuple[str, Path]) -> None:
    visitor.take(png(20, 20))
    visitor.restore("grainy")
    files = [p for p in (page[1] / "work").rglob("*.safetensors") if p.is_file()]
    assert files
    assert visitor.http.get(f"/gradio_api/file={files[0]}").status_code == 403
    dotted = page[1] / "cache" / ".." / files[0].relative_to(page[1])
    assert visitor.http.get(f"/gradio_api/file={str(dotted).replace('..', '%2e%2e')}").status_code == 403


@pytest.mark.parametrize(
    "path",
    ["process_recording", "vibe-edit", "stream/x", "call/predict", "api/predict", "run/_run", "queue/join/../upload"],
)
def test_only_what_the_page_sends_is_answered(visitor: Visitor, path: str) -> None:
    assert visitor.http.post(f"/gradio_api/{path}", content=b"{}").status_code in (404, 413)
    for route in ("/docs", "/gradio_api/proxy=http://localhost/", "/monitoring", "/gradio_api/openapi.json"):
        assert visitor.http.get(route).status_code == 404
    assert visitor.http.put("/gradio_api/upload", content=b"x").status_code == 404


def test_a_message_must_be_small_and_sound(visitor: Visitor) -> None:
    headers = {"content-type": "application/json"}
    deep = b"[" * 200_000
    for body, code in ((b"{", 400), (deep, 400), (b" " * (2**20 + 1), 413)):
        assert visitor.http.post("/gradio_api/queue/join", content=body, headers=headers).status_code == code


BAD: list[tuple[str, Any, str]] = [
    *(("steps", value, "steps must be a whole number from 2 to 400") for value in ("abc", 3.7, True, 10**30, -1)),
    *(
        ("noise", value, "noise must be a number from 0 to 1")
        for value in (float("nan"), float("inf"), "a", "nan", -0.1)
    ),
    *(("seed", value, "seed must be a whole number") for value in (-1, 2**31, [], None)),
    *(("side", value, "side must be a whole number from 8 to 64") for value in (4096, 7, {})),
    ("case", "../x", "case must be one of"),
    ("experiment", None, "experiment must be one of"),
    ("solver", "../x", "solver must be one of"),
    ("strength", "a", "strength must be a number"),
    ("whole", "yes", "whole must be one of"),
]


@pytest.mark.parametrize(("name", "value", "told"), BAD)
def test_a_bad_value_is_named_in_a_message(
    visitor: Visitor, capfd: pytest.CaptureFixture[str], name: str, value: Any, told: str
) -> None:
    """And it leaves no traceback in the server's log."""
    visitor.take(png(20, 20))
    case = "inpaint-random" if name in ("experiment", "strength") else "grainy"
    last = visitor.answer(visitor.event("start", "click"), visitor.asked(case, **{name: value}))
    assert not last["success"]
    assert told in last["output"]["error"]
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("samples", 99, "samples"),
        ("sampler", 3, "sampler"),
        ("cmi", "maybe", "cmi"),
        ("eta", "x", "eta must be a number"),
    ],
)
def test_a_bad_value_for_samples_is_named_in_a_message(visitor: Visitor, name: str, value: Any, told: str) -> None:
    last = visitor.answer(visitor.event("draw", "click"), visitor.asked("grainy", **{name: value}))
    assert not last["success"]
    assert f"{told}" in last["output"]["error"]
    line, _ = visitor.restore("grainy", "draw")
    assert "no result yet" in line


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data[:-1], "data must be a list of 19 values, received 18 values"),
        (lambda _: "abc", "data must be a list of 19 values, received abc"),
        (lambda _: None, "data must be a list of 19 values, received None"),
        (lambda data: [data[0], "photo.png", *data[2:]], "photo must be an uploaded file, received photo.png"),
        (lambda data: [*data[:6], {"layers": "x"}, *data[7:]], "paint must be an uploaded file"),
    ],
)
def test_a_malformed_event_is_refused(
    visitor: Visitor, capfd: pytest.CaptureFixture[str], change: Callable[[Any], Any], told: str
) -> None:
    answer = visitor.join(visitor.event("start", "click"), change(visitor.asked("grainy")))
    assert answer.status_code == 400
    assert told in answer.text
    for index in (None, "1", 10**9, True):
        answer = visitor.join({"id": index}, [])
        assert answer.status_code == 400
        assert "fn_index" in answer.text
    assert "Traceback" not in "".join(capfd.readouterr())


def test_the_size_and_the_time_are_told_before_the_run(visitor: Visitor) -> None:
    """A repair has the size of the photograph, other results that of the choice; an enlargement that of its factor."""
    visitor.take(png(120, 90))
    event = visitor.event("side", "input")

    def told(case: str, **changed: Any) -> tuple[str, list[Any]]:
        outputs = visitor.run(event, visitor.asked(case, **changed))
        return shown_text(outputs[visitor.ids["size"]]), outputs[visitor.ids["side"]]["choices"]

    line, choices = told("grainy")
    assert "The result has 64 x 48 pixels (the photograph: 120 x 90 pixels) and takes about" in line
    assert [value for _, value in choices] == [64]
    assert "The result has the size of the photograph, 120 x 90 pixels." in told("scratches")[0]
    visitor.take(png(20, 10))
    assert "The result has 40 x 20 pixels" in told("small", strength=2, side=40)[0]


def test_a_second_photograph_takes_the_place_of_the_first(visitor: Visitor, page: tuple[str, Path]) -> None:
    """Its result is that of the file that is sent with the run, and the first result is gone."""
    for colour in ((200, 30, 40), (20, 210, 60), (10, 20, 220)):
        assert visitor.take(png(40, 32, colour)) == ""
        line, files = visitor.restore("grainy", noise=0.01)
        assert "inished" in line
        assert all(str(page[1].parent).encode() not in text for text in files.values()), "a path of the server"
        y = load(files["measurement.safetensors"])["y"]
        torch.testing.assert_close(y, torch.tensor(colour).reshape(1, 3, 1, 1).expand(1, 3, 32, 40) / 255)
    visitor.take(png(40, 32))
    assert "no result yet" in visitor.restore("grainy", "draw")[0]


def test_samples_follow_the_result(visitor: Visitor) -> None:
    """They are drawn for the problem of the result that is shown, whatever the controls say by then."""
    visitor.take(png(40, 32, (200, 30, 40)))
    _, first = visitor.restore("small", strength=2, side=64)
    line, files = visitor.restore("grainy", "draw", cmi="compare", samples=2)
    assert "inished" in line
    assert {"samples/sample-01.png", "samples-cmi/sample-01.png", "samples/std.png"} <= set(files)
    assert files["measurement.safetensors"] == first["measurement.safetensors"]


def test_a_window_that_reloads_finds_its_result(visitor: Visitor) -> None:
    visitor.take(png(40, 32))
    visitor.restore("grainy")
    again = Visitor(visitor.address, token=visitor.token)
    load = next(d for d in again.config["dependencies"] if [t[1] for t in d["targets"]] == ["load"])
    assert again.run(load, [again.token])[again.ids["photo"]]["path"] == (visitor.photo or {})["path"]
    outputs = again.run(again.after(again.event("start", "click")), [again.token])
    assert "inished" in shown_text(outputs[again.ids["status"]])


def test_a_photograph_that_is_taken_after_its_run_began_keeps_it(visitor: Visitor) -> None:
    """The browser sends both at once; a photograph that is another one ends the run."""
    visitor.photo = visitor.upload(png(40, 32))
    assert "inished" in visitor.restore("grainy")[0]
    watch = visitor.after(visitor.event("start", "click"))
    for data, text in ((png(40, 32), "inished"), (png(48, 32), "result appears here")):
        assert visitor.take(data) == ""
        assert text in shown_text(visitor.run(watch, [visitor.token])[visitor.ids["status"]])


def test_a_run_without_a_size_has_the_one_that_is_offered(visitor: Visitor) -> None:
    """The button may be pressed before the sizes come."""
    visitor.take(png(40, 32))
    for case, side in (("grainy", 40), ("small", 64)):
        results = [visitor.restore(case, side=chosen)[1]["result.png"] for chosen in (None, side)]
        assert results[0] == results[1]


def test_a_photograph_that_browsers_do_not_show_is_restored_itself(visitor: Visitor) -> None:
    """Not the image of it that is shown, which is smaller."""
    file = io.BytesIO()
    Image.new("RGB", (1100, 32), (120, 80, 40)).save(file, format="TIFF")
    given = visitor.upload(file.getvalue(), "photo.tif")
    outputs = visitor.run(visitor.event("photo", "upload"), [visitor.token, given])
    visitor.photo = outputs[visitor.ids["photo"]]
    assert Path((visitor.photo or {})["path"]).suffix == ".png"
    assert Image.open((visitor.photo or {})["path"]).width == 1024
    mask = Image.new("L", (1100, 32))
    mask.paste(255, (500, 10, 520, 20))
    file = io.BytesIO()
    mask.save(file, format="PNG")
    line, files = visitor.restore("scratches", mask=visitor.upload(file.getvalue(), "mask.png"))
    assert "inished" in line, line
    assert Image.open(io.BytesIO(files["result.png"])).size == (1100, 32)


def test_twenty_visitors_at_once_are_not_mixed(page: tuple[str, Path]) -> None:
    """Each gives an image of its own colour and a seed, and gets what `restore` makes of them alone."""
    colours = [(10 * k + 20, 230 - 10 * k, 60 + 5 * k) for k in range(20)]
    barrier = threading.Barrier(20)

    def visit(colour: tuple[int, int, int]) -> tuple[str, dict[str, bytes]]:
        visitor = Visitor(page[0])
        assert visitor.take(png(40, 32, colour)) == ""
        barrier.wait(60)
        return visitor.restore("grainy", noise=0.01, seed=colour[0])

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(visit, colours))
    for colour, (line, files) in zip(colours, answers, strict=True):
        assert "inished" in line
        assert f"--seed {colour[0]} " in files["command.txt"].decode()
        y = load(files["measurement.safetensors"])["y"]
        torch.testing.assert_close(y, torch.tensor(colour).reshape(1, 3, 1, 1).expand(1, 3, 32, 40) / 255)
        expected = restore(
            y,
            denoise((3, 32, 40), noise_std=0.01),
            gaussian_prior(),
            solver=SOLVERS.make("pigdm"),
            steps=4,
            seed=colour[0],
        )
        sample = load(files["result/sample-00.safetensors"])["sample"]
        torch.testing.assert_close(sample, expected.samples[0, 0], rtol=0, atol=1e-6)


def test_paint_and_masks_arrive(visitor: Visitor) -> None:
    """As a layer that the editor uploads, and as a file; a bomb is refused there, too."""
    visitor.take(png(40, 32, grain=40))
    layer = Image.new("RGBA", (40, 32))
    layer.paste((255, 0, 0, 255), (8, 8, 16, 16))
    files = [io.BytesIO(), io.BytesIO()]
    layer.save(files[0], format="PNG")
    layer.getchannel("A").save(files[1], format="PNG")
    painted, mask = (visitor.upload(file.getvalue(), "layer.png") for file in files)
    empty = {"background": None, "layers": [], "composite": None}
    ways: list[dict[str, Any]] = [{"paint": empty | {"layers": [painted]}}, {"mask": mask}, {"mask": painted}]
    for given in ways:
        line, archive = visitor.restore("scratches", **given)
        assert "inished" in line
        seen = load(archive["measurement.safetensors"])["task.mask"].squeeze()
        assert float((1 - seen).sum()) == pytest.approx(64, abs=32)
        assert float(seen[10:14, 10:14].sum()) == 0
        before = Image.open(io.BytesIO(png(40, 32, grain=40)))
        changed = ImageChops.difference(before, Image.open(io.BytesIO(archive["result.png"])))
        left, top, right, bottom = changed.getbbox() or (0, 0, 40, 32)
        assert 7 <= left < 9, "the result is the photograph outside of the paint"
        assert (top >= 7, right <= 17, bottom <= 17) == (True, True, True)
    line, _ = visitor.restore("scratches", paint=empty | {"layers": [visitor.upload(bomb(9000, 9000), "l.png")]})
    assert "too many pixels" in line
    assert "Nothing is painted yet" in visitor.restore("scratches", paint=empty)[0]


def test_a_visitor_who_leaves_takes_the_job_along(tmp_path: Path) -> None:
    """After a while in which the window might have been reloaded."""
    with server(tmp_path, delay=0.05, limits=replace(LIMITS, away=0.5, seconds=60)) as (address, _):
        visitor = Visitor(address)
        visitor.take(png(20, 20))
        event = visitor.event("start", "click")
        visitor.run(event, visitor.asked("grainy", steps=400))
        visitor.http.close()
        time.sleep(1)
        again = Visitor(address, token=visitor.token)
        outputs = again.run(again.after(event), [again.token])
        assert "Cancelled" in shown_text(outputs[again.ids["status"]])


def test_the_command_serves_this_machine_alone_and_leaves_nothing(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("cwd", "home", "tmp")}
    for folder in folders.values():
        folder.mkdir()
    environment = os.environ | {"HOME": str(folders["home"]), "TMPDIR": str(folders["tmp"])}
    environment |= {"MPLCONFIGDIR": matplotlib.get_cachedir()}  # its list of fonts, which any command makes once
    code = "from cmidiff.app.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=folders["cwd"], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        assert httpx.get(address).status_code == 200
        port = int(address.rsplit(":", 1)[1])
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) == 0
        if sys.platform == "linux":
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.2", port)) != 0, "it listens on more than 127.0.0.1"
        visitor = Visitor(address)
        assert visitor.take(png(20, 20)) == ""
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert [p for folder in folders.values() for p in folder.rglob("*")] == []
    assert not list(Path(inputs.__file__).parent.glob("*.pyi"))


@pytest.mark.parametrize("option", [("--port", "99999"), ("--side", "8"), ("--jobs", "0"), ("--host", "256.1.1.1")])
def test_serve_refuses_what_cannot_be(option: tuple[str, str]) -> None:
    result = CliRunner().invoke(app, ["serve", *option])
    assert result.exit_code == 2
    assert option[0] in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = CliRunner().invoke(app, ["serve", "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 2
    assert "--port" in result.stderr


def test_without_gradio_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("page", "layout", "look"):
        monkeypatch.delitem(sys.modules, f"cmidiff.app.web.{name}", raising=False)
    result = CliRunner().invoke(app, ["serve", "--port", "0"])
    assert result.exit_code == 2
    assert "cmidiff[app]" in result.stderr
