"""Denoisers of latent pipelines conditioned on text, with fixed embeddings.

Text is encoded once, before the network is loaded (`cmidiff.prior.formats.text`); its embeddings are buffers of the
network here. With classifier-free guidance of scale ``w`` the output is

    out = u + w (c - u)

with ``c`` of the text and ``u`` of the negative text, both in one batch. ``w = 1`` is the network with the text alone.

Source: Ho, Salimans, "Classifier-Free Diffusion Guidance", 2022, https://arxiv.org/abs/2207.12598
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cmidiff.prior.checkpointed import Checkpointed


class Conditional(Checkpointed):
    """``(x_t, t) -> output`` of a network with embeddings of one text, or of two with guidance.

    Args:
        network: of diffusers.
        embeddings: rows of text, one or, with guidance, two: that of the negative text, then that of the text.
        guidance_scale: ``w`` above.
        time_scale: the network's own time is this times ``t``.
    """

    def __init__(
        self, network: nn.Module, embeddings: Mapping[str, Tensor], guidance_scale: float = 1.0, time_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.guidance_scale, self.time_scale = guidance_scale, time_scale
        self.texts = len(next(iter(embeddings.values())))
        for name, value in embeddings.items():
            self.register_buffer(name, value)

    def embedding(self, name: str, batch: int) -> Tensor:
        """Embeddings of the texts for ``batch`` rows each."""
        return getattr(self, name).repeat_interleave(batch, 0)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        if self.texts == 1:
            return self.predict(x_t, t * self.time_scale, len(x_t))
        out = self.predict(torch.cat([x_t, x_t]), torch.cat([t, t]) * self.time_scale, len(x_t))
        negative, positive = out.chunk(2)
        return negative + self.guidance_scale * (positive - negative)

    def predict(self, x: Tensor, t: Tensor, batch: int) -> Tensor:
        """The network's output for ``batch`` rows of each text."""
        return self.network(x, t, encoder_hidden_states=self.embedding("text", batch), return_dict=False)[0]


class ConditionalXL(Conditional):
    """A U-Net of Stable Diffusion XL, which also takes the size of the image.

    Args:
        factor: pixels for each latent along a side.
    """

    factor: int = 8

    def predict(self, x: Tensor, t: Tensor, batch: int) -> Tensor:
        height, width = (self.factor * side for side in x.shape[2:])
        sizes = torch.cat([x.new_full((1,), n) for n in (height, width, 0, 0, height, width)])  # original, crop, target
        added = {"text_embeds": self.embedding("pooled", batch), "time_ids": sizes.expand(len(x), -1)}
        text = self.embedding("text", batch)
        return self.network(x, t, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]


class ConditionalSD3(Conditional):
    """A transformer of Stable Diffusion 3."""

    def predict(self, x: Tensor, t: Tensor, batch: int) -> Tensor:
        return self.network(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=self.embedding("text", batch),
            pooled_projections=self.embedding("pooled", batch),
            return_dict=False,
        )[0]


class ConditionalFlux(Conditional):
    """A transformer of FLUX.1, which sees blocks of 2x2 latents.

    A network that was distilled with guidance takes the scale as an input, and one text.
    """

    def predict(self, x: Tensor, t: Tensor, batch: int) -> Tensor:
        rows, columns = (side // 2 for side in x.shape[2:])
        blocks = x.unflatten(2, (rows, 2)).unflatten(4, (columns, 2)).permute(0, 2, 4, 1, 3, 5)
        along = [torch.arange(side, device=x.device, dtype=torch.float32) for side in (1, rows, columns)]
        places = torch.stack(torch.meshgrid(*along, indexing="ij"), -1).reshape(-1, 3)  # never rounded
        text = self.embedding("text", batch)
        distilled = self.network.config.guidance_embeds
        out = self.network(
            hidden_states=blocks.flatten(3).flatten(1, 2),
            timestep=t,
            guidance=torch.full((len(x),), self.guidance_scale, dtype=t.dtype, device=x.device) if distilled else None,
            encoder_hidden_states=text,
            pooled_projections=self.embedding("pooled", batch),
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device),
            img_ids=places,
            return_dict=False,
        )[0]
        blocks = out.unflatten(1, (rows, columns)).unflatten(3, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5)
        return blocks.flatten(4, 5).flatten(2, 3)
