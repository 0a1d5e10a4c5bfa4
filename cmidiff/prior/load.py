"""Priors by name or path: everything that loads weights goes through here."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidiff.moments import SecondMoments
from cmidiff.prior.base import Denoiser, check_prior
from cmidiff.prior.checkpointed import checkpointed
from cmidiff.prior.composite import Composite
from cmidiff.prior.denoiser import SigmaNetwork, affine, levels_between
from cmidiff.prior.fetch import hash_of
from cmidiff.prior.formats import guided_diffusion, pipeline
from cmidiff.prior.formats.card import Fields, card_beside, value_range_of
from cmidiff.prior.formats.ffdnet import load_ffdnet
from cmidiff.prior.formats.latent_pipeline import Prompt, is_latent, load_latent
from cmidiff.prior.formats.weights import SUFFIXES, read_tensors
from cmidiff.prior.hub import HUB, fetch_from_hub, hub_name
from cmidiff.prior.known import PriorInfo, Registered, info_of, record_first_use
from cmidiff.prior.latent import LatentPrior
from cmidiff.prior.network import Loaded, NetworkPrior
from cmidiff.registry import PRIORS

MOMENTS = "moments.safetensors"  # in the folder of a prior
DENOISERS = ("FFDNet", "DRUNet")
SINGLE_FILE = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "double_blocks.", "joint_blocks.")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class _Options:
    """How networks are loaded; see `load_prior`."""

    device: torch.device
    dtype: torch.dtype
    checkpointing: bool
    channels_last: bool
    max_batch: int | None


def load_prior(
    name_or_path: str | Path = "natural-64",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    label: int | None = None,
    card: Mapping[str, Any] | str | Path | None = None,
    checkpointing: bool = False,
    channels_last: bool = False,
    max_batch: int | None = None,
    prompt: str = "",
    negative_prompt: str = "",
    guidance_scale: float = 1.0,
    offload: bool = False,
) -> Denoiser:
    """A prior by its name in `PRIORS`, from the hub of diffusers, from a folder or from a file.

    Loading executes no code from the files: JSON configurations, safetensors, and pickles of which only tensors are
    read. Every tensor of the network must be in the file, with its shape and finite.

    Args:
        name_or_path: a name of the table. Or ``hf:OWNER/NAME`` or ``OWNER/NAME``, a pipeline of the hub. Or a folder in
            diffusers' format. Or a ``.safetensors`` or ``.pt`` file, of guided diffusion's format or with a card.
        device: where the networks run.
        dtype: precision of the networks; the state keeps its own.
        label: the class, from 0, of a class-conditional network; by default the card's.
        card: what a file does not say about itself, as an object or as the path of a JSON file. By default
            ``FILE.json`` or ``card.json`` beside it.
        checkpointing: activations are computed again for a gradient instead of being stored.
        channels_last: weights in the memory layout that convolutions prefer on GPUs, above all in bfloat16.
        max_batch: at most this many rows are in a network at once.
        prompt: of a latent prior that is conditioned on text: what the image shows; "" for no text.
        negative_prompt: the negative text of classifier-free guidance.
        guidance_scale: its scale; 1 for none. A network that was distilled with guidance takes it as an input.
        offload: whether the weights of a latent prior's autoencoder are on the CPU while they are not in use. Text
            encoders never stay.

    Returns:
        One network; a `Composite` of two: ``photo`` and ``drunet`` are denoisers up to some noise level with another
        prior above it; or a `LatentPrior`, a network and an autoencoder. The options apply to all parts.

    Raises:
        FileNotFoundError: an unknown name, or files that are not there and cannot be fetched.
        ValueError: files that do not fit each other or are not what they should be; a label that does not exist.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, received {dtype}")
    told = Prompt(prompt, negative_prompt, guidance_scale)
    options = _Options(torch.device(device), dtype, checkpointing, channels_last, max_batch)
    source, stated = hub_name(str(name_or_path)) if isinstance(name_or_path, str) else str(name_or_path), _stated(card)
    named = source in PRIORS
    folder = fetch_from_hub(source) if source.startswith(HUB) else Path(source)
    try:
        latent = not named and is_latent(folder)
    except OSError as error:
        raise _unreadable(source, error) from error
    if latent:
        name = source if source.startswith(HUB) else folder.name
        return _load_latent(folder, name, stated, told, options, offload)
    if told.stated or offload:
        raise ValueError(
            f"prompt, guidance_scale and offload are for latent priors, which {source} is not: leave them out"
        )
    if not named:
        return _load_network(source, folder, stated, label, options)
    info = info_of(source)
    if stated is not None:
        raise ValueError(f"{source} has a card of its own: pass card= only with a file or a folder")
    composite = "above" in info.card
    if label is not None and (composite or isinstance(info, Registered)):
        raise ValueError(f"the prior {source} is not class-conditional, received label={label}: leave it out")
    if isinstance(info, Registered):
        return _load_registered(info, options)
    return _load_composite(info, options) if composite else _load_network(source, folder, None, label, options)


def _unreadable(source: str, error: OSError) -> ValueError:
    return ValueError(f"{source} cannot be read: {error.strerror or error}")


def _load_latent(
    folder: Path, name: str, card: Fields | None, prompt: Prompt, options: _Options, offload: bool
) -> LatentPrior:
    """A latent pipeline: text encoders come and go first, then the networks are loaded."""
    loaded, autoencoder = load_latent(folder, prompt, options.device, options.dtype)
    own = read_card(folder) if card is None else dict(card.values)
    known = own | {"prompt": vars(prompt)} if prompt.stated else own
    loaded = _with_moments(loaded, folder)
    network = _as_prior(loaded, name, known, None, options)
    decoder = autoencoder.on(
        options.device,
        options.dtype,
        max_batch=options.max_batch,
        checkpointing=options.checkpointing,
        offload=offload,
        name=name,
    )
    return LatentPrior(network, decoder, name=name)


def load_network(
    name_or_path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, **options: Any
) -> NetworkPrior:
    """`load_prior` of a prior that is one network, with the same options.

    Raises:
        ValueError: it is made of several.
    """
    prior = load_prior(name_or_path, device, dtype, **options)
    if not isinstance(prior, NetworkPrior):
        raise ValueError(f"the prior {name_or_path} is made of several networks, one is needed: use one of its parts")
    return prior


def _load_registered(info: Registered, options: _Options) -> Denoiser:
    """The prior of another package, on the device; its network is its own."""
    if options != _Options(options.device, torch.float32, False, False, None):
        raise ValueError(
            f"the prior {info.name} is made by another package: dtype, checkpointing, channels_last and max_batch are "
            "options of that package, leave them out"
        )
    prior = info.make()
    check_prior(prior)
    return prior.to(options.device)


def _load_composite(info: PriorInfo, options: _Options) -> Denoiser:
    """A denoiser and the prior above its noise range; that prior alone where the denoiser's package is missing."""
    card = info.card
    if info.fallback is not None and info.where() is None:
        warnings.warn(f"the prior {info.name} {info.remedy}", stacklevel=3)
        return load_prior(info.fallback, **vars(options))
    fields = Fields(card, f"the card of {info.name}")
    loaded = _load_known(info)
    name = str(fields.within("architecture").values["kind"])
    low = _as_prior(loaded, name, card, None, options)
    high = load_prior(card["above"], **vars(options))
    return Composite(low, high, low.max_ratio, name=info.name, card=card | {"card above": high.card})


def _load_network(source: str, path: Path, card: Fields | None, label: int | None, options: _Options) -> NetworkPrior:
    try:
        name, known, loaded = _load(source, path, card)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(source, error) from error
    return _as_prior(loaded, name, known, label, options)


def _as_prior(loaded: Loaded, name: str, card: Mapping[str, Any], label: int | None, options: _Options) -> NetworkPrior:
    """What was loaded as a prior on a device; a warning names all that was assumed, which the card keeps."""
    assumed = {"assumed": list(loaded.assumed)} if loaded.assumed else {}
    if assumed:
        warnings.warn(
            f"{name} does not state everything about its network; assumed {', '.join(loaded.assumed)}: state what "
            "differs in a card (see docs/priors.md), because a wrong noise schedule costs several dB",
            stacklevel=4,
        )
    network = loaded.network.to(device=options.device, dtype=options.dtype)
    for module in checkpointed(network):
        module.checkpointing = options.checkpointing
    if options.channels_last:
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    facts = {name: value for name, value in vars(loaded).items() if name not in ("network", "assumed")}
    return NetworkPrior(
        network.eval().requires_grad_(False),
        name=name,
        card={**card, **assumed},
        dtype=options.dtype,
        max_batch=options.max_batch,
        label=card.get("label") if label is None else label,
        **facts,
    )


def _load(source: str, path: Path, card: Fields | None) -> tuple[str, dict[str, Any], Loaded]:
    """The name of a prior, its card, and what was loaded."""
    if source in PRIORS:
        return source, info_of(source).card, _load_known(info_of(source))
    name = source if source.startswith(HUB) else path.stem if path.is_file() else path.name
    if path.is_file():
        card = card or card_beside(path) or Fields({}, f"the card of {path.name}")
        return name, dict(card.values), _load_file(path, card)
    if pipeline.is_folder(path):
        own = read_card(path) if card is None else dict(card.values)
        return name, own, _with_moments(pipeline.load_folder(path), path)
    raise FileNotFoundError(
        f"no prior {source!r}: neither a known name ({', '.join(PRIORS)}), nor hf:OWNER/NAME, nor a file, nor a folder "
        "with unet/config.json"
    )


def _load_known(info: PriorInfo) -> Loaded:
    if "file" not in info.card:
        return _with_moments(pipeline.load_folder(info.folder), info.folder)
    path = info.find()
    loaded = _load_file(path, Fields(info.card, f"the card of {info.name}"))
    record_first_use(path, info.card)
    return loaded


def moments_file(path: Path) -> Path:
    """Return where the second moments of a prior lie: in its folder, or beside its file of weights."""
    return path / MOMENTS if path.is_dir() else path.with_name(f"{path.name}.{MOMENTS}")


def _with_moments(loaded: Loaded, path: Path) -> Loaded:
    file = moments_file(path)
    return replace(loaded, second_moments=SecondMoments.load(file)) if file.is_file() else loaded


def _load_file(path: Path, card: Fields) -> Loaded:
    return _with_moments(_read_file(path, card), path)


def _read_file(path: Path, card: Fields) -> Loaded:
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} must be one of {', '.join(SUFFIXES)}: weights in another format are not read")
    entry = card.values.get("entry")
    tensors = read_tensors(path, None if entry is None else str(entry))
    kind = _kind(card, path)
    if kind == "UNet2DModel":
        return pipeline.load_tensors(tensors, card, path)
    if kind in DENOISERS:
        return _load_denoiser(kind, tensors, card, path)
    if kind is None and any(name.startswith(SINGLE_FILE) for name in tensors):
        raise ValueError(
            f"{path} is a single-file checkpoint of a latent model, or a part of one, which is not read: make a folder "
            "of it with diffusers, pipeline = StableDiffusionPipeline.from_single_file(FILE) (or the class of your "
            "model) and pipeline.save_pretrained(FOLDER), and pass the folder"
        )
    if kind is None and not guided_diffusion.is_guided_diffusion(tensors):
        raise ValueError(
            f"{path} does not say what network it is for (its first tensor is {next(iter(tensors))}): state it in a "
            f"card, {path.name}.json beside it; see docs/priors.md"
        )
    return guided_diffusion.load(tensors, card, path)


def _load_denoiser(kind: str, tensors: Mapping[str, Tensor], card: Fields, path: Path) -> Loaded:
    """A network ``D(x, sigma)``, whose card states its noise range and the range of its images, [0, 1] by default."""
    if kind == "FFDNet":
        network = load_ffdnet(tensors, path)
    else:
        from cmidiff.prior.formats.drunet import load_drunet

        network = load_drunet(tensors, path)
    value_range = value_range_of(card) if "value_range" in card else (0.0, 1.0)
    low, high = card.number("min_sigma", 0.0), card.number("max_sigma")
    gain, offset = affine(value_range)
    return Loaded(
        SigmaNetwork(network, gain, offset),
        "x0",
        levels_between(low, high, value_range),
        learned_variance=False,
        channels=network.channels,
        multiple=1,
        smooth=False,
        min_ratio=gain * low,
        max_ratio=gain * high,
        assumed=() if "value_range" in card.values else ("value_range = [0, 1]",),
    )


def _kind(card: Fields, path: Path) -> str | None:
    """The architecture that a card names, with the hash it states checked."""
    if (sha256 := card.values.get("sha256")) is not None and "url" not in card and hash_of(path) != sha256:
        raise ValueError(
            f"{path} is another file than its card says: its sha256 must be {sha256}, received {hash_of(path)}"
        )
    architecture = card.values.get("architecture")
    if architecture is None:
        return None
    kinds = {kind: kind for kind in ("guided-diffusion", "UNet2DModel", *DENOISERS)}
    if isinstance(architecture, str):
        return card.choice("architecture", kinds)
    return card.within("architecture").choice("kind", kinds, "guided-diffusion")


def _stated(card: Mapping[str, Any] | str | Path | None) -> Fields | None:
    if card is None or isinstance(card, Mapping):
        return None if card is None else Fields(card, "the card")
    return Fields.read(Path(card))


def read_card(folder: Path) -> dict[str, Any]:
    """What is known of the weights in a folder: data, licence, training, hash; empty without a card."""
    path = folder / "card.json"
    return dict(Fields.read(path).values) if path.is_file() else {}
