"""The network of the papers' checkpoints: against the official code's output, and piece by piece against formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmidiff.prior import load_network
from cmidiff.prior.formats.adm import ADMConfig, ADMUNet, Attention, ResidualBlock, sinusoids
from cmidiff.prior.formats.card import Fields
from cmidiff.prior.formats.guided_diffusion import stated_config
from cmidiff.prior.known import info_of
from cmidiff.schedule import DDPM

CONFORMANCE = Path(__file__).resolve().parent.parent.parent / "shared" / "conformance"
F64 = torch.float64
TINY = ADMConfig(3, 6, base=32, embedding=128, widths=(32, 64), blocks=1, attention=(False, True), head_channels=16)


def needs(name: str) -> Path:
    path = CONFORMANCE / name
    if not path.is_file():
        pytest.skip(f"{name} is not here")
    return path


def numbered(config: ADMConfig, seed: int = 0, dtype: torch.dtype = F64, *, checkpointing: bool = False) -> ADMUNet:
    """A network with random weights: none is zero, so that every layer counts."""
    generator = torch.Generator().manual_seed(seed)
    network = ADMUNet(config, checkpointing=checkpointing).to(dtype)
    for parameter in network.parameters():
        draw = torch.randn(parameter.shape, generator=generator, dtype=dtype)
        parameter.data = draw / math.sqrt(max(parameter[0].numel(), 1)) if parameter.ndim > 1 else 1 + 0.1 * draw
    return network.requires_grad_(False)


# Against the official code


@pytest.mark.parametrize("card", [None, "config", {"num_head_channels": 16}], ids=["bare", "flags", "heads"])
def test_output_and_input_gradient_are_the_official_code_s(card: Any, recwarn: pytest.WarningsRecorder) -> None:
    path = needs("unet_imagenet_like.pt")
    io = np.load(path.with_name("unet_imagenet_like_io.npz"))
    prior = load_network(path, card=json.loads(str(io["config"])) if card == "config" else card)
    assert any("num_head_channels = 16" in str(w.message) for w in recwarn) == (card is None), "an assumption is said"
    assert prior.learned_variance
    assert prior.multiple == 4
    x = torch.from_numpy(io["x"])
    for row, t in enumerate(io["t"]):
        x_t = x[row : row + 1].clone().requires_grad_()
        alpha_t, sigma_t = DDPM.linear()(float(t))
        found = prior(x_t, float(t))
        assert found.variance_fraction is not None
        eps = (x_t - alpha_t * found.mean) / sigma_t
        expected = torch.from_numpy(io["out"][row : row + 1])
        # Back from x_hat to eps, rounding of x_hat counts alpha / sigma times.
        tolerance = 1e-5 * max(1.0, alpha_t / sigma_t)
        torch.testing.assert_close(eps.detach(), expected[:, :3], rtol=0, atol=tolerance)
        torch.testing.assert_close(2 * found.variance_fraction - 1, expected[:, 3:], rtol=0, atol=1e-5)
    x.requires_grad_()
    out = prior.network(x, torch.from_numpy(io["t"]).float())
    torch.testing.assert_close(out.detach(), torch.from_numpy(io["out"]), rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(out, x, torch.from_numpy(io["v"]))
    torch.testing.assert_close(gradient, torch.from_numpy(io["grad_x"]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "parameters"), [("ffhq-256", 93_563_910), ("imagenet-256", 552_814_086)])
def test_the_papers_architectures_have_these_tensors(name: str, parameters: int) -> None:
    config = stated_config(Fields(info_of(name).card["architecture"], name))
    with torch.device("meta"):
        network = ADMUNet(config)
    assert sum(p.numel() for p in network.parameters()) == parameters == info_of(name).card["parameters"]
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert ADMConfig.infer(shapes, head_channels=64) == ADMConfig(**{**vars(config), "conv_resampling": False})
    official = json.loads(needs("adm_checkpoints.json").read_text())[info_of(name).card["file"]]
    stated = stated_config(Fields(official["config_as_in_yaml"], "yaml"))
    assert stated == config
    assert shapes == {key: tuple(shape) for key, shape in official["state_dict"].items()}


# Piece by piece


@st.composite
def configs(draw: st.DrawFn) -> ADMConfig:
    levels, resampling = draw(st.integers(1, 4)), draw(st.sampled_from(["block", "convolution", "pooling"]))
    return ADMConfig(
        in_channels=draw(st.integers(1, 4)),
        out_channels=draw(st.integers(1, 6)),
        base=draw(st.sampled_from([16, 32, 33])),
        embedding=draw(st.sampled_from([8, 128])),
        widths=tuple(draw(st.lists(st.sampled_from([32, 64, 96]), min_size=levels, max_size=levels))),
        blocks=draw(st.integers(1, 3)),
        attention=tuple(draw(st.lists(st.booleans(), min_size=levels, max_size=levels))),
        resblock_resampling=resampling == "block" or levels == 1,
        conv_resampling=resampling == "convolution" and levels > 1,
        scale_shift=draw(st.booleans()),
        classes=draw(st.sampled_from([None, 10])),
        head_channels=16,
        new_attention_order=draw(st.booleans()),
    )


@settings(max_examples=40, deadline=None)
@given(configs())
def test_names_and_shapes_tell_the_architecture(config: ADMConfig) -> None:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in ADMUNet(config).state_dict().items()}
    found = ADMConfig.infer(shapes, head_channels=16, new_attention_order=config.new_attention_order)
    assert found == config


@pytest.mark.parametrize("new_order", [False, True])
def test_attention_is_softmax_of_inner_products(new_order: bool) -> None:
    channels, heads = 64, 4
    d, pixels = channels // heads, 6
    torch.manual_seed(0)
    attention = Attention(channels, heads, new_order).to(F64).requires_grad_(False)
    x = torch.randn(2, channels, 2, 3, dtype=F64)
    normed = torch.nn.functional.group_norm(x, 32, attention.norm.weight, attention.norm.bias).reshape(2, channels, 6)
    assert attention.qkv.bias is not None
    assert attention.proj_out.bias is not None
    rows = torch.einsum("oc,bcp->bop", attention.qkv.weight[:, :, 0], normed) + attention.qkv.bias[None, :, None]
    expected = x.reshape(2, channels, pixels).clone()
    mixed = torch.zeros_like(expected)
    for head in range(heads):
        # Of each head: its queries, keys, values; or all queries, all keys, all values, each by heads.
        first = (
            [part * channels + head * d for part in range(3)] if new_order else [(3 * head + i) * d for i in range(3)]
        )
        q, k, v = (rows[:, start : start + d] for start in first)
        weights = torch.softmax(q.mT @ k / math.sqrt(d), dim=-1)
        mixed[:, head * d : (head + 1) * d] = torch.einsum("bpq,bcq->bcp", weights, v)
    expected += torch.einsum("oc,bcp->bop", attention.proj_out.weight[:, :, 0], mixed)
    expected += attention.proj_out.bias[None, :, None]
    torch.testing.assert_close(attention(x).reshape(2, channels, pixels), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_the_embedding_modulates_a_block(scale_shift: bool) -> None:
    torch.manual_seed(1)
    block = ResidualBlock(32, 32, 8, scale_shift=scale_shift).to(F64).requires_grad_(False)
    x, e = torch.randn(1, 32, 4, 4, dtype=F64), torch.randn(1, 8, dtype=F64)
    silu, norm = torch.nn.functional.silu, torch.nn.functional.group_norm
    modulation = block.emb_layers[1](silu(e))[:, :, None, None]
    h = block.in_layers[2](silu(norm(x, 32, block.in_layers[0].weight, block.in_layers[0].bias)))  # pyright: ignore[reportArgumentType]
    h = norm(h, 32) * (1 + modulation[:, :32]) + modulation[:, 32:] if scale_shift else norm(h + modulation, 32)
    torch.testing.assert_close(block(x, e), x + block.out_layers[3](silu(h)), rtol=1e-12, atol=1e-12)


def test_times_are_embedded_as_cosines_then_sines() -> None:
    t = torch.tensor([0.0, 731.0], dtype=F64)
    waves = sinusoids(t, 8)
    for i, frequency in enumerate(10_000.0 ** (-np.arange(4) / 4)):
        torch.testing.assert_close(waves[:, i], torch.cos(t * frequency))
        torch.testing.assert_close(waves[:, 4 + i], torch.sin(t * frequency))


# What the library asks of a network


def derivatives(network: ADMUNet) -> tuple[Tensor, Tensor, Tensor]:
    """Output, input gradient, and the gradient of its inner product with a direction."""
    x = torch.linspace(-1, 1, 3 * 64, dtype=F64).reshape(1, 3, 8, 8).requires_grad_()
    out = network(x, torch.tensor([500.0], dtype=F64))
    (gradient,) = torch.autograd.grad(out[:, :3].square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((gradient * x.detach().roll(1)).sum(), x)
    return out.detach(), gradient.detach(), second


def test_checkpointing_changes_nothing_but_memory_and_both_differentiate_twice() -> None:
    plain, checkpointed = numbered(TINY), numbered(TINY, checkpointing=True)
    for one, other in zip(derivatives(plain), derivatives(checkpointed), strict=True):
        assert torch.equal(one, other)
    x = torch.linspace(-1, 1, 3 * 64, dtype=F64).reshape(1, 3, 8, 8)
    direction, t, h = x.roll(1), torch.tensor([500.0], dtype=F64), 1e-5

    def gradient(at: Tensor) -> Tensor:
        at = at.clone().requires_grad_()
        return torch.autograd.grad(plain(at, t)[:, :3].square().sum(), at)[0]

    difference = (gradient(x + h * direction) - gradient(x - h * direction)) / (2 * h)
    torch.testing.assert_close(derivatives(plain)[2], difference, rtol=1e-5, atol=1e-6)


def test_checkpointing_keeps_less() -> None:
    def kept(network: ADMUNet) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(torch.randn(1, 3, 32, 32, dtype=F64, requires_grad=True), torch.tensor([5.0], dtype=F64))
        return sum(sizes.values())

    assert kept(numbered(TINY, checkpointing=True)) < 0.5 * kept(numbered(TINY))


def test_neighbouring_times_differ_in_bfloat16() -> None:
    network = numbered(TINY, dtype=torch.bfloat16)
    x = torch.randn(1, 3, 8, 8).bfloat16()
    assert not torch.equal(network(x, torch.tensor([731.0])), network(x, torch.tensor([732.0])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "32 channels does not split into 3 heads"),
        ({"num_head_channels": 48}, "32 channels does not split into heads of 48"),
        ({"channel_mult": "1,x"}, "channel_mult must be numbers with commas"),
        ({"channel_mult": "0.5,1"}, "groups of 32 channels, received a block of 16"),
        ({"image_size": 100, "channel_mult": ""}, "image_size = 100 has none"),
        ({"num_res_blocks": True}, "num_res_blocks must be a whole number"),
        ({"learn_sigma": "yes"}, "learn_sigma must be true or false"),
    ],
)
def test_flags_that_make_no_network_are_named(change: dict[str, Any], message: str) -> None:
    flags = {"num_channels": 32, "image_size": 32, "channel_mult": "1,2", "attention_resolutions": "32", "num_heads": 2}
    assert stated_config(Fields(flags, "card")).attention == (True, False)
    with pytest.raises(ValueError, match=message):
        stated_config(Fields(flags | change, "card"))


def test_the_ffhq_network_is_that_of_an_independent_implementation(tmp_path: Path) -> None:
    """deepinv's network of the same file, whose weights load here by name; its attention is a fused kernel."""
    from deepinv.models import DiffUNet

    generator = torch.Generator().manual_seed(0)
    theirs = DiffUNet(pretrained=None, large_model=False).eval().requires_grad_(False)  # pyright: ignore[reportArgumentType]
    for parameter in theirs.parameters():
        draw = torch.randn(parameter.shape, generator=generator)
        parameter.data = draw / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 1 + 0.1 * draw
    torch.save(theirs.state_dict(), tmp_path / "ffhq.pt")
    ours = load_network(tmp_path / "ffhq.pt", card=info_of("ffhq-256").card)
    x, t = torch.randn(1, 3, 32, 32, generator=generator).requires_grad_(), torch.tensor([731.0])
    outputs = theirs.forward_diffusion(x, t), ours.network(x, t)
    gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in outputs]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-4)
