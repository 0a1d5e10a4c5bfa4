"""Tensors from untrusted files.

A safetensors file is numbers. A ``.pt`` file is a pickle, a program that torch runs with all but its harmless
instructions taken away (``weights_only``). The tensors are checked before they are used: every tensor that the network
has must be there, with its shape, finite, and no other. The first one that differs is named.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SAFETENSORS = (".safetensors",)
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
SUFFIXES = (*SAFETENSORS, *PICKLES)
PICKLE_SIGN = b"\x80"
DEPTH = 4  # of dictionaries within dictionaries


def read_tensors(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """The state dictionary in a file, on the CPU; ``entry`` says which of several, such as ``"ema"``."""
    return _without_wrapper(_state_dict(_read(path), path, entry))


def read_shards(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The state dictionary in files of which each holds some of the tensors, on the CPU."""
    content: dict[Any, Any] = {}
    for path in paths:
        part = _read(path)
        content |= part if isinstance(part, Mapping) else _state_dict(part, path, None)
    return _without_wrapper(_state_dict(content, paths[0], None))


def _read(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return _read_safetensors(path) if path.suffix.lower() in SAFETENSORS else _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({_one_line(error)}){_looks_like(path)}: fetch it again"
        ) from error


def _read_pickle(path: Path) -> object:
    head = _head(path)
    if _is_safetensors(head) or not (_is_zip(path) or head.startswith(PICKLE_SIGN)):
        raise ValueError(f"{path} is not a whole checkpoint of torch{_looks_like(path)}: fetch it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was refused: it holds more than tensors{_named_by(error)}, and reading the rest could run code: "
            "ask for a file of tensors, best safetensors"
        ) from error
    except Exception as error:  # whatever bytes that are no checkpoint make torch stumble over
        raise ValueError(f"{path} is not a whole checkpoint of torch ({_one_line(error)}): fetch it again") from error


def _named_by(error: Exception) -> str:
    """The function or class that a pickle asks for, from torch's message."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" (it asks for {found[1]})" if found else ""


def _one_line(error: object, most: int = 120) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError:
        return b""


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # its end is there and does not make sense
        return False


def _is_safetensors(head: bytes) -> bool:
    """The length of a header in eight bytes, and the JSON it begins with."""
    return head[8:10] == b'{"'


def _looks_like(path: Path) -> str:
    """What a file seems to be, where that explains why it cannot be read."""
    head = _head(path)
    signs = {
        b"PK": "a checkpoint of torch" + ("" if _is_zip(path) else " that was cut short or damaged"),
        PICKLE_SIGN: "a pickle",
        b"\x89PNG": "a PNG image",
        b"\xff\xd8\xff": "a JPEG image",
        b"<": "a web page",
        b"version https://git-lfs": "the pointer of git-lfs in place of the file",
    }
    if not head:
        return "; it is empty"
    if _is_safetensors(head):
        return "; it seems to be a safetensors file" + ("" if path.suffix in SAFETENSORS else " under another name")
    return next((f"; it seems to be {what}" for sign, what in signs.items() if head.startswith(sign)), "")


def _state_dict(content: object, path: Path, entry: str | None) -> dict[str, Tensor]:
    """The dictionary of tensors in what was read."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a dictionary of tensors, received {type(content).__name__}")
    networks = dict(_networks(content))
    if entry is not None:
        networks = _stated_entry(networks, content, entry, path)
    elif len(networks) > 1:
        right = next((name for name in networks if "ema" in name.lower()), next(iter(networks)))
        why = ", the moving average of the weights" if "ema" in right.lower() else ""
        raise ValueError(
            f"{path} holds several networks ({', '.join(map(repr, networks))}): state one in the card, "
            f'"entry": "{right}"{why}'
        )
    tensors = next(iter(networks.values()), _tensors(content))
    if not tensors:
        raise ValueError(f"{path} holds no tensors{_entries(content)}")
    return tensors


def _networks(content: Mapping[Any, Any], name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every network in a checkpoint: its entry, as ``outer.inner``, and its tensors.

    A network is a dictionary with tensors under names with a dot, such as ``conv.weight``: this leaves out the state of
    an optimiser. One dictionary holds several networks if their names differ in the first part alone.
    """
    tensors = _tensors(content)
    if any("." in key for key in tensors):
        groups = _groups(tensors)
        for group, inner in groups.items() if len(groups) > 1 else [(name, tensors)]:
            yield ".".join(filter(None, (name, group))) if len(groups) > 1 else group, inner
        return
    for key, value in content.items():
        if isinstance(value, Mapping) and isinstance(key, str) and "optim" not in key.lower() and depth < DEPTH:
            yield from _networks(value, f"{name}.{key}" if name else key, depth + 1)


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _groups(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The networks that are stored in one dictionary, as ``model.conv.weight`` beside ``ema.conv.weight``. One group if
    the first parts of the names do not distinguish networks."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        first, dot, rest = name.partition(".")
        if dot:
            groups.setdefault(first, {})[rest] = value
    shapes = [shapes_of(group) for group in groups.values()]
    alike = len(shapes) > 1 and all(shape == shapes[0] for shape in shapes) and any("." in name for name in shapes[0])
    return groups if alike else {"": dict(tensors)}


def _stated_entry(
    networks: dict[str, dict[str, Tensor]], content: Mapping[Any, Any], entry: str, path: Path
) -> dict[str, dict[str, Tensor]]:
    """The network under an entry, or within it if there is only one; an entry may also be the start of names."""
    if entry in networks:
        return {entry: networks[entry]}
    for tensors in networks.values():
        if part := {name.removeprefix(f"{entry}."): v for name, v in tensors.items() if name.startswith(f"{entry}.")}:
            return {entry: part}
    within = {name: tensors for name, tensors in networks.items() if name.startswith(f"{entry}.")}
    if len(within) == 1:
        return within
    if isinstance(content.get(entry), Mapping) and (tensors := _tensors(content[entry])):
        return {entry: tensors}
    known = ", ".join(repr(name) for name in networks if name) or "no entry at all"
    raise ValueError(f"{path} has no network {entry!r}{_entries(content)}: state {known}")


def _entries(content: Mapping[Any, Any]) -> str:
    """The entries of a checkpoint, for messages."""
    names = [repr(name) for name in content]
    return f" (its entries are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''})" if names else ""


def _without_wrapper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what wrappers add to them.

    ``torch.compile`` adds a part ``_orig_mod`` wherever a module was compiled. Training on several devices, moving
    averages and classes around a network put a part before all names (``module.``, ``model.``, ``net.``). Tensors
    without a dot, as the counter of a moving average or a noise schedule, then belong to the wrapper.
    """
    tensors = {".".join(p for p in name.split(".") if p != "_orig_mod"): value for name, value in tensors.items()}
    while True:
        parts = [name.partition(".") for name in tensors if "." in name]
        if len({first for first, _, _ in parts}) != 1 or not all("." in rest for _, _, rest in parts):
            return tensors
        first = parts[0][0]
        tensors = {name.removeprefix(f"{first}."): value for name, value in tensors.items() if "." in name}


def fill(network: nn.Module, tensors: Mapping[str, Tensor], where: Path, ignored: Iterable[str] = ()) -> None:
    """Give ``network``, built on the meta device, its tensors; nothing is ever initialised at random. ``ignored``
    names may be in the file and are not used."""
    wanted = network.state_dict()
    for name, slot in wanted.items():
        if name not in tensors:
            raise ValueError(f"{where} is not for this architecture: {name} of shape {tuple(slot.shape)} is missing")
        _check_tensor(name, tensors[name], tuple(slot.shape), where)
    surplus = [name for name in tensors if name not in wanted and name not in set(ignored)]
    if surplus:
        raise ValueError(
            f"{where} is not for this architecture: it has {surplus[0]} of shape {tuple(tensors[surplus[0]].shape)}, "
            f"which the network does not have ({len(surplus)} such tensors)"
        )
    network.load_state_dict({name: tensors[name] for name in wanted}, assign=True)
    stray = [name for name, value in _all_tensors(network) if value.is_meta]
    if stray:
        raise ValueError(f"the architecture of {where} has {stray[0]}, which files do not hold: it cannot be loaded")


def _all_tensors(network: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], where: Path) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{where} is not for this architecture: {name} must have shape {shape}, received {tuple(tensor.shape)}"
        )
    # A few bytes can claim to be any number of numbers: repeated, sparse, or on a device without memory.
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    held = tensor.untyped_storage().nbytes() if plain else 0
    if not tensor.is_floating_point() or held < tensor.numel() * tensor.element_size():
        raise ValueError(
            f"{where}: {name} must be plain floating-point numbers, received {tensor.dtype} on {tensor.device} "
            f"({tensor.layout})"
        )
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{where}: {name} has {bad} values that are not finite: the file is damaged, fetch it again")


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name to shape."""
    return {name: tuple(value.shape) for name, value in tensors.items()}
