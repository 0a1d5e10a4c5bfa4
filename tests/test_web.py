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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import matplotlib
import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file
from typer.testing import CliRunner

from cmidiff import restore
from cmidiff.app.cli import app
from cmidiff.app.errors import BadInput
from cmidiff.app.masks import read_kernel
from cmidiff.app.options import settings_of
from cmidiff.app.problem import load_problem
from cmidiff.app.web import inputs
from cmidiff.app.web.inputs import CASES, EXPERIMENTS, Ask, Photograph, problem_of
from cmidiff.app.web.jobs import Job, Visit
from cmidiff.images import Image as Picture
from cmidiff.physics import TASKS, denoise
from cmidiff.prior import load_prior
from cmidiff.prior.base import Denoiser
from cmidiff.registry import SOLVERS
from tests.web import LIMITS, Visitor, bomb, gaussian_prior, png, server

# what a visitor gives


def photograph_of(height: int = 48, width: int = 64, side: int | None = None) -> Photograph:
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    values = torch.stack([rows * columns, 1 - rows + 0 * columns, 0.5 + 0 * rows * columns])
    return Photograph(Picture(values), side or max(height, width))


def test_every_task_of_the_command_line_is_an_experiment() -> None:
    assert set(EXPERIMENTS) == set(TASKS)
    assert all(case.task == name for name, case in EXPERIMENTS.items())


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_a_problem_that_its_file_restores(tmp_path: Path, name: str) -> None:
    from cmidiff.app.problem import save_problem

    case, given = CASES[name], photograph_of()
    paint, blur = Picture(torch.zeros(1, 96, 128)), Picture(torch.ones(1, 5, 3))
    paint.values[:, 40:50] = 1
    ask = Ask(name, case.strength.value if case.strength else 0.0, case.noise_std, 64)
    problem, truth = problem_of(ask, given, paint, blur, tmp_path)
    assert (truth is not None) == (name in EXPERIMENTS)
    assert problem.noise_std == pytest.approx(case.noise_std)
    save_problem(tmp_path / "m.safetensors", problem)
    again = load_problem(tmp_path / "m.safetensors")
    torch.testing.assert_close(again.y, problem.y, rtol=0, atol=0)
    x = torch.rand(1, *problem.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.physics.A(x), problem.physics.A(x), rtol=0, atol=0)


def test_paint_hides_what_was_painted_and_nothing_else(tmp_path: Path) -> None:
    """Painted on a picture four times as large as what is restored: the pixels under the paint are unknown."""
    paint = Picture(torch.zeros(1, 192, 256))
    paint.values[:, 64:96, 128:160] = 1  # 8 x 8 pixels of the restored picture
    problem, _ = problem_of(Ask("scratches", 0, 0.02, 64), photograph_of(192, 256), paint, None, tmp_path)
    seen = problem.physics.A(torch.ones(1, *problem.shape))[0, 0]
    expected = torch.ones(48, 64)
    expected[16:24, 32:40] = 0
    inner = torch.zeros(48, 64, dtype=torch.bool)
    inner[16:24, 32:40] = True
    assert bool((seen[inner] == 0).all())
    assert int((seen != expected).sum()) <= 4 * 8 + 4, "no more than the rim, where paint touches a pixel"


def test_a_kernel_shrinks_with_its_photograph(tmp_path: Path) -> None:
    """A streak of 16 pixels in an upload of 256 is one of 4 in a picture of 64."""
    blur = Picture(torch.zeros(1, 24, 24))
    blur.values[:, 11:13, 4:20] = 1
    problem_of(Ask("kernel", 0, 0.02, 64), photograph_of(192, 256), None, blur, tmp_path)
    kernel = read_kernel(tmp_path / "kernel.png", 48, 64)
    columns = torch.arange(6.0) - 2.5
    spread = float(((kernel.sum(0) * columns**2).sum() - (kernel.sum(0) * columns).sum() ** 2).sqrt())
    assert kernel.shape == (6, 6)
    assert spread == pytest.approx(16 / 4 / 12**0.5, rel=0.25)


def test_enlarging_measures_what_is_there(tmp_path: Path) -> None:
    problem, _ = problem_of(Ask("small", 4, 0.02, 128), photograph_of(24, 32), None, None, tmp_path)
    assert problem.shape == (3, 96, 128)
    torch.testing.assert_close(problem.y[0], photograph_of(24, 32).picture.values, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (Ask("scratches", 0, 0.02, 64), "Nothing is painted"),
        (Ask("kernel", 0, 0.02, 64), "picture of the blur is missing"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, ask: Ask, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        problem_of(ask, photograph_of(), None, None, tmp_path)


# a job


def job_of(folder: Path, prior: Denoiser, name: str = "natural-64", seconds: float = 60.0, **asked: object) -> Job:
    problem, truth = problem_of(Ask("inpaint-random", 0.5, 0.05, 24), photograph_of(18, 24), None, None, folder)
    given = {"steps": 3, "samples": 2, "seed": 5, "batch": 1, "device": "cpu", "solver": "pigdm", "prior": name}
    common = given | asked
    runs = {
        "base": settings_of(cmi=False, eta=None, **common),  # pyright: ignore[reportArgumentType]
        "cmi": settings_of(cmi=True, eta=-0.25, **common),  # pyright: ignore[reportArgumentType]
    }
    return Job(problem, runs, prior, truth, folder / "job", seconds)


def test_the_commands_of_an_archive_repeat_it_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the embedded prior, both runs of a comparison; another seed is another result."""
    job = job_of(tmp_path, load_prior("natural-64"))
    job.start()
    assert job.wait(60)
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


def test_a_job_stops_at_any_step_and_keeps_what_is_finished(tmp_path: Path) -> None:
    job = job_of(tmp_path, gaussian_prior(0.01), str(tmp_path), steps=40, samples=4)
    job.start()
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


def test_a_job_has_a_time_limit(tmp_path: Path) -> None:
    job = job_of(tmp_path, gaussian_prior(0.05), str(tmp_path), seconds=0.3, steps=200)
    job.start()
    assert job.wait(10)
    assert job.view.state == "out of time"
    assert job.view.fraction < 0.5


def test_what_restore_refuses_is_told(tmp_path: Path) -> None:
    problem, truth = problem_of(Ask("hdr", 2, 0.05, 24), photograph_of(18, 24), None, None, tmp_path)
    settings = settings_of(
        solver="pigdm", cmi=None, eta=None, prior=str(tmp_path), steps=2, samples=1, seed=0, batch=1, device="cpu"
    )
    job = Job(problem, {"base": settings}, gaussian_prior(), truth, tmp_path / "job", 10)
    job.start()
    assert job.wait(10)
    assert job.view.state == "failed"
    assert "needs a linear physics" in job.view.message


def test_the_end_of_a_visit_ends_its_job_and_removes_its_folder(tmp_path: Path) -> None:
    visit = Visit.begin(tmp_path / "work")
    job = job_of(tmp_path, gaussian_prior(0.05), str(tmp_path), steps=200)
    visit.take(job)
    job.start()
    visit.end()
    assert job.wait(5)
    assert not visit.folder.exists()


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
        (b"no picture at all", "photo.png", "no picture that can be read"),
        (b"", "photo.png", "no picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "photo.eps", "no picture that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "photo.svg", "no picture that can be read"),
        (png(64, 64, grain=40)[:3000], "cut.png", "damaged"),
        (bomb(60_000, 60_000), "bomb.png", "too many pixels"),
        (bomb(800, 600), "many.png", "too many pixels"),
        (png(600, 3), "strip.png", "too narrow"),
    ],
)
def test_a_wrong_file_is_refused_with_a_line(visitor: Visitor, data: bytes, name: str, told: str) -> None:
    line = visitor.take(data, name) or visitor.restore("grainy")[0]
    assert told in line
    assert "/tmp" not in line
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


def test_numbers_out_of_range_are_refused(visitor: Visitor) -> None:
    visitor.take(png(20, 20))
    visitor.choose("grainy")
    event = visitor.event("start", "click")
    for change in ({"steps": 10**6}, {"samples": 99}, {"side": 4096}, {"solver": "../x"}, {"seed": -1}):
        visitor.join(event, visitor.asked("grainy", **change)).raise_for_status()
        *_, last = visitor.messages()
        assert not last["success"], change


def test_twenty_visitors_at_once_are_not_mixed(page: tuple[str, Path]) -> None:
    """Each gives a picture of its own colour and a seed, and gets what `restore` makes of them alone."""
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
        assert "Finished" in line
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
        sample = load(files["base/sample-00.safetensors"])["sample"]
        torch.testing.assert_close(sample, expected.samples[0, 0], rtol=0, atol=1e-6)


def test_paint_arrives_as_the_page_sends_it(visitor: Visitor) -> None:
    """Through the editor's own way for pictures, and as an uploaded layer; a bomb is refused there too."""
    visitor.take(png(40, 32))
    layer = Image.new("RGBA", (40, 32))
    layer.paste((255, 0, 0, 255), (8, 8, 16, 16))
    data = io.BytesIO()
    layer.save(data, format="PNG")
    form = {"type": "layer", "index": "0", "id": visitor.session, "fn_name": "accept_blobs"}
    form |= {"component_id": str(visitor.ids["paint"]), "session_hash": visitor.session}
    sent = visitor.http.post("/gradio_api/component_server", data=form, files={"file": ("blob", data.getvalue())})
    assert sent.status_code == 200, sent.text
    empty = {"background": None, "layers": [], "composite": None}
    for paint in (empty | {"id": visitor.session}, empty | {"layers": [visitor.upload(data.getvalue(), "layer.png")]}):
        line, files = visitor.restore("scratches", paint=paint)
        assert "Finished" in line
        mask = load(files["measurement.safetensors"])["task.mask"].squeeze()
        assert float((1 - mask).sum()) == pytest.approx(64, abs=32)
        assert float(mask[10:14, 10:14].sum()) == 0
    line, _ = visitor.restore("scratches", paint=empty | {"layers": [visitor.upload(bomb(9000, 9000), "l.png")]})
    assert "too many pixels" in line


def test_a_visitor_who_leaves_takes_the_job_along(tmp_path: Path) -> None:
    def working() -> int:
        return sum(thread.name == "restoration" for thread in threading.enumerate())

    with server(tmp_path, delay=0.05) as (address, _):
        visitor = Visitor(address)
        visitor.take(png(20, 20))
        visitor.choose("grainy")
        visitor.join(visitor.event("start", "click"), visitor.asked("grainy", steps=400)).raise_for_status()
        for message in visitor.messages():
            if message["msg"] == "process_generating":
                break
        assert working() == 1
        visitor.http.close()
        end = time.monotonic() + 15
        while working() and time.monotonic() < end:
            time.sleep(0.1)
        assert working() == 0


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
    for name in ("layout", "shown"):
        monkeypatch.delitem(sys.modules, f"cmidiff.app.web.{name}", raising=False)
    result = CliRunner().invoke(app, ["serve", "--port", "0"])
    assert result.exit_code == 2
    assert "cmidiff[app]" in result.stderr
