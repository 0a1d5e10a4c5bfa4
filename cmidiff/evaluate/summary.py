"""What a run says in words: what came out, the rule of the marks, and what the figures do not show."""

from __future__ import annotations

from collections.abc import Iterator

from cmidiff.evaluate.comparison import Comparison
from cmidiff.evaluate.tables import MARKS
from cmidiff.statistics import ALPHA, LEVEL

COST = (
    "Passes: of the network, forward and backward, per sample. Seconds: per unit (an image with all its samples), as "
    "they came on the machine that ran it, whatever else it did."
)
BARS = (
    "A point with CMI lies at the base's mean plus the paired difference, whose 95% interval is its bar; how unlike "
    "the images are is in the tables."
)
PAIRS = "A difference is of complete pairs alone; those that lack a side are counted in the last column."


def state_verdict(comparison: Comparison) -> str:
    """One sentence: in how many cells CMI is better and worse."""
    tests, count = comparison.tests, comparison.verdicts
    if not tests:
        return "No difference between CMI and its base could be tested: that needs two images restored with both."
    few = " (there are too few images for any to be)" if _few(comparison) else ""
    return (
        f"Of {_cells(tests)} tested, CMI is significantly better in {count['better']} and significantly worse in "
        f"{count['worse']}; in {count['open']} the difference is not significant{few}."
    )


def state_rule(comparison: Comparison) -> str:
    """What the marks mean."""
    return (
        f"{MARKS['better']} green: better with CMI; {MARKS['worse']} red: worse. Marked only where Wilcoxon's "
        f"two-sided signed-rank test over the images (of FID and KID a bootstrap) gives p < {ALPHA:g} after Holm's "
        f"correction for {_cells(comparison.tests)}, all that are tested here, and the mean difference has the "
        "sign of the rank sum; what is unmarked is not significant. "
        f"± is half the {LEVEL:.0%} interval of a mean over images (Student's t). Δ is the mean of the paired "
        "differences, of the distance to the best value where that is neither high nor low; its interval is below."
        + (" The seeds of an image are averaged first." if comparison.seeds else "")
    )


def list_caveats(comparison: Comparison) -> list[str]:
    """All that is missing, most important first; nothing is dropped without a word."""
    return [*_units(comparison), *_pairs(comparison), *_images(comparison), *_absent(comparison)]


def list_facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What was run, as (name, value)."""
    about = comparison.about
    units = sum(tally.units for tally in comparison.tallies.values())
    config = about["config"]
    return [
        ("images", f"{comparison.usable}"),
        ("units", f"{units}: {', '.join(_endings(comparison))}"),
        ("tasks", ", ".join(comparison.tasks)),
        ("prior", str(about["prior"]["name"])),
        ("steps", ", ".join(str(steps) for steps in sorted({line.steps for line in comparison.lines}))),
        ("strength of CMI, η", ", ".join(f"{eta:g}" for eta in comparison.strengths) or "none"),
        ("samples per unit", str(config["samples"])),
        ("noise", str(config["noise_std"])),
        ("machine", str(about["machine"]["kind"])),
        ("started", str(about["created"])),
    ]


def _endings(comparison: Comparison) -> Iterator[str]:
    for status, word in (("ok", "finished"), ("diverged", "diverged"), ("failed", "failed"), ("pending", "missing")):
        if status == "ok" or comparison.total(status):
            yield f"{comparison.total(status)} {word}"


def _units(comparison: Comparison) -> Iterator[str]:
    units = sum(tally.units for tally in comparison.tallies.values())
    if missing := comparison.total("pending"):
        yield (
            f"Unfinished: {missing} of {units} units are missing. All figures are of what there is; the same "
            "cmidiff evaluate command goes on."
        )
    if failed := comparison.total("failed"):
        reasons = "; ".join(f"{error} ({count} times)" if count > 1 else error for error, count in comparison.faults)
        yield f"Failed: {failed} of {units} units, which have no figures (cmidiff evaluate --retry-failed): {reasons}"
    if diverged := comparison.total("diverged"):
        yield f"Diverged: {diverged} of {units} units gave no finite sample and have no figures."
    if samples := comparison.total("samples_diverged"):
        yield f"Diverged: {samples} single samples of units that finished; their figures are of the other samples."


def _pairs(comparison: Comparison) -> Iterator[str]:
    present = {quality.name for quality in comparison.present}
    lacking = [e.incomplete for (_, name), e in comparison.entries.items() if name in present and e.incomplete]
    if lacking:
        yield (
            f"Incomplete pairs: in {_cells(len(lacking))} up to {max(lacking)} pairs lack a side; the differences are "
            "of complete pairs alone. Where the hard images are the ones that a side lacks, its means flatter it."
        )
    if comparison.usable == 1:
        yield "One image only: there are no intervals and no tests; nothing can be said about other images."
    elif _few(comparison):
        yield (
            f"Too few images for any mark: with {_cells(comparison.tests)} tested, at least "
            f"{comparison.images_needed} complete pairs are needed; there are {comparison.most_pairs}."
        )
    if any(line.cmi and not _has_base(comparison, line.solver, line.steps) for line in comparison.lines):
        yield "Some rows with CMI have no base with the same solver and steps: they are compared with nothing."


def _few(comparison: Comparison) -> bool:
    """Whether no cell could be significant, for any differences."""
    return comparison.tests > 0 and comparison.most_pairs < comparison.images_needed


def _has_base(comparison: Comparison, solver: str, steps: int) -> bool:
    return any((line.solver, line.steps, line.cmi) == (solver, steps, False) for line in comparison.lines)


def _images(comparison: Comparison) -> Iterator[str]:
    for image in comparison.images:
        if image.error is not None:
            yield f"Image left out: {image.name}: {image.error}"


def _absent(comparison: Comparison) -> Iterator[str]:
    for quality in comparison.absent:
        yield f"No {quality.title}: {quality.metric.absent}"


def _cells(count: int) -> str:
    return f"{count} cell" + ("s" if count != 1 else "")
