"""What is said about memory before anything runs, against what is counted while it runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmidiff.prior import NetworkPrior, check_memory, estimate_memory, load_network, memory
from cmidiff.prior.checkpointed import Checkpointed
from cmidiff.prior.formats.adm import ADMConfig, ADMUNet
from cmidiff.prior.memory import Need
from tests.test_adm import TINY, numbered

MIB = 2**20
WIDE = replace(TINY, base=64, embedding=256, widths=(64, 128))


def prior_of(config: ADMConfig = TINY, **options: object) -> NetworkPrior:
    network = numbered(config, dtype=torch.float32)
    return NetworkPrior(network, learned_variance=True, multiple=2, **options)  # pyright: ignore[reportArgumentType]


def known(need: Need | None) -> Need:
    assert need is not None
    return need


def activations(prior: NetworkPrior, batch: int = 1, side: int = 32, **options: object) -> float:
    need = known(estimate_memory(prior, (3, side, side), batch, **options))  # pyright: ignore[reportArgumentType]
    return need.activations


def test_a_chain_without_a_graph_holds_two_neighbours() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network

        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return self.layers(x_t)

    prior = NetworkPrior(Chain().requires_grad_(False), "x0")
    # x_t, the convolution's output, and silu of it: 3 + 8 + 8 channels, and the time.
    assert activations(prior, side=32) == pytest.approx(4 * (32 * 32 * (3 + 8 + 8) + 1), abs=2)
    assert known(estimate_memory(prior, (3, 32, 32))).weights == 4 * sum(p.numel() for p in network.parameters())


def test_a_graph_holds_at_least_what_torch_saves_for_it() -> None:
    prior, saved = prior_of(), {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    assert isinstance(prior.network, nn.Module)
    weights = {p.untyped_storage().data_ptr() for p in prior.network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept_alive = prior(torch.randn(2, 3, 32, 32, requires_grad=True), 500.0).mean
    by_torch = sum(size for at, size in saved.items() if at not in weights)
    assert kept_alive.requires_grad
    assert by_torch < activations(prior, 2, graph=True) < 1.5 * by_torch


def test_what_settings_buy() -> None:
    prior = prior_of(WIDE)
    plain = activations(prior, 4, graph=True)
    assert activations(prior, 4) < 0.5 * plain
    assert activations(prior_of(WIDE, max_batch=1), 4, graph=True) < 0.4 * plain
    assert activations(prior, 4, twice=True) > 1.5 * plain
    assert activations(prior, 8, graph=True) == pytest.approx(2 * plain, rel=0.02)
    assert isinstance(prior.network, ADMUNet)
    prior.network.checkpointing = True
    assert activations(prior, 4, graph=True) < 0.6 * plain
    prior.network.checkpointing = False
    half = NetworkPrior(prior.network.to(torch.bfloat16), learned_variance=True, multiple=2, dtype=torch.bfloat16)
    assert activations(half, 4, graph=True) == pytest.approx(plain / 2, rel=0.1)


def test_estimating_leaves_the_prior_as_it_was() -> None:
    prior = load_network("natural-64")
    x_t = torch.randn(1, 3, 16, 16)
    before = prior(x_t, 300.0).mean
    estimate_memory(prior, (3, 16, 16), graph=True)
    assert torch.equal(prior(x_t, 300.0).mean, before)
    assert isinstance(prior.network, nn.Module)
    assert {p.device.type for p in prior.network.parameters()} == {"cpu"}


def test_a_run_that_fits_passes_and_one_that_does_not_is_refused_with_advice() -> None:
    prior, shape = prior_of(WIDE), (3, 64, 64)
    need = known(estimate_memory(prior, shape, 4, graph=True))
    assert check_memory(prior, shape, 4, graph=True, available=need.beside) == need
    with pytest.raises(ValueError, match=r"4 x \(3, 64, 64\) with network and its gradient takes about .*max_batch=1"):
        check_memory(prior, shape, 4, graph=True, available=int(0.6 * need.beside))


class Blocks(Checkpointed):
    """Wide layers on few channels: most of the memory of a gradient is inside of the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 3, 3, padding=1)) for _ in range(4)
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        for block in self.blocks:
            x_t = self.run(block, x_t)
        return x_t


def test_a_run_that_does_not_fit_is_told_the_setting_that_does() -> None:
    """With that setting, and as much memory as is free, the same check passes."""
    network, shape = Blocks().requires_grad_(False), (3, 128, 128)
    prior = NetworkPrior(network, "x0", dtype=torch.float32)

    def need(batch: int = 1, **options: Any) -> int:
        changed = NetworkPrior(network, "x0", dtype=torch.float32, **options)
        return known(estimate_memory(changed, shape, batch, graph=True)).beside

    def advice(available: float, batch: int = 1) -> str:
        with pytest.raises(ValueError, match="are free") as refusal:
            check_memory(prior, shape, batch, graph=True, available=int(available))
        return str(refusal.value).split("are free: ")[1]

    assert advice(need(4, max_batch=1), batch=4).startswith("load_prior(..., max_batch=1) takes about")
    network.checkpointing = True
    again = need()
    network.checkpointing = False
    assert again < 0.6 * need()
    assert advice(again).startswith("load_prior(..., checkpointing=True) takes about")
    assert not network.checkpointing
    assert "checkpointing=True, dtype=torch.bfloat16) takes about" in advice(0.8 * again)
    assert "bfloat16) and restore(..., tile=64) takes about" in advice(0.55 * again)
    assert "use a smaller image" in advice(1000)


def test_what_cannot_be_known_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_memory(NetworkPrior(lambda x_t, t: x_t), (3, 8, 8), available=1) is None
    constant = torch.ones(1, 3, 1, 1)

    class Closure(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return x_t * constant + float(t[0])

    assert check_memory(NetworkPrior(Closure()), (3, 8, 8), available=1) is None
    monkeypatch.setattr(memory, "MEMINFO", memory.MEMINFO / "nothing")
    assert check_memory(prior_of(), (3, 8, 8)) is None, "no telling what is free"


def test_the_papers_network_needs_this_much() -> None:
    from cmidiff.prior.formats.card import Fields
    from cmidiff.prior.formats.guided_diffusion import stated_config
    from cmidiff.prior.known import info_of

    config = stated_config(Fields(info_of("ffhq-256").card["architecture"], "ffhq-256"))
    with torch.device("meta"):
        network = ADMUNet(config).requires_grad_(False)
    need = known(estimate_memory(NetworkPrior(network, learned_variance=True), (3, 256, 256), graph=True))
    assert need.weights == 4 * 93_563_910
    # The largest single activation alone is 128 channels of 256 x 256 in four bytes, 32 MiB; there are dozens.
    assert 30 * 32 * MIB < need.activations < 100 * 32 * MIB


def test_rows_are_halved_until_they_fit() -> None:
    seen: list[int] = []

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(len(x_t))
        if len(x_t) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x_t * t[0] / 1000

    x_t = torch.randn(8, 3, 4, 4)
    whole = NetworkPrior(lambda x_t, t: x_t * t[0] / 1000)(x_t, 300.0).mean
    prior = NetworkPrior(network)
    with pytest.warns(UserWarning, match="with 4 rows: it now evaluates 2 at a time"):
        assert torch.equal(prior(x_t, 300.0).mean, whole)
    assert (seen, prior.max_batch) == ([8, 4, 2, 2, 2, 2], 2)
    del seen[:]
    prior(x_t, 300.0)
    assert seen == [2, 2, 2, 2]
    broken = NetworkPrior(lambda x_t, t: x_t.reshape(-1, 7))
    with pytest.raises(RuntimeError, match="shape"):
        broken(x_t, 300.0)
