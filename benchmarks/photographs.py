"""What a person with a damaged photograph gets, beside what they have for free.

Jobs on the Kodak and ImageNet images of a folder, cropped to a size: enlarge x4, scratches, a hole, blur with the right
and with a wrong kernel, noise, and JPEG artefacts. cmidiff runs with the defaults of the command line: the point
estimate, one sample, and the mean of 4. The free methods are tuned on each image for the highest PSNR, which no user
can do: they are given every advantage.

    pip install 'cmidiff[benchmark]'
    python benchmarks/photographs.py IMAGES --out runs/photographs --size 128

It resumes: a job of an image that is in the results is not run again. Without LPIPS networks (torchmetrics fetches
them) the column is empty.
"""

import csv
import io
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import torch
import typer
from deepinv.physics import Denoising, GaussianNoise, Inpainting, LinearPhysics
from PIL import Image, ImageDraw
from rich.console import Console
from torch import Tensor
from torch.nn.functional import interpolate

from cmidiff import load_prior, measure, restore
from cmidiff.metrics import psnr, ssim
from cmidiff.physics import deblur_gaussian, super_resolution
from cmidiff.result import RestorationWarning

COLUMNS: list[str] = [*("job", "image", "size", "prior", "method", "psnr", "ssim", "lpips", "hidden_psnr", "seconds")]
console = Console(stderr=True)


@dataclass(frozen=True)
class Case:
    """A damaged image: the truth, what was measured, the physics that is assumed, and the free methods."""

    truth: Tensor
    y: Tensor
    physics: LinearPhysics
    free: dict[str, Callable[[], Tensor]]
    hidden: Tensor | None = None


def enlarge(x: Tensor, seed: int) -> Case:
    physics = super_resolution(x.shape[1:], factor=4, noise_std=0.01)
    y = measure(x, physics, seed=seed)

    def resized(mode: Image.Resampling) -> Callable[[], Tensor]:
        return lambda: from_pil(to_pil(y).resize((x.shape[3], x.shape[2]), mode))

    free = {"bicubic": resized(Image.Resampling.BICUBIC), "Lanczos": resized(Image.Resampling.LANCZOS)}
    return Case(x, y, physics, free)


def fill(x: Tensor, seen: Tensor, seed: int) -> Case:
    shape: Any = tuple(x.shape[1:])
    physics = Inpainting(shape, mask=seen.expand(1, *x.shape[1:]), noise_model=gaussian(0.01))
    y, hidden = measure(x, physics, seed=seed), seen == 0
    mask = hidden[0, 0].numpy()

    def opencv(flag: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            import cv2

            image = (array(y) * 255).round().astype(np.uint8)
            return tensor(cv2.inpaint(image, mask.astype(np.uint8), 3, flag) / 255.0)

        return run

    def biharmonic() -> Tensor:
        from skimage.restoration import inpaint_biharmonic

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


def hole(x: Tensor, seed: int) -> Case:
    """A square of 32 pixels in the middle."""
    seen = torch.ones(1, 1, *x.shape[2:])
    top, left = (n // 2 - 16 for n in x.shape[2:])
    seen[..., top : top + 32, left : left + 32] = 0
    return fill(x, seen, seed)


def blur(guess: float) -> Callable[[Tensor, int], Case]:
    """Blur of std 1.5 pixels; ``guess`` is the assumed width over the true one."""

    def make(x: Tensor, seed: int) -> Case:
        true = deblur_gaussian(x.shape[1:], kernel_size=13, std=1.5, noise_std=0.01)
        assumed = deblur_gaussian(x.shape[1:], kernel_size=17, std=1.5 * guess, noise_std=0.01)
        y = measure(x, true, seed=seed)
        kernel = point_spread(assumed, x)

        def each_channel(run: Callable[..., Any]) -> Tensor:
            return tensor(np.stack([run(channel) for channel in y[0].numpy()], -1))

        def wiener() -> Tensor:
            from skimage.restoration import wiener as filtered

            tries = [each_channel(lambda c, b=b: filtered(c, kernel, b, clip=False)) for b in np.logspace(-4, 0, 9)]
            return best(tries, x)

        def richardson_lucy() -> Tensor:
            from skimage.restoration import richardson_lucy as iterated

            tries = [each_channel(lambda c, n=n: iterated(c.clip(0.01), kernel, n)) for n in (3, 5, 10, 20, 40)]
            return best(tries, x)

        return Case(x, y, assumed, {"input": lambda: y, "Wiener": wiener, "Richardson-Lucy": richardson_lucy})

    return make


def noise(level: float) -> Callable[[Tensor, int], Case]:
    """White noise of a known level."""

    def make(x: Tensor, seed: int) -> Case:
        physics = Denoising(noise_model=gaussian(level))
        y = measure(x, physics, seed=seed)

        def nlm() -> Tensor:
            from skimage.restoration import denoise_nl_means

            options: dict[str, Any] = {"patch_size": 5, "patch_distance": 7, "sigma": level, "channel_axis": 2}
            return best([tensor(denoise_nl_means(array(y), h=h * level, **options)) for h in (0.4, 0.6, 0.8, 1.0)], x)

        def tv() -> Tensor:
            from skimage.restoration import denoise_tv_chambolle

            return best(
                [tensor(denoise_tv_chambolle(array(y), w, channel_axis=2)) for w in np.linspace(0.02, 0.2, 10)], x
            )

        def bm3d() -> Tensor:
            from bm3d import bm3d_rgb

            return tensor(bm3d_rgb(array(y), level))

        return Case(x, y, physics, {"NLM": nlm, "TV": tv, "BM3D": bm3d})

    return make


JOBS: dict[str, Callable[[Tensor, int], Case]] = {
    "enlarge x4": enlarge,
    "scratches 4%": scratches,
    "hole 32": hole,
    "blur 1.5": blur(1.0),
    "blur, guessed 0.7": blur(0.7),
    "blur, guessed 1.3": blur(1.3),
    "noise 25": noise(25 / 255),
}


def ours(case: Case, prior: Any, seed: int) -> Iterator[tuple[str, Tensor, float]]:
    """Method, image and seconds of cmidiff."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RestorationWarning)
        start = time.perf_counter()
        yield "estimate", restore(case.y, case.physics, prior, seed=seed).estimate, time.perf_counter() - start
        start = time.perf_counter()
        drawn = restore(case.y, case.physics, prior, solver="cadps", samples=4, seed=seed)
        seconds = time.perf_counter() - start
    yield "sample", drawn.samples[:, 0], seconds / 4
    yield "mean of 4", drawn.mean, seconds


def score(case: Case, image: Tensor, lpips: Any) -> dict[str, float | str]:
    """PSNR, SSIM and LPIPS of an image, and the PSNR of its hidden pixels."""
    shown = image.clamp(0, 1)
    found: dict[str, float | str] = {"psnr": float(psnr(shown, case.truth)), "ssim": float(ssim(shown, case.truth))}
    found["lpips"] = "" if lpips is None else float(lpips(shown.float(), case.truth.float()))
    found["hidden_psnr"] = ""
    if case.hidden is not None:
        error = (shown - case.truth)[case.hidden.expand_as(shown)]
        found["hidden_psnr"] = float(-10 * error.square().mean().log10())
    return found


def run(
    images: Annotated[Path, typer.Argument(help="Folder of images; those named kodak* and imagenet* are taken.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/photographs"),
    size: Annotated[int, typer.Option(help="Side of the crops in pixels.")] = 128,
    count: Annotated[int, typer.Option(help="Images of each kind.")] = 6,
    prior: Annotated[str, typer.Option(help="Name of the prior.")] = "photo",
    jobs: Annotated[str, typer.Option(help="Jobs, separated by semicolons; all by default.")] = ";".join(JOBS),
) -> None:
    """Run the jobs and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    table, network, lpips = out / "results.csv", load_prior(prior), _lpips()
    done = {(row["job"], row["image"], row["size"], row["prior"]) for row in _read(table)}
    for path in _images(images, count):
        for number, job in enumerate(jobs.split(";")):
            if (job, path.name, str(size), prior) in done:
                continue
            truth = _crop(path, size)
            case = JOBS[job](truth, number)
            rows = []
            methods = [(name, make, None) for name, make in case.free.items()]
            results = [(name, *_timed(make)) for name, make, _ in methods] + list(ours(case, network, number))
            for method, image, seconds in results:
                rows.append(
                    {"job": job, "image": path.name, "size": size, "prior": prior, "method": method}
                    | score(case, image, lpips)
                    | {"seconds": round(seconds, 2)}
                )
            _sheet(case, results, out / f"{path.stem}-{size}-{prior}-{job.replace(' ', '-')}.png")
            _append(table, rows)
            console.print(f"{job}, {path.stem}: " + ", ".join(f"{r['method']} {r['psnr']:.2f}" for r in rows))
    print(_report(_read(table), size, prior))


def _report(rows: list[dict[str, str]], size: int, prior: str) -> str:
    """Means over the images, as Markdown."""
    rows = [row for row in rows if row["size"] == str(size) and row["prior"] == prior]
    lines = [
        "| job | method | PSNR | SSIM | LPIPS | PSNR of hidden pixels | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for job, method in dict.fromkeys((row["job"], row["method"]) for row in rows):
        chosen = [row for row in rows if (row["job"], row["method"]) == (job, method)]
        figures = [
            "-" if not (values := [float(row[name]) for row in chosen if row[name]]) else format(mean(values), digits)
            for name, digits in (
                ("psnr", ".2f"),
                ("ssim", ".3f"),
                ("lpips", ".3f"),
                ("hidden_psnr", ".2f"),
                ("seconds", ".1f"),
            )
        ]
        lines.append(f"| {job} | {method} | {' | '.join(figures)} |")
    return "\n".join(lines)


def best(tries: list[Tensor], truth: Tensor) -> Tensor:
    return max(tries, key=lambda image: float(psnr(image.clamp(0, 1), truth)))


def point_spread(physics: LinearPhysics, like: Tensor) -> np.ndarray:
    """The kernel of a blur, (17, 17): the image of one point."""
    point = torch.zeros(1, like.shape[1], 33, 33)
    point[..., 16, 16] = 1
    return physics.A(point)[0, 0, 8:25, 8:25].numpy()


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


def _timed(make: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    return make(), time.perf_counter() - start


def _sheet(case: Case, results: list[tuple[str, Tensor, float]], path: Path) -> None:
    """Truth, measurement and all results side by side."""
    side = tuple(case.truth.shape[2:])
    seen = case.y if case.y.shape == case.truth.shape else interpolate(case.y, side)
    tiles = [to_pil(image) for image in (case.truth, seen, *(image for _, image, _ in results))]
    sheet = Image.new("RGB", (len(tiles) * (side[1] + 2), side[0] + 12), "white")
    for k, (tile, name) in enumerate(zip(tiles, ["truth", "measured", *(name for name, _, _ in results)], strict=True)):
        sheet.paste(tile, (k * (side[1] + 2), 12))
        ImageDraw.Draw(sheet).text((k * (side[1] + 2), 0), name, fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    path.write_bytes(buffer.getvalue())


def _images(folder: Path, count: int) -> list[Path]:
    return [path for kind in ("kodak", "imagenet") for path in sorted(folder.glob(f"{kind}*.png"))[:count]]


def _crop(path: Path, size: int) -> Tensor:
    image = from_pil(Image.open(path).convert("RGB"))
    top, left = ((n - size) // 2 for n in image.shape[2:])
    return image[..., top : top + size, left : left + size].contiguous()


def _lpips() -> Any:
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as distance

    def measured(image: Tensor, truth: Tensor) -> Tensor:
        return distance(image, truth, net_type="alex", normalize=True)

    try:
        measured(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))
    except Exception as error:  # no network, no package: the column stays empty
        console.print(f"no LPIPS ({error})")
        return None
    return measured


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    typer.run(run)
