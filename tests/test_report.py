"""The report of made-up runs whose effect is known: what is marked, what is said, and what the files hold."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cmidiff.app.cli import app
from cmidiff.evaluate import latex, render, summary
from cmidiff.evaluate.cases import list_cases
from cmidiff.evaluate.comparison import Comparison, compare
from cmidiff.evaluate.database import Results, RunError, Writer
from cmidiff.evaluate.plots import draw_plots
from cmidiff.evaluate.records import CellScore, ImageFile, ImageRow, Metric, Outcome, Unit
from cmidiff.evaluate.report import write_report
from cmidiff.result import Status
from cmidiff.statistics import ALPHA, holm, least_p

GAINS, NULL = "sr_x4", "50% & more"  # tasks: CMI helps in one alone; names that LaTeX and HTML have to escape
HOSTILE = "<script>alert('x')</script>"
METRICS = (
    Metric("psnr", "dB", "higher", "peak signal-to-noise ratio"),
    Metric("ssim", "", "higher", "structural similarity"),
    Metric(
        "lpips", "", "lower", "perceptual distance", "weights of alexnet are not at ~/x_y/alex.pth: copy them there"
    ),
    Metric("misfit", "sigma", "none", "data misfit"),
    Metric("fid", "", "lower", "distance of the features' distributions"),
)
ABOUT = {
    "config": {"name": "known", "samples": 2, "noise_std": 0.05},
    "prior": {"name": "natural-64"},
    "machine": {"kind": "2 cores"},
    "created": "2026-01-02T03:04:05+00:00",
}

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

Score = Callable[[Unit, np.random.Generator], dict[str, float]]


def effect(unit: Unit, noise: np.random.Generator) -> dict[str, float]:
    """With CMI 0.8 dB more in one task, and a misfit of 1 for 1.5; nothing but noise in the other."""
    image = int(unit.image.split("-")[0])
    gain = 0.8 if unit.cmi and unit.task == GAINS else 0.0
    return {
        "psnr": 18 + image + gain + noise.normal(0, 0.1),
        "ssim": 0.5 + noise.normal(0, 0.05),
        "misfit": (1.0 if unit.cmi and unit.task == GAINS else 1.5) + noise.normal(0, 0.01),
    }


def grid(
    images: int, *, etas: tuple[float, ...] = (1.0,), steps: tuple[int, ...] = (100,), seeds: int = 1
) -> list[Unit]:
    return [
        Unit(name(i), task, solver, cmi, eta, count, seed)
        for task in (GAINS, NULL)
        for solver in ("dps", "pi_gdm")
        for cmi, eta in ((False, 0.0), *((True, eta) for eta in etas))
        for count in steps
        for i in range(images)
        for seed in range(seeds)
    ]


def name(index: int) -> str:
    return f"{index}-{HOSTILE}"


def write_shade(run: Path, path: str, shade: int, mode: str = "RGB") -> ImageFile:
    (run / path).parent.mkdir(parents=True, exist_ok=True)
    values = np.full((16, 16), shade, np.uint16 if mode == "I;16" else np.uint8)
    Image.fromarray(values).convert(mode if mode == "RGB" else None).save(run / path)
    return ImageFile(path, "")


def outcome(run: Path, unit: Unit, index: int, scores: dict[str, float]) -> Outcome:
    """A finished unit whose images have the shade of its number."""
    kinds = {"sample-0": "RGB", "sample-1": "RGB", "mean": "RGB", "std": "I;16"}
    written = {
        kind: write_shade(run, f"restored/{index}-{kind}.png", index % 256 if mode == "RGB" else 6553, mode)
        for kind, mode in kinds.items()
    }
    return Outcome(
        unit,
        "ok",
        evaluations=100 + 50 * unit.cmi,
        gradients=100 + 50 * unit.cmi,
        seconds=2.0,
        samples=(Status(True, None, ""),) * 2,
        images=written,
        scores=scores,
    )


def make_run(
    run: Path,
    units: list[Unit],
    score: Score = effect,
    *,
    left_out: dict[int, Outcome | None] | None = None,
    bad_image: bool = False,
) -> Path:
    """A run whose units end as ``score`` says; those in ``left_out`` otherwise, or not at all."""
    noise = np.random.default_rng(0)
    names = dict.fromkeys(unit.image for unit in units)
    images = [ImageRow(n, n, "", 16, 16, write_shade(run, f"truth/{i}.png", i).path, None) for i, n in enumerate(names)]
    if bad_image:
        images.append(ImageRow("broken.png", "broken.png", None, None, None, None, "no image: the file is cut off"))
    with Writer(run) as writer:
        writer.plan(ABOUT, images, units, METRICS)
        for index, unit in enumerate(units):
            other = (left_out or {}).get(index, outcome(run, unit, index, score(unit, noise)))
            if other is not None:
                writer.record([other])
        measured = write_shade(run, "measured/y.png", 200).path
        writer.record([], [(u.image, u.task, u.seed, measured) for u in units])
        writer.record_cells([CellScore(units[0].cell, "fid", 123.45, len(names), "Inception")])
    return run


def compared(run: Path) -> Comparison:
    with Results(run) as results:
        return compare(results)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images, two tasks, two solvers, CMI helps in one task."""
    return make_run(tmp_path_factory.mktemp("known") / "run_1 & <b>more</b>", grid(12))


@pytest.fixture(scope="module")
def written(run: Path) -> Path:
    write_report(run)
    return run / "report"


def test_the_known_effect_is_marked_and_the_null_is_not(run: Path) -> None:
    found = compared(run)
    quality = {q.name: q for q in found.qualities}
    for line in (line for line in found.lines if line.cmi):
        for metric in ("psnr", "misfit"):
            assert found.entry(line, GAINS, quality[metric]).verdict(quality[metric]) == "better"
            assert found.entry(line, NULL, quality[metric]).verdict(quality[metric]) == "open"
    assert found.verdicts["better"] == 4
    assert found.verdicts["worse"] == 0


def test_verdict_counts_the_marks_and_twelve_images_are_enough(run: Path) -> None:
    found = compared(run)
    assert summary.state_verdict(found) == (
        "Of 12 cells tested, CMI is significantly better in 4 and significantly worse in 0; in 8 the difference is not "
        "significant."
    )
    assert [text[:8] for text in summary.list_caveats(found)] == ["No LPIPS"]


def test_a_loss_is_marked_as_one(tmp_path: Path) -> None:
    def loss(unit: Unit, noise: np.random.Generator) -> dict[str, float]:
        return {
            "psnr": 20 - 0.8 * unit.cmi + noise.normal(0, 0.1),
            "lpips": 0.4 + 0.1 * unit.cmi + noise.normal(0, 0.01),
        }

    found = compared(make_run(tmp_path, grid(12), loss))
    assert found.verdicts["worse"] == found.tests == 8


def test_mean_and_ranks_that_disagree_are_no_verdict(tmp_path: Path) -> None:
    """CMI gains 0.1 dB on 15 images and loses 9 on one: the ranks are significant, the mean says the opposite."""

    def score(unit: Unit, noise: np.random.Generator) -> dict[str, float]:
        gain = -9.0 if unit.image == name(0) else 0.1 + noise.uniform(0, 0.01)
        return {"psnr": 20 + gain * unit.cmi}

    found = compared(make_run(tmp_path, grid(16), score))
    assert all(e.corrected < ALPHA for e in found.entries.values() if e.corrected is not None)
    assert found.tests == found.verdicts["open"] == 4


def test_difference_is_paired_and_its_interval_is_narrow(run: Path) -> None:
    """PSNR rises by 1 dB from image to image, the gain is 0.8 +- 0.14: unpaired intervals are ten times as wide."""
    found = compared(run)
    psnr = found.qualities[0]
    line = next(line for line in found.lines if line.cmi)
    entry = found.entry(line, GAINS, psnr)
    assert entry.paired is not None
    assert entry.value is not None
    assert entry.paired.difference.low is not None
    assert entry.paired.difference.low < 0.8 < (entry.paired.difference.high or 0)
    assert (entry.value.half or 0) > 10 * (entry.paired.difference.half or 9)
    assert (entry.paired.better, entry.paired.worse) == (12, 0)


def test_all_tested_cells_are_corrected_together(run: Path) -> None:
    """2 tasks x 2 solvers x (PSNR, SSIM, misfit): absent LPIPS and FID, which has one figure per cell, are no tests."""
    found = compared(run)
    tested = [e for e in found.entries.values() if e.corrected is not None]
    assert found.tests == len(tested) == 12
    p = [e.paired.p for e in tested if e.paired and e.paired.p is not None]
    assert [e.corrected for e in tested] == holm(p)


def test_misfit_is_best_at_one(tmp_path: Path) -> None:
    """From 1.3 to 0.9 is a gain, from 1 to 0.5 a loss, though both are lower."""

    def score(unit: Unit, noise: np.random.Generator) -> dict[str, float]:
        base, cmi = (1.3, 0.9) if unit.task == GAINS else (1.0, 0.5)
        return {"misfit": (cmi if unit.cmi else base) + noise.normal(0, 0.001)}

    found = compared(make_run(tmp_path, grid(12), score))
    misfit = next(q for q in found.qualities if q.name == "misfit")
    line = next(line for line in found.lines if line.cmi)
    assert [found.entry(line, task, misfit).verdict(misfit) for task in (GAINS, NULL)] == ["better", "worse"]


def test_seeds_of_an_image_are_no_images(tmp_path: Path) -> None:
    """3 images of 4 seeds: n is 3, and the mean is that of the images' means."""
    found = compared(make_run(tmp_path, grid(3, seeds=4)))
    entry = found.entry(next(line for line in found.lines if line.cmi), GAINS, found.qualities[0])
    assert entry.value is not None
    assert entry.paired is not None
    assert entry.value.n == entry.paired.difference.n == 3
    assert entry.paired.p == pytest.approx(least_p(3))
    assert found.seeds


def test_an_unfinished_run_with_failures_says_so(tmp_path: Path) -> None:
    units = grid(12)
    base = [i for i, u in enumerate(units) if (u.task, u.solver, u.cmi) == (GAINS, "dps", False)]
    diverged = (Status(False, 7, "not finite"),)
    lost: dict[int, Outcome | None] = {
        base[0]: None,
        base[1]: Outcome(units[base[1]], "failed", "out of <memory>", scores={"psnr": 99.0}),
        base[2]: Outcome(units[base[2]], "failed", "out of <memory>"),
        base[3]: Outcome(units[base[3]], "diverged", samples=diverged * 2),
        base[4]: Outcome(units[base[4]], "ok", samples=(*diverged, Status(True, None, "")), scores={"psnr": 20.0}),
    }
    run = make_run(tmp_path, units, left_out=lost, bad_image=True)
    found = compared(run)
    line = next(line for line in found.lines if line.cmi and line.solver == "dps")
    entry = found.entry(line, GAINS, found.qualities[0])
    assert entry.paired is not None
    assert (entry.paired.difference.n, entry.incomplete) == (8, 4)
    write_report(run)
    for file in ("report.html", "report.md"):
        text = (run / "report" / file).read_text().replace("\\", "")
        for said in ("1 of 96 units are missing", "2 of 96 units", "(2 times)", "1 of 96 units gave no finite sample"):
            assert said in text, (file, said)
        assert "1 single samples" in text
        assert "(8 of 12)" in text
        assert "broken.png: no image: the file is cut off" in text
    assert "dagger" in (run / "report" / "table.tex").read_text()


def test_a_run_of_one_image_has_no_intervals_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, grid(1))
    found, _ = write_report(run)
    assert found.tests == 0
    text = (run / "report" / "report.md").read_text()
    assert "One image only" in text
    assert "±" not in text.split("## PSNR")[1]
    assert "pm" not in (run / "report" / "table.tex").read_text()


def test_a_run_where_nothing_finished_has_a_report(tmp_path: Path) -> None:
    units = grid(2)
    run = make_run(tmp_path, units, left_out=dict.fromkeys(range(len(units))))
    write_report(run)
    assert "16 of 16 units are missing" in (run / "report" / "report.html").read_text()


def test_too_few_images_for_any_mark_is_said(tmp_path: Path) -> None:
    """12 tests need n with 12 * 2^(1 - n) < 0.05: 9."""
    run = make_run(tmp_path, grid(4))
    found, _ = write_report(run)
    assert found.images_needed == 9
    text = (run / "report" / "report.md").read_text()
    assert "at least 9 complete pairs" in text
    assert "too few images for any to be" in text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        write_report(tmp_path)


def test_command_line_writes_the_report_and_says_what_is_missing(tmp_path: Path) -> None:
    units = grid(2)
    run = make_run(tmp_path / "run", units, left_out={0: None})
    done = CliRunner().invoke(app, ["report", str(run), "--output", str(tmp_path / "here")])
    assert done.exit_code == 0, done.output
    assert "note: Unfinished: 1 of 16 units are missing" in done.stderr
    assert "Too few images" in done.stderr
    for file in ("report.html", "report.md", "table.tex", "cells.csv", "units.csv"):
        assert str(tmp_path / "here" / file) in done.stdout
        assert (tmp_path / "here" / file).stat().st_size > 0
    assert not (run / "report").exists()


def test_command_line_refuses_what_is_no_run_and_where_it_cannot_write(tmp_path: Path) -> None:
    none = CliRunner().invoke(app, ["report", str(tmp_path / "nothing")])
    assert (none.exit_code, "holds no run" in none.stderr) == (2, True)
    run = make_run(tmp_path / "run", grid(1)[:1])
    (tmp_path / "file").write_text("")
    blocked = CliRunner().invoke(app, ["report", str(run), "--output", str(tmp_path / "file" / "below")])
    assert (blocked.exit_code, "cannot write " in blocked.stderr) == (2, True)


class Page(HTMLParser):
    """Start tags with their attributes, and which elements were not closed."""

    VOID = ("meta", "img", "br", "source", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_fetches_nothing_and_runs_nothing(written: Path) -> None:
    text = (written / "report.html").read_text()
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text), re.IGNORECASE)
    page = Page(text)
    assert not page.open
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "b"}
    for tag, attributes in page.tags:
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "srcset", "href"):
            assert (attributes.get(key) or "data:").startswith(("data:", "#")), tag
        if tag == "img":
            assert attributes["alt"]
    assert "&lt;script&gt;" in text


def test_wide_tables_can_be_scrolled_by_keyboard(written: Path) -> None:
    tags = Page((written / "report.html").read_text()).tags
    tables = sum(tag in ("table", "pre") for tag, _ in tags)
    regions = [a for _, a in tags if a.get("role") == "region" and a.get("tabindex") == "0"]
    assert tables == len(regions) > 0
    assert all(a.get("aria-label") or a.get("aria-labelledby") for a in regions)
    assert all(a.get("scope") in ("row", "col") for tag, a in tags if tag == "th")
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    pointed = {(a.get("href") or "")[1:] for tag, a in tags if tag == "a"} | {
        a["aria-labelledby"] for a in regions if "aria-labelledby" in a
    }
    assert pointed <= set(ids)


def test_page_marks_what_is_significant(written: Path) -> None:
    text = (written / "report.html").read_text()
    assert text.count('<td class="better">') == 8  # four cells, in the results and in the differences
    assert '<td class="worse">' not in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_page_opens_in_a_browser_from_the_disk(written: Path, tmp_path: Path) -> None:
    """Chromium lays the page out: every section is there, and what it could not load would leave a gap in the DOM."""
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=360,740", f"--user-data-dir={tmp_path}")
    command = [str(CHROMIUM), *options, "--dump-dom", (written / "report.html").resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    page = Page(done.stdout)
    assert {"results", "differences", "cost", "cases", "units"} <= {a.get("id") for _, a in page.tags}
    assert not {tag for tag, _ in page.tags} & {"script", "b"}
    assert done.stdout.count("&lt;script&gt;") >= 8


def test_absent_metrics_say_how_to_get_them(written: Path) -> None:
    for file in ("report.html", "report.md"):
        assert "copy them there" in (written / file).read_text()
    assert "Absent for want of their network's weights: LPIPS" in (written / "table.tex").read_text()


def test_fid_says_of_what_it_is(written: Path) -> None:
    for file in ("report.html", "report.md"):
        assert "without interval or test; of 12 images, by the features of Inception" in (written / file).read_text()


def test_markdown_tables_are_even_and_escaped(written: Path) -> None:
    text = (written / "report.md").read_text()
    assert "<script>" not in text.replace("\\<", "")
    blocks = [[line for line in block.split("\n") if line] for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 6
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1
    assert render.escape("a|b_c\n<d>") == r"a\|b\_c \<d\>"
    for path in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (written / path).read_bytes().startswith(b"<?xml")


def test_latex_is_balanced_and_escaped(written: Path) -> None:
    text = (written / "table.tex").read_text()
    bare = re.sub(r"\\[\\{}$&#%_]", lambda m: "\\\\" if m[0] == "\\\\" else "", text)
    depth = 0
    for sign in bare:
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0
    assert re.findall(r"\\begin{(\w+\*?)}", text) == list(reversed(re.findall(r"\\end{(\w+\*?)}", text)))
    rows = [line for line in bare.split("\n") if line.endswith(r"\\")]
    columns = len(re.search(r"begin{tabular}{(\w+)}", text)[1])  # pyright: ignore[reportOptionalSubscript]
    assert columns == 1 + 2 * 3  # FID, SSIM, PSNR of two tasks
    widths = [sum(int(n) for n in re.findall(r"multicolumn{(\d+)}", row)) or row.count("&") for row in rows]
    assert widths == [columns - 1] * len(rows)
    assert r"50\% \& more" in text
    assert r"pi\_gdm + CMI" in text
    assert text.count(r"\cmibetter{") == 2  # PSNR of both solvers; the misfit is no column of the paper


def test_latex_prints_any_text() -> None:
    assert latex.escape("a_b%c&d#e$f{g}h") == r"a\_b\%c\&d\#e\$f\{g\}h"
    assert latex.escape("\\x^~\n[*]") == r"\textbackslash{}x\textasciicircum{}\textasciitilde{} {[}{*}{]}"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(written: Path, tmp_path: Path) -> None:
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs,graphicx,xcolor}"
        f"\\begin{{document}}{(written / 'table.tex').read_text()}\\end{{document}}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_csv_holds_every_figure(written: Path, run: Path) -> None:
    with (written / "cells.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = compared(run)
    assert len(rows) == len(found.entries)
    fid = [float(row["mean"]) for row in rows if row["metric"] == "fid" and row["mean"]]
    assert fid == [123.45]
    assert [row["verdict"] for row in rows].count("better") == 4
    with (written / "units.csv").open(newline="") as file:
        units = list(csv.DictReader(file))
    assert len(units) == 96
    assert {row["image"] for row in units} == {name(i) for i in range(12)}


def test_cases_are_the_median_and_the_worst_by_the_base(run: Path) -> None:
    """The base's PSNR rises with the image's number: the worst is 0; 5 is the lower median of 12."""
    with Results(run) as results:
        found = list_cases(results, compare(results))
        shade = {row.unit: i for i, row in enumerate(results.units())}
    assert [(c.rank, c.image) for c in found] == [("median", name(5)), ("worst", name(0))] * 4
    titles = [tile.title for tile in found[0].tiles]
    assert titles == ["truth", "measurement", "base", "dps + CMI", "std of base", "std of dps + CMI"]
    base, cmi = (Unit(name(5), GAINS, "dps", flag, eta, 100, 0) for flag, eta in ((False, 0.0), (True, 1.0)))
    shown = [tile.image.getpixel((0, 0)) for tile in found[0].tiles if tile.image]
    assert shown[:4] == [(s,) * 3 for s in (5, 200, shade[base], shade[cmi])]


def test_a_case_whose_cmi_diverged_stays(tmp_path: Path) -> None:
    units = grid(3)
    lost: dict[int, Outcome | None] = {i: Outcome(u, "diverged") for i, u in enumerate(units) if u.cmi}
    run = make_run(tmp_path, units, left_out=lost)
    with Results(run) as results:
        found = list_cases(results, compare(results))
    assert len(found) == 8
    tile = found[0].tiles[3]
    assert (tile.title, tile.note, tile.image) == ("dps + CMI", "diverged", None)


def test_curves_hold_every_step_and_strength(tmp_path: Path) -> None:
    units = [u for u in grid(3, etas=(0.5, 1.0, 2.0), steps=(20, 50)) if u.task == GAINS]
    run = make_run(tmp_path, units)
    found = compared(run)
    drawn = {(plot.task, plot.name): plot for plot in draw_plots(found)}
    kinds = ("passes", "seconds", "eta")
    assert set(drawn) == {(GAINS, f"{metric}-{kind}") for metric in ("psnr", "ssim") for kind in kinds}
    assert drawn[GAINS, "psnr-passes"].alt.count(" at ") == 2 * 2 * 2  # solvers, sides, steps
    assert drawn[GAINS, "psnr-eta"].alt.count(" at ") == 2 * 4  # solvers, base and three strengths
    assert found.label(found.lines[-1]) == "pi_gdm + CMI, η = 2, 50 steps"


def test_a_figure_does_not_mistake_missing_images_for_a_gain(tmp_path: Path) -> None:
    """CMI changes nothing, and lacks the two worst of five images: its mean is 1 dB higher, its point is not."""

    def score(unit: Unit, noise: np.random.Generator) -> dict[str, float]:
        return {"psnr": 18.0 + int(unit.image[0])}

    units = grid(5)
    lost: dict[int, Outcome | None] = {i: None for i, u in enumerate(units) if u.cmi and int(u.image[0]) < 2}
    found = compared(make_run(tmp_path, units, score, left_out=lost))
    line = next(line for line in found.lines if line.cmi)
    value = found.entry(line, GAINS, found.qualities[0]).value
    assert value is not None
    assert value.mean == pytest.approx(21)
    alt = next(plot.alt for plot in draw_plots(found) if plot.name == "psnr-passes")
    assert "dps: 20.00 at 200; dps with CMI: 20.00 at 300" in alt


def test_cmi_without_a_base_is_shown_and_compared_with_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, [u for u in grid(2) if u.cmi])
    found, _ = write_report(run)
    assert found.tests == 0
    text = (run / "report" / "report.md").read_text()
    assert "compared with nothing" in text
    assert "dps + CMI" in text


def test_a_strength_for_each_task_is_one_row(tmp_path: Path) -> None:
    """Tuned strengths differ between tasks: they are compared with the same base, and said where the task is."""
    units = [u._replace(eta=0.3) if u.cmi and u.task == NULL else u for u in grid(3)]
    found = compared(make_run(tmp_path, units))
    assert len(found.lines) == 4
    line = found.lines[1]
    assert [found.label(line, task) for task in (None, GAINS, NULL)] == [
        "dps + CMI, η by task",
        "dps + CMI, η = 1",
        "dps + CMI, η = 0.3",
    ]
    for task in (GAINS, NULL):
        pair = found.entry(line, task, found.qualities[0]).paired
        assert pair is not None
        assert pair.difference.n == 3


def test_figures_are_the_same_every_time(tmp_path: Path) -> None:
    found = compared(make_run(tmp_path, [u for u in grid(2) if u.task == GAINS]))
    first, second = draw_plots(found), draw_plots(found)
    assert first == second
    assert all(plot.light != plot.dark for plot in first)
