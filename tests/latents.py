"""Tiny random latent pipelines, made with the classes of diffusers and transformers."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")

WORDS = ("a", "photo", "of", "cat", "blur", "ry")
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> Any:
    """A network with random weights, none of them at its initial zero or one."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        network = make().eval().requires_grad_(False)
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        return network


def kl(**options: Any) -> Any:
    return seeded(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            **{"latent_channels": 4, **options},
        )
    )


def vq() -> Any:
    return seeded(
        lambda: diffusers.VQModel(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=3,
            num_vq_embeddings=16,
            scaling_factor=0.8,
        )
    )


def text_unet(**options: Any) -> Any:
    return seeded(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
            **{"cross_attention_dim": 16, **options},
        )
    )


def clip(*, projection: bool = False, width: int = 16) -> Any:

    config = transformers.CLIPTextConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return seeded(
        lambda: (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)
    )


def clip_tokenizer(folder: Path) -> Any:
    """A byte-pair tokenizer of a few letters, from files as those of the hub."""

    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted({letter for word in WORDS for letter in word})
    entries = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)


def t5(width: int = 16) -> Any:

    config = transformers.T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return seeded(lambda: transformers.T5EncoderModel(config))


def t5_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((f"▁{word}", -1.0) for word in WORDS)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return transformers.T5TokenizerFast(tokenizer_object=tokenizer, model_max_length=8, extra_ids=0)


def ldm(folder: Path, **scheduler: Any) -> Any:
    """An unconditional latent diffusion model with a VQ autoencoder."""
    unet = seeded(
        lambda: diffusers.UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
    )
    plain = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}
    pipeline: Any = diffusers.LDMPipeline(
        vqvae=vq(), unet=unet, scheduler=diffusers.DDIMScheduler(**(plain | scheduler))
    )
    pipeline.save_pretrained(folder)
    return pipeline


def stable_diffusion(folder: Path, *, scheduler: dict[str, Any] | None = None, **unet: Any) -> Any:
    """Stable Diffusion 1.x, or 2.x with ``prediction_type="v_prediction"``."""
    pipeline: Any = diffusers.StableDiffusionPipeline(
        vae=kl(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(folder / "made"),
        unet=text_unet(**unet),
        scheduler=diffusers.DDIMScheduler(**(SCALED | {"clip_sample": False} | (scheduler or {}))),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return pipeline


def xl(folder: Path) -> Any:
    unet = text_unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=4 * 6 + 16,
        use_linear_projection=True,
    )
    tokenizer = clip_tokenizer(folder / "made")
    pipeline: Any = diffusers.StableDiffusionXLPipeline(
        vae=kl(),
        text_encoder=clip(),
        text_encoder_2=clip(projection=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(**SCALED),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def sd3(folder: Path) -> Any:
    transformer = seeded(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=16,
        )
    )
    tokenizer = clip_tokenizer(folder / "made")
    pipeline: Any = diffusers.StableDiffusion3Pipeline(
        vae=kl(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5),
        text_encoder=clip(projection=True),
        text_encoder_2=clip(projection=True),
        text_encoder_3=None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=None,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def flux(folder: Path, *, guidance_embeds: bool = True) -> Any:
    transformer = seeded(
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance_embeds,
        )
    )
    pipeline: Any = diffusers.FluxPipeline(
        vae=kl(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.4),
        text_encoder=clip(),
        text_encoder_2=t5(),
        tokenizer=clip_tokenizer(folder / "made"),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )
    pipeline.save_pretrained(folder)
    return pipeline


PIPELINES: dict[str, Callable[[Path], Any]] = {
    "ldm": ldm,
    "sd": stable_diffusion,
    "xl": xl,
    "sd3": sd3,
    "flux": flux,
}
