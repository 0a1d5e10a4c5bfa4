"""What the tests of the page share: a server with a prior whose answers are known, and visitors who speak HTTP."""

from __future__ import annotations

import io
import json
import secrets
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from torch import Tensor

import cmidiff
from cmidiff.app.web.controls import CASES, EXPERIMENT, WISHES, Limits
from cmidiff.app.web.page import CONTROLS
from cmidiff.app.web.server import serving
from cmidiff.prior import NetworkPrior
from cmidiff.schedule import DDPM

LIMITS = Limits(file_bytes=2**20, pixels=400_000, side=64, steps=400, samples=4, seconds=60.0, jobs=2, waiting=40)
VARIANCE = 0.3**2


def gaussian_prior(delay: float = 0.0) -> NetworkPrior:
    """``E[eps | x_t]`` for ``x_0 ~ N(0, v I)``, after a delay in seconds."""
    schedule = DDPM.linear()

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        time.sleep(delay)
        alpha_t, sigma_t = schedule(float(t[0]))
        return sigma_t * x_t / (alpha_t**2 * VARIANCE + sigma_t**2)

    return NetworkPrior(network, "eps", schedule, multiple=8)


@contextmanager
def server(folder: Path, delay: float = 0.0, limits: Limits = LIMITS) -> Iterator[tuple[str, Path]]:
    """A page at an address of its own, on that prior; its address, and the folder that it writes to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))  # Gradio remembers the first folder of a process
        patch.setattr(cmidiff, "load_prior", lambda *_, **__: gaussian_prior(delay), raising=False)
        with serving(replace(limits), priors=[str(folder)], device="cpu", port=0) as (address, root):
            yield address, root


def png(width: int, height: int, colour: tuple[int, int, int] = (120, 80, 40), grain: int = 0) -> bytes:
    """An image of one colour, with grain."""
    values = np.full((height, width, 3), colour, dtype=np.int64)
    values += np.random.default_rng(0).integers(-grain, grain + 1, values.shape)
    data = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(data, format="PNG")
    return data.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be an image of this size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@dataclass
class Visitor:
    """A browser without a screen: uploads, presses buttons, and reads what comes back."""

    address: str
    session: str = field(default_factory=lambda: secrets.token_hex(8))
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    photo: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.address, timeout=60)
        self.config = self.http.get("/config").json()
        (self.prior,) = (c["props"]["value"] for c in self.config["components"] if c["props"].get("elem_id") == "prior")
        self.ids = {c["props"].get("elem_id"): c["id"] for c in self.config["components"] if c["props"].get("elem_id")}
        load = next(d for d in self.config["dependencies"] if [t[1] for t in d["targets"]] == ["load"])
        self.run(load, [self.token])

    def event(self, element: str, trigger: str) -> dict[str, Any]:
        """What the server does at an event of a component, at once or after the browser has done something."""
        wanted, all_events = [self.ids[element], trigger], self.config["dependencies"]
        (first,) = [d for d in all_events if wanted in [list(target) for target in d["targets"]]]
        return first if first["backend_fn"] else self.after(first)

    def after(self, event: dict[str, Any]) -> dict[str, Any]:
        return next(d for d in self.config["dependencies"] if d["trigger_after"] == event["id"])

    def upload(self, data: bytes, name: str = "photo.png") -> dict[str, Any]:
        """Send a file, as the page does."""
        answer = self.http.post("/gradio_api/upload", files={"files": (name, data)})
        answer.raise_for_status()
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}, "orig_name": name}

    def join(self, event: dict[str, Any], data: list[Any]) -> httpx.Response:
        body = {"data": data, "fn_index": event["id"], "session_hash": self.session}
        headers = {"content-type": "application/json"}
        return self.http.post("/gradio_api/queue/join", content=json.dumps(body), headers=headers)

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the server says, until an event has ended."""
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line.removeprefix("data:"))
                    yield message
                    if message["msg"] in ("process_completed", "close_stream", "unexpected_error"):
                        return

    def answer(self, event: dict[str, Any], data: list[Any]) -> dict[str, Any]:
        """Cause an event, and return the last message about it."""
        self.join(event, data).raise_for_status()
        *_, last = self.messages()
        assert last["msg"] == "process_completed", last
        return last

    def run(self, event: dict[str, Any], data: list[Any]) -> dict[int, Any]:
        """Cause an event, and return its last outputs by the number of the component."""
        last = self.answer(event, data)
        assert last["success"], last
        return dict(zip(event["outputs"], last["output"]["data"], strict=True))

    def take(self, data: bytes, name: str = "photo.png") -> str:
        """Give a photograph, and return the line of refusal, or ""."""
        self.photo = self.upload(data, name)
        outputs = self.run(self.event("photo", "upload"), [self.token, self.photo])
        line = shown_text(outputs[self.ids["note"]])
        self.photo = None if line else self.photo
        return line

    def asked(self, case: str, /, **changed: Any) -> list[Any]:
        """All that the button sends."""
        wish = case if case in WISHES else EXPERIMENT
        strength = CASES[case].strength if case in CASES else None
        values = {"photo": self.photo, "case": wish, "experiment": case if wish == EXPERIMENT else "denoise"}
        values |= {"strength": 0.5 if strength is None else strength.value, "noise": 0.02, "paint": None, "mask": None}
        values |= {
            "blur": None,
            "whole": False,
            "side": 64,
            "prior": self.prior,
            "solver": "pigdm",
            "steps": 4,
            "seed": 0,
        }
        values |= {"samples": 2, "sampler": "pigdm", "cmi": "off", "eta": -0.3}
        assert tuple(values) == CONTROLS
        return [self.token, *(values | changed).values()]

    def restore(self, case: str, /, button: str = "start", **changed: Any) -> tuple[str, dict[str, bytes]]:
        """Press a button, and return the status in words, and what is in the archive."""
        event = self.event(button, "click")
        line = shown_text(self.run(event, self.asked(case, **changed))[self.ids["status"]])
        if "refusal" in line:
            return line, {}
        outputs = self.run(self.after(event), [self.token])
        path = (outputs[self.ids["archive"]].get("value") or {}).get("path")
        return shown_text(outputs[self.ids["status"]]), {} if path is None else self.archive(path)

    def archive(self, path: str) -> dict[str, bytes]:
        answer = self.http.get(f"/gradio_api/file={path}")
        answer.raise_for_status()
        with zipfile.ZipFile(io.BytesIO(answer.content)) as opened:
            return {name: opened.read(name) for name in opened.namelist()}


def shown_text(output: Any) -> str:
    """The text of an HTML output, or "" where nothing is shown."""
    if isinstance(output, dict):
        output = output.get("value") if output.get("visible", True) else ""
    return str(output or "")
