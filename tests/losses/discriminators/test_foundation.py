from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lumitok.config import DiscriminatorConfig, EncoderConfig
from lumitok.errors import LumitokError
from lumitok.losses.discriminators.augment import augment, draw
from lumitok.losses.discriminators.foundation import FoundationDiscriminator

SIZE = 32


def config(**changes: object) -> DiscriminatorConfig:
    encoder = EncoderConfig(
        name="timm:vit_tiny_patch16_224",
        layers=[1, 2, 0],
        weights="random",
        timm_kwargs={"img_size": SIZE, "embed_dim": 12, "depth": 2, "num_heads": 2},
    )
    return DiscriminatorConfig(**{"encoder": encoder, "input_size": SIZE, "augment": False, **changes})


def make(**changes: object) -> FoundationDiscriminator:
    torch.manual_seed(0)
    return FoundationDiscriminator(config(**changes))


def pictures(height: int = SIZE, width: int = SIZE, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_logits_stand_for_every_position_of_every_layer_in_order() -> None:
    discriminator = make().eval()
    x = pictures()
    logits = discriminator(x)
    assert logits.shape == (2, 3 * 2 * 2)
    features = discriminator.encoder((x + 1) / 2, scaled=False)
    for i, (feature, token) in enumerate(zip(features.maps, features.tokens, strict=True)):
        with_token = torch.empty(2, 12, 4)
        for row in range(2):
            for column in range(2):
                with_token[:, :, 2 * row + column] = feature[:, :, row, column] + token
        torch.testing.assert_close(logits[:, 4 * i : 4 * i + 4], discriminator.heads[i](with_token))


def test_the_encoders_own_scale_does_not_act() -> None:
    encoder = config().encoder
    doubled = make(encoder=encoder.model_copy(update={"scale": 2.0})).eval()
    torch.testing.assert_close(doubled(pictures()), make().eval()(pictures()), rtol=0, atol=0)


def test_an_encoder_without_a_class_token_is_read_as_it_is() -> None:
    encoder = EncoderConfig(name="timm:test_resnet", layers=[2], weights="random")
    discriminator = make(encoder=encoder, input_size=64).eval()
    x = pictures(64, 64)
    feature = discriminator.encoder((x + 1) / 2, scaled=False).maps[0].flatten(2)
    torch.testing.assert_close(discriminator(x), discriminator.heads[0](feature))


def test_only_the_heads_train() -> None:
    discriminator = make().train()
    assert not discriminator.encoder.training
    trainable = {name for name, p in discriminator.named_parameters() if p.requires_grad}
    assert trainable == {f"heads.{name}" for name, _ in discriminator.heads.named_parameters()}
    x = pictures().requires_grad_()
    discriminator(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in discriminator.heads.parameters())
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(("side", "antialias"), [(48, True), (24, False)])
def test_other_sizes_are_resized(side: int, antialias: bool) -> None:
    discriminator = make(crop_probability=0.0)
    mode = discriminator.encoder.family.interpolation
    pixels = (pictures(side, side) + 1) / 2
    expected = F.interpolate(pixels, (SIZE, SIZE), mode=mode, antialias=antialias)
    assert torch.equal(discriminator.view(pixels), expected)
    # Bicubic, antialias changes the kernel where it enlarges, too.
    other = F.interpolate(pixels, (SIZE, SIZE), mode=mode, antialias=not antialias)
    assert (expected - other).abs().max() > 0.01


def test_large_pictures_are_cropped_at_one_random_place_for_the_batch() -> None:
    discriminator = make(crop_probability=1.0)
    height, width = 40, 36
    place = torch.arange(height * width).view(1, 1, height, width).expand(2, 3, -1, -1).float()
    corners = set()
    torch.manual_seed(0)
    for _ in range(200):
        crop = discriminator.view(place)
        assert crop.shape == (2, 3, SIZE, SIZE)
        top, left = divmod(int(crop[0, 0, 0, 0]), width)
        assert torch.equal(crop, place[..., top : top + SIZE, left : left + SIZE])
        corners.add((top, left))
    assert {top for top, _ in corners} == set(range(height - SIZE + 1))
    assert {left for _, left in corners} == set(range(width - SIZE + 1))


def test_half_of_the_batches_are_cropped() -> None:
    discriminator = make()
    pixels = (pictures(40, 40) + 1) / 2
    resized = make(crop_probability=0.0).view(pixels)
    torch.manual_seed(0)
    cropped = sum(not torch.equal(discriminator.view(pixels), resized) for _ in range(400))
    assert 150 < cropped < 250


@pytest.mark.parametrize(("height", "width"), [(SIZE, SIZE), (24, 24), (24, 48)])
def test_pictures_that_are_not_larger_are_never_cropped(height: int, width: int) -> None:
    pixels = (pictures(height, width) + 1) / 2
    expected = make(crop_probability=0.0).view(pixels)
    assert torch.equal(make(crop_probability=1.0).view(pixels), expected)


def test_augmentation_comes_first_and_from_the_global_generator() -> None:
    plain, discriminator = make().eval(), make(augment=True).eval()
    x = pictures()
    torch.manual_seed(7)
    logits = discriminator(x)
    torch.manual_seed(7)
    expected = plain(augment(x, draw(2, SIZE, SIZE)))
    torch.testing.assert_close(logits, expected)
    torch.manual_seed(8)
    assert not torch.allclose(discriminator(x), logits)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_augmentation_comes_from_the_generators_of_the_pictures() -> None:
    plain, discriminator = make().eval(), make(augment=True).eval()
    x = pictures()
    before = torch.get_rng_state()
    logits = discriminator(x, generators(1, 2), generators(3)[0])
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(logits, plain(augment(x, draw(2, SIZE, SIZE, generators(1, 2)))))
    assert not torch.allclose(discriminator(x, generators(2, 1)), logits)


def test_the_crop_comes_from_the_shared_generator() -> None:
    discriminator = make().eval()
    pixels = (pictures(48, 48) + 1) / 2
    before = torch.get_rng_state()
    views = [discriminator.view(pixels, *generators(seed)) for seed in range(12)]
    logits = discriminator(pictures(48, 48), generators(1, 2), *generators(4))
    assert torch.equal(torch.get_rng_state(), before)
    resized = make(crop_probability=0.0).view(pixels)
    cropped = [view for view in views if not torch.equal(view, resized)]
    assert 0 < len(cropped) < 12
    assert any(not torch.equal(view, cropped[0]) for view in cropped)  # At different places.
    for seed in range(12):  # Half of the pictures get the same view.
        assert torch.equal(discriminator.view(pixels[1:], *generators(seed)), views[seed][1:])
    torch.testing.assert_close(logits, discriminator.judge(discriminator.taps(views[4])))


def test_a_batch_that_does_not_divide_is_an_error() -> None:
    with pytest.raises(LumitokError, match="9 pictures do not divide"):
        make()(pictures(batch=9))


def test_an_input_size_off_the_patch_is_an_error() -> None:
    with pytest.raises(LumitokError, match=r"input_size is 30 pixels, and timm:\w+ sees multiples of 16"):
        make(input_size=30)


def test_it_can_be_built_without_weights_and_memory() -> None:
    encoder = config().encoder.model_copy(update={"weights": "no-such-file.safetensors"})
    with torch.device("meta"):
        discriminator = FoundationDiscriminator(config(encoder=encoder), load_weights=False)
    assert all(p.is_meta for p in discriminator.parameters())
