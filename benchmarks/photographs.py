"""What a person with a damaged photograph gets, beside what they have for free.

Jobs on photographs of a folder, cropped to a size: enlarge x4, scratches, a hole, blur with the right kernel, with a
wrong one and with one whose width is found, noise of known and of unknown level, and JPEG artefacts. cmidiff runs with
the defaults of the command line: the point estimate, one sample, and the mean of 4. The free methods are tuned on each
image for the highest PSNR, which no user can do: they are given every advantage.

    pip install 'cmidiff[benchmark]'
    python benchmarks/photographs.py IMAGES --out runs/photographs --size 128 --sampled 2

It resumes: a result that is in the table is not computed again. LPIPS needs its weights in torch's cache (see
`cmidiff.metrics.lpips`); without them the column is empty.
"""

import csv
import io
import math
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import numpy as np
import torch
import typer
from deepinv.physics import Denoising, GaussianNoise, Inpainting, LinearPhysics
from PIL import Image, ImageDraw
from rich.console import Console
from torch import Tensor
from torch.nn.functional import interpolate, pad

from cmidiff import load_prior, measure, restore
from cmidiff.app.clues import doubt_width
from cmidiff.app.compressed import sigma_denoiser
from cmidiff.metrics import lpips, psnr, ssim
from cmidiff.physics import (
    Tables,
    ValidBlur,
    canvas_shape,
    estimate_blur_width,
    estimate_noise,
    from_kernel,
    parse_kernel,
    read_tables,
    restore_jpeg,
    super_resolution,
)
from cmidiff.result import RestorationWarning

COLUMNS: list[str] = [*("job", "image", "size", "prior", "method", "psnr", "ssim", "lpips", "hidden_psnr", "seconds")]
OURS = ("estimate", "sample", "mean of 4")
console = Console(stderr=True)
Make = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """A damaged image: the truth, what was measured, the physics that is assumed, and the free methods."""

    truth: Tensor
    y: Tensor
    physics: LinearPhysics
    free: dict[str, Make]
    hidden: Tensor | None = None
    tables: Tables | None = None

    def crop(self, x: Tensor) -> Tensor:
        """The part of a restoration that the photograph shows."""
        return self.physics.crop(x) if isinstance(self.physics, ValidBlur) else x


def enlarge(x: Tensor, seed: int) -> Case:
    """A quarter of the side, noise 0.01."""
    physics = super_resolution(x.shape[1:], factor=4, noise_std=0.01)
    y = measure(x, physics, seed=seed)

    def resized(mode: Image.Resampling) -> Make:
        return lambda: from_pil(to_pil(y).resize((x.shape[3], x.shape[2]), mode))

    free = {"bicubic": resized(Image.Resampling.BICUBIC), "Lanczos": resized(Image.Resampling.LANCZOS)}
    return Case(x, y, physics, free)


def fill(x: Tensor, seen: Tensor, seed: int) -> Case:
    """Hidden pixels; the others have noise 0.01."""
    shape: Any = tuple(x.shape[1:])
    physics = Inpainting(shape, mask=seen.expand(1, *x.shape[1:]), noise_model=gaussian(0.01))
    y, hidden = measure(x, physics, seed=seed), seen == 0
    mask = hidden[0, 0].numpy()

    def opencv(flag: int) -> Make:
        def run() -> Tensor:
            import cv2  # pyright: ignore[reportMissingImports]

            image = (array(y).clip(0, 1) * 255).round().astype(np.uint8)
            return tensor(cv2.inpaint(image, mask.astype(np.uint8), 3, flag) / 255.0)

        return run

    def biharmonic() -> Tensor:
        from skimage.restoration import inpaint_biharmonic  # pyright: ignore[reportMissingImports]

        return tensor(inpaint_biharmonic(array(y), mask, channel_axis=2))

    free = {"TELEA": opencv(1), "Navier-Stokes": opencv(0), "biharmonic": biharmonic}
    return Case(x, y, physics, free, hidden)


def scratches(x: Tensor, seed: int) -> Case:
    """Thin strokes over 4% of the image."""
    height, width = x.shape[2:]
    draw, image = random.Random(seed), Image.new("L", (width, height), 255)
    while np.asarray(image).mean() > 0.96 * 255:
        ends = [draw.randrange(width), draw.randrange(height), draw.randrange(width), draw.randrange(height)]
        ImageDraw.Draw(image).line(ends, fill=0, width=max(2, width // 64))
    return fill(x, tensor(np.asarray(image) / 255.0).round(), seed)


def hole(side: int) -> Callable[[Tensor, int], Case]:
    """A hidden square in the middle."""

    def make(x: Tensor, seed: int) -> Case:
        seen = torch.ones(1, 1, *x.shape[2:])
        top, left = ((n - side) // 2 for n in x.shape[2:])
        seen[..., top : top + side, left : left + side] = 0
        return fill(x, seen, seed)

    return make


def blur(guess: float | None) -> Callable[[Tensor, int], Case]:
    """Gaussian blur of 1.5 pixels, noise 0.01; the surroundings of the photograph are unknown.

    Args:
        guess: the assumed width over the true one; None: the width is found in the image.
    """

    def make(x: Tensor, seed: int) -> Case:
        true = from_kernel(parse_kernel("gaussian:1.5"), x.shape[1:], padding="valid", noise_std=0.01)
        y = measure(x, true, seed=seed)
        width = float(estimate_blur_width(y[0], 0.01)) if guess is None else 1.5 * guess
        kernel = parse_kernel(f"gaussian:{width}")
        noise_std = 0.01 if guess in (None, 1.0) else doubt_width(y[0], width, 0.01)[0]  # as the command line does
        assumed = from_kernel(kernel, canvas_shape(kernel, y.shape[1:]), padding="valid", noise_std=noise_std)
        assert isinstance(true, ValidBlur)
        truth, side = true.crop(x), 16
        padded, point = pad(y, (side,) * 4, mode="reflect")[0].numpy().astype(np.float64), kernel.numpy()

        def each_channel(run: Callable[[np.ndarray], np.ndarray]) -> Tensor:
            return tensor(np.stack([run(channel)[side:-side, side:-side] for channel in padded], -1))

        def wiener() -> Tensor:
            from skimage.restoration import wiener as filtered  # pyright: ignore[reportMissingImports]

            tries = [
                each_channel(lambda c, b=b: np.asarray(filtered(c, point, b, clip=False)))
                for b in np.logspace(-4, 0, 17)
            ]
            return best(tries, truth)

        def richardson_lucy() -> Tensor:
            from skimage.restoration import richardson_lucy as iterated  # pyright: ignore[reportMissingImports]

            tries = [each_channel(lambda c, n=n: iterated(c.clip(0.01), point, n)) for n in (2, 3, 5, 8, 12, 20, 40)]
            return best(tries, truth)

        def tv() -> Tensor:
            return best([total_variation(y, assumed, w) for w in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)], truth)

        free = {"input": lambda: y, "Wiener": wiener, "Richardson-Lucy": richardson_lucy, "TV": tv}
        return Case(truth, y, assumed, free)

    return make


def total_variation(y: Tensor, physics: LinearPhysics, weight: float, iterations: int = 60) -> Tensor:
    """``argmin_x |y - A x|^2 / 2 + weight TV(x)`` by FISTA (Beck, Teboulle 2009), on the canvas with unknown border."""
    from skimage.restoration import denoise_tv_chambolle  # pyright: ignore[reportMissingImports]

    assert isinstance(physics, ValidBlur)
    reach = [n // 2 for n in physics.kernel.shape[-2:]]
    x = v = pad(y, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    t = 1.0
    for _ in range(iterations):
        z = v + physics.A_adjoint(y - physics.A(v))
        new = tensor(denoise_tv_chambolle(array(z), weight, channel_axis=2, max_num_iter=15))
        t_new = 0.5 * (1 + math.sqrt(1 + 4 * t**2))
        x, v, t = new, new + (t - 1) / t_new * (new - x), t_new
    return physics.crop(x)


def noise(level: float, *, known: bool) -> Callable[[Tensor, int], Case]:
    """White noise; where its level is not known, cmidiff estimates it, and the free methods are still given it."""

    def make(x: Tensor, seed: int) -> Case:
        y = measure(x, Denoising(noise_model=gaussian(level)), seed=seed)
        physics = Denoising(noise_model=gaussian(level if known else float(estimate_noise(y[0]))))

        def nlm() -> Tensor:
            from skimage.restoration import denoise_nl_means  # pyright: ignore[reportMissingImports]

            options: dict[str, Any] = {"patch_size": 5, "patch_distance": 7, "sigma": level, "channel_axis": 2}
            return best([tensor(denoise_nl_means(array(y), h=h * level, **options)) for h in (0.4, 0.6, 0.8, 1.0)], x)

        def tv() -> Tensor:
            from skimage.restoration import denoise_tv_chambolle  # pyright: ignore[reportMissingImports]

            weights = np.linspace(0.02, 0.2, 10)
            return best([tensor(denoise_tv_chambolle(array(y), w, channel_axis=2)) for w in weights], x)

        def bm3d() -> Tensor:
            from bm3d import bm3d_rgb  # pyright: ignore[reportMissingImports]

            return tensor(bm3d_rgb(array(y), level))

        return Case(x, y, physics, {"NLM": nlm, "TV": tv, "BM3D": bm3d, "FFDNet": lambda: ffdnet()(y, level)})

    return make


def jpeg(quality: int) -> Callable[[Tensor, int], Case]:
    """JPEG artefacts; chroma is halved."""

    def make(x: Tensor, seed: int) -> Case:
        buffer = io.BytesIO()
        to_pil(x).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as file:
            y, tables = from_pil(file.convert("RGB")), read_tables(file)
        levels = [n / 255 for n in (4, 6, 8, 10, 12, 14, 16, 20, 24)]
        free: dict[str, Make] = {"input": lambda: y}
        free["FFDNet, best level"] = lambda: best([ffdnet()(y, level) for level in levels], x)
        return Case(x, y, Denoising(noise_model=gaussian(0.0)), free, tables=tables)

    return make


JOBS: dict[str, Callable[[Tensor, int], Case]] = {
    "enlarge x4": enlarge,
    "scratches 4%": scratches,
    "hole 24": hole(24),
    "hole 32": hole(32),
    "blur 1.5": blur(1.0),
    "blur, guessed 0.7": blur(0.7),
    "blur, guessed 1.3": blur(1.3),
    "blur, width found": blur(None),
    "noise 25": noise(25 / 255, known=True),
    "noise 25, level found": noise(25 / 255, known=False),
    "JPEG 15": jpeg(15),
    "JPEG 30": jpeg(30),
    "JPEG 50": jpeg(50),
}
JUDGED = {"hidden_psnr": ("scratches 4%", "hole 24", "hole 32")}  # by the hidden pixels alone


def ours(case: Case, prior: Any, seed: int, methods: list[str]) -> list[tuple[str, Tensor, float]]:
    """Method, image and seconds of cmidiff."""
    found, start = [], time.perf_counter()
    if case.tables is not None:
        if "estimate" in methods:
            found = [("estimate", restore_jpeg(case.y, sigma_denoiser(prior, None), case.tables))]
            return [(*found[0], time.perf_counter() - start)]
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RestorationWarning)
        if "estimate" in methods:
            image = restore(case.y, case.physics, prior, seed=seed).estimate
            found.append(("estimate", case.crop(image), time.perf_counter() - start))
        if "sample" in methods:
            start = time.perf_counter()
            drawn = restore(case.y, case.physics, prior, solver="cadps", samples=4, seed=seed)
            seconds = time.perf_counter() - start
            found.append(("sample", case.crop(drawn.samples[:, 0]), seconds / 4))
            found.append(("mean of 4", case.crop(drawn.mean), seconds))
    return found


def score(case: Case, image: Tensor) -> dict[str, float | str]:
    """PSNR, SSIM and LPIPS of an image, and the PSNR of its hidden pixels."""
    shown = image.clamp(0, 1).float()
    found: dict[str, float | str] = {"psnr": float(psnr(shown, case.truth)), "ssim": float(ssim(shown, case.truth))}
    try:
        found["lpips"] = float(lpips(shown, case.truth))
    except FileNotFoundError:
        found["lpips"] = ""
    if case.hidden is not None:
        error = (shown - case.truth)[case.hidden.expand_as(shown)]
        found["hidden_psnr"] = float(-10 * error.square().mean().log10())
    return found


def run(
    images: Annotated[Path, typer.Argument(help="Folder of images.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/photographs"),
    kinds: Annotated[str, typer.Option(help="Beginnings of the names of the images, with commas.")] = "kodak,imagenet",
    size: Annotated[int, typer.Option(help="Side of the crops in pixels.")] = 128,
    count: Annotated[int, typer.Option(help="Images of each kind.")] = 6,
    sampled: Annotated[int, typer.Option(help="Of them, those of which samples are drawn.")] = 1,
    prior: Annotated[str, typer.Option(help="Name of the prior.")] = "photo",
    jobs: Annotated[str, typer.Option(help="Jobs, separated by semicolons; all by default.")] = ";".join(JOBS),
    free: Annotated[bool, typer.Option(help="Run the free methods, too.")] = True,
) -> None:
    """Run the jobs and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    table, network = out / "results.csv", load_prior(prior)
    done = {tuple(row[name] for name in COLUMNS[:5]) for row in read_rows(table)}
    chosen = [
        (path, place) for kind in kinds.split(",") for place, path in enumerate(sorted(images.glob(f"{kind}*"))[:count])
    ]
    for methods in (OURS[:1], OURS):
        for path, place in chosen:
            for job in JOBS:
                wanted = [*methods] if place < sampled else [*methods[:1]]
                if job not in jobs.split(";"):
                    continue
                key = (job, path.name, str(size), prior)
                case = JOBS[job](crop(path, size), place)
                ahead = {name: make for name, make in case.free.items() if free and (*key, name) not in done}
                mine = [name for name in wanted if (*key, name) not in done]
                results = [(name, *timed(make)) for name, make in ahead.items()] + ours(case, network, place, mine)
                rows = [
                    dict(zip(COLUMNS, (*key, method), strict=False))
                    | score(case, image)
                    | {"seconds": f"{seconds:.2f}"}
                    for method, image, seconds in results
                ]
                if rows:
                    draw_sheet(case, results, out / f"{path.stem}-{size}-{prior}-{job.replace(' ', '-')}.png")
                    append(table, rows)
                    done |= {(*key, str(row["method"])) for row in rows}
                    console.print(f"{job}, {path.stem}: " + ", ".join(f"{r['method']} {r['psnr']:.2f}" for r in rows))
    rows = [row for row in read_rows(table) if row["size"] == str(size) and row["prior"] == prior]
    print(f"{all_figures(rows)}\n\n{gains(rows)}")


def all_figures(rows: list[dict[str, str]]) -> str:
    """Means over the images, as Markdown."""
    lines = [
        "| job | method | images | PSNR | SSIM | LPIPS | PSNR of hidden pixels | seconds |",
        f"|{'---|' * 8}",
    ]
    digits = {"psnr": ".2f", "ssim": ".3f", "lpips": ".3f", "hidden_psnr": ".2f", "seconds": ".1f"}
    for job in dict.fromkeys(row["job"] for row in rows):
        for method in dict.fromkeys(row["method"] for row in rows if row["job"] == job):
            chosen = [row for row in rows if (row["job"], row["method"]) == (job, method)]
            values = {name: [float(row[name]) for row in chosen if row[name]] for name in digits}
            figures = [format(mean(v), digits[name]) if v else "-" for name, v in values.items()]
            lines.append(f"| {job} | {method} | {len(chosen)} | {' | '.join(figures)} |")
    return "\n".join(lines)


def gains(rows: list[dict[str, str]]) -> str:
    """The estimate against each free method, paired, with standard errors, as Markdown."""
    lines = ["| job | against | gain of the estimate, dB |", "|---|---|---|"]
    for job in dict.fromkeys(row["job"] for row in rows):
        measure = next((name for name, jobs in JUDGED.items() if job in jobs), "psnr")
        value = {(row["method"], row["image"]): float(row[measure]) for row in rows if row["job"] == job}
        for method in dict.fromkeys(method for method, _ in value if method not in OURS):
            gaps = [value["estimate", i] - v for (m, i), v in value.items() if m == method and ("estimate", i) in value]
            error = f" ± {stdev(gaps) / math.sqrt(len(gaps)):.2f}" if len(gaps) > 1 else ""
            lines.append(f"| {job} | {method} | {mean(gaps):+.2f}{error} |")
    return "\n".join(lines)


def best(tries: list[Tensor], truth: Tensor) -> Tensor:
    return max(tries, key=lambda image: float(psnr(image.clamp(0, 1), truth)))


@cache
def ffdnet() -> Callable[[Tensor, float], Tensor]:
    return sigma_denoiser(load_prior("photo"), None)  # FFDNet at these levels


def gaussian(sigma: float) -> Any:
    return GaussianNoise(sigma)


def array(x: Tensor) -> np.ndarray:
    return x[0].permute(1, 2, 0).numpy().astype(np.float64)


def tensor(values: np.ndarray) -> Tensor:
    values = values[..., None] if values.ndim == 2 else values
    return torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)[None].float()


def to_pil(x: Tensor) -> Image.Image:
    return Image.fromarray((array(x.clamp(0, 1)) * 255).round().astype(np.uint8))


def from_pil(image: Image.Image) -> Tensor:
    return tensor(np.asarray(image) / 255.0)


def crop(path: Path, size: int) -> Tensor:
    """The middle of a photograph."""
    image = from_pil(Image.open(path).convert("RGB"))
    top, left = ((n - size) // 2 for n in image.shape[2:])
    return image[..., top : top + size, left : left + size].contiguous()


def timed(make: Make) -> tuple[Tensor, float]:
    start = time.perf_counter()
    return make(), time.perf_counter() - start


def draw_sheet(case: Case, results: list[tuple[str, Tensor, float]], path: Path) -> None:
    """Truth, measurement and all results side by side."""
    side = tuple(case.truth.shape[2:])
    seen = case.y if case.y.shape == case.truth.shape else interpolate(case.y, side)
    tiles = [to_pil(image) for image in (case.truth, seen, *(image for _, image, _ in results))]
    sheet = Image.new("RGB", (len(tiles) * (side[1] + 2), side[0] + 12), "white")
    for k, (tile, name) in enumerate(zip(tiles, ["truth", "measured", *(name for name, _, _ in results)], strict=True)):
        sheet.paste(tile, (k * (side[1] + 2), 12))
        ImageDraw.Draw(sheet).text((k * (side[1] + 2), 0), name, fill="black")
    sheet.save(path)


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    typer.run(run)
