"""Where diffusers' pipelines have their VAE: every kind of tokenizer, the pipelines unchanged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor

from lumitok import Tokenizer
from tests.pipelines.kinds import KINDS, save_kind

DOCS = Path(__file__).parents[2] / "docs" / "diffusers.md"
MEAN, STD = [0.5, -1.0, 0.0, 2.0], [2.0, 0.5, 1.0, 0.25]


class Still(DDIMScheduler):
    """A scheduler that adds no noise and takes no step: what is decoded is what was encoded."""

    def add_noise(self, original_samples: Tensor, *_: Any) -> Tensor:
        return original_samples

    def step(self, _output: Tensor, _step: int, sample: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        return sample, sample


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))


def unet(**more: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=2,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=8,
        norm_num_groups=4,
        **more,
    )


def opened(kind: str, recipe: dict[str, Any], folder: Path, mean: list[float], std: list[float]) -> Tokenizer:
    """A saved folder as a user opens it."""
    tokenizer = Tokenizer.from_pretrained(save_kind(kind, recipe, folder / "random"))
    tokenizer.set_latent_statistics(torch.tensor(mean), torch.tensor(std), 9)
    tokenizer.save_pretrained(folder / "vae")
    return Tokenizer.from_pretrained(folder / "vae")


def expected(tokenizer: Tokenizer, seed: int) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """The latent that a pipeline draws of the photograph, and the picture that it decodes to."""
    x = torch.from_numpy(np.array(photo())).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        z = tokenizer.encode(x).latent_dist.sample(torch.Generator().manual_seed(seed))
        picture = (tokenizer.decode(z).sample / 2 + 0.5).clamp(0, 1)
    return z, picture.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_image_to_image_whitens_by_channel(kind: str, tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = opened(kind, tiny_recipe, tmp_path, MEAN, STD)
    network = unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=56
    )
    pipeline = StableDiffusionXLImg2ImgPipeline(
        vae=tokenizer,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=network,
        scheduler=Still(num_train_timesteps=10),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    given: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    result = pipeline(
        image=photo(),
        prompt_embeds=torch.zeros(1, 3, 8),
        pooled_prompt_embeds=torch.zeros(1, 8),
        guidance_scale=1.0,
        strength=1.0,
        num_inference_steps=1,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    )
    z, picture = expected(tokenizer, seed=5)
    torch.testing.assert_close(given[0], tokenizer.latent_spec.whiten(z), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.images, picture, atol=1e-4)
    assert result.images.std() > 0


def test_image_to_image_scales_by_one_number(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = opened("ldm", tiny_recipe, tmp_path, [0.0] * 4, [2.0] * 4)
    network = unet()
    pipeline = StableDiffusionImg2ImgPipeline(
        vae=tokenizer,
        text_encoder=None,
        tokenizer=None,
        unet=network,
        scheduler=Still(num_train_timesteps=10, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    given: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    result = pipeline(
        image=photo(),
        prompt_embeds=torch.zeros(1, 3, 8),
        guidance_scale=1.0,
        strength=1.0,
        num_inference_steps=1,
        generator=torch.Generator().manual_seed(6),
        output_type="np",
    )
    z, picture = expected(tokenizer, seed=6)
    torch.testing.assert_close(given[0], z / 2)
    np.testing.assert_allclose(result.images, picture, atol=1e-4)


def test_the_code_in_the_docs_runs(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened("vfm-vae", tiny_recipe, tmp_path, MEAN, STD).save_pretrained(tmp_path / "my-tokenizer")
    photo().save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    for name, size in (("decoded.png", (48, 32)), ("generated.png", (32, 32))):
        with Image.open(name) as image:
            assert image.size == size
    wanted = names["tokenizer"].decode(names["z"]).sample
    torch.testing.assert_close(names["decoded"], wanted, rtol=1e-4, atol=1e-4)
