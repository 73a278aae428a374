"""What an official VFM-VAE file says of itself: its sizes, worked out from the shapes of its tensors.

Keys are those of the newer layout, see :func:`lumitok.interop.vfm_vae.number_blocks`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from lumitok.config import BLOCKS, VFMVAEConfig, block_count, first_fault
from lumitok.errors import LumitokError
from lumitok.foundation import FoundationEncoder
from lumitok.interop.witnesses import Shapes, Witnesses

FAMILIES = ("ldm_adapter.", "mapping.", "synthesis.")
"""What the keys of the official generator begin with, outside the frozen encoder."""
_FULL_SIZE = 256  # Pixels from which the decoder has all its blocks.


def check_is_generator(keys: Collection[str], source: str) -> None:
    """Raise a LumitokError where no key is the official generator's."""
    if any(key.startswith(FAMILIES) for key in keys):
        return
    some = ", ".join(list(keys)[:5]) or "none"
    raise LumitokError(
        f"{source} is no VFM-VAE generator: none of its {len(keys)} keys begins with "
        f"{', '.join(FAMILIES)}; the first are {some}"
    )


def count_projections(shapes: Shapes) -> int:
    """Feature maps of the frozen encoder that the file projects; 0 where it holds no projection."""
    return Witnesses(shapes).count(r"ldm_adapter\.patch_quants\.(\d+)\.")


def read_settings(
    shapes: Shapes,
    encoder: FoundationEncoder,
    *,
    scale: float | None = None,
    image_size: int | None = None,
    named_size: int | None = None,
) -> VFMVAEConfig:
    """Work out the config of an official generator.

    Args:
        shapes: of its tensors by key, the frozen encoder's left out.
        encoder: the encoder at the layers that the file was trained on, at scale 1; no weights are read.
        scale: what the caller says it is; it must agree with the shapes.
        image_size: likewise, in pixels.
        named_size: side in pixels of the last block, where the file's keys name it.

    Raises:
        LumitokError: the caller's values contradict the shapes, or no config has such sizes.
    """
    seen = Witnesses(shapes)
    blocks = seen.count(r"synthesis\.blocks\.(\d+)\.") or BLOCKS
    if blocks > BLOCKS:
        raise LumitokError(f"the file's decoder has {blocks} blocks; lumitok's has at most {BLOCKS}")
    size = _image_size(seen, blocks, image_size, named_size)
    values: dict[str, Any] = {"image_size": size, **_channels(seen), **_blocks(seen, blocks)}
    values["downsampling"] = _downsampling(seen, blocks, values["post_channels"])
    reductions = [stride * encoder.config.scale for stride in encoder.strides]
    projected = [
        seen.most(rf"ldm_adapter\.patch_quants\.{i}\.0\.blocks\.0\.(norm2|mlp\.norm|mlp\.w2)\..*", 0) or 64
        for i in range(len(reductions))
    ]
    found = _scale(seen, projected, reductions, values["downsampling"], scale)
    # A map coarser than the latent has the channels that its pixel shuffle takes.
    shuffled = [max(1.0, reduction / (found * values["downsampling"])) for reduction in reductions]
    values["projected_channels"] = [round(p / f**2) for p, f in zip(projected, shuffled, strict=True)]
    try:
        return VFMVAEConfig(encoder=encoder.config.model_copy(update={"scale": found}), **values)
    except ValidationError as error:
        raise LumitokError(
            f"lumitok has no VFM-VAE of this file's sizes: {first_fault(error, VFMVAEConfig)}"
        ) from None


def _image_size(seen: Witnesses, blocks: int, given: int | None, named: int | None) -> int:
    """Side of the pictures: named by the keys or the noise maps, else told, else the blocks' default."""
    noise = seen.most(rf"synthesis\.blocks\.{blocks - 1}\..*\.noise_const", 0)
    for known, why in ((named, "name their last block's side"), (noise, "hold noise maps")):
        if known is not None and given not in (None, known):
            raise LumitokError(
                f"the weights {why} for pictures of {known} px, not {given}; leave the image size out"
            )
    found = named or noise or given or _FULL_SIZE >> (BLOCKS - blocks)
    if block_count(found) != blocks:
        raise LumitokError(
            f"the file's decoder has {blocks} blocks, for {found} px it would have {block_count(found)}; "
            f"give another image size, such as {_FULL_SIZE >> (BLOCKS - blocks)}"
        )
    return found


def _channels(seen: Witnesses) -> dict[str, Any]:
    """What holds for the whole model; an answer that no tensor gives is left to the config's default."""
    fields = VFMVAEConfig.model_fields
    post = r"ldm_adapter\.post_quant\.blocks\.0\."
    found: dict[str, int | None] = {
        "latent_channels": seen.most(post + r"(norm1|norm3)\..*", 0),
        "post_channels": seen.most(post + r"(norm2|mlp\.norm|mlp\.w2|proj)\..*", 0),
        "style_channels": seen.most(r"synthesis\..*\.(affine_pw1|affine)\.proj\.weight", 1),
        "attention_heads": seen.most(r"synthesis\..*\.null_kv", 1),
    }
    return {
        **{name: fields[name].default if value is None else value for name, value in found.items()},
        "vf_head": any(key.startswith("ldm_adapter.linear_proj.") for key in seen.shapes),
        "legacy_noise": any(key.endswith((".noise_const", ".noise_strength")) for key in seen.shapes),
    }


def _blocks(seen: Witnesses, blocks: int) -> dict[str, list[int]]:
    """The lists over the distance from the last block; what the file does not tell keeps its default."""
    names = ("channels", "kernels", "depths", "blurs", "attention", "latent_channels")
    lists = {f"block_{name}": list(VFMVAEConfig.model_fields[f"block_{name}"].default) for name in names}
    for place in range(blocks):
        at = rf"synthesis\.blocks\.{place}\."
        if not seen.numbers(rf"synthesis\.blocks\.({place})\."):
            continue  # A whole block is missing: the comparison will say so.
        groups = seen.numbers(rf"synthesis\.z_convs\.{place}\.(\d+)\.")
        last = rf"synthesis\.z_convs\.{place}\.{max(groups, default=0)}\.[01]\..*"
        found = {
            "channels": seen.most(at + r".*\.(dwconv|pwconv2)\..*", 0),
            "kernels": seen.most(at + r".*\.dwconv\.weight", -1),
            "depths": 1 + seen.count(at + r"convs1\.(\d+)\."),
            "blurs": seen.most(at + r".*\.blur_weight", -1),
            "attention": seen.count(at + r"self_attns\.(\d+)\."),
            "latent_channels": (seen.most(last, 0) or 0) if groups else 0,
        }
        for name, value in found.items():
            if value is not None:
                lists[f"block_{name}"][blocks - 1 - place] = value
    return lists


def _downsampling(seen: Witnesses, blocks: int, post_channels: int) -> int:
    """Each spatial branch brings the latent's grid to half its block's output, so each tells the latent's.

    An unshuffle by n multiplies the channels of the depthwise convolution by n * n, a shuffle by n those
    that the pointwise convolution gives.
    """
    answers: Counter[int] = Counter()
    for place in sorted(seen.numbers(r"synthesis\.z_convs\.(\d+)\.")):
        groups = seen.numbers(rf"synthesis\.z_convs\.{place}\.(\d+)\.")
        at = rf"synthesis\.z_convs\.{place}\.{min(groups)}\."
        wide = seen.most(at + r"0\.weight", 0) or seen.most(at + r"1\.weight", 1) or post_channels
        shuffled = seen.most(at + r"(1\.weight|2\..*)", 0)
        mapped = seen.most(rf"synthesis\.z_convs\.{place}\.{max(groups)}\.[01]\..*", 0)
        if shuffled and mapped:
            factor = math.sqrt(shuffled / mapped) / math.sqrt(wide / post_channels)
            answers[max(1, round(factor * 2 ** (blocks - place)))] += 1
    default: int = VFMVAEConfig.model_fields["downsampling"].default
    return answers.most_common(1)[0][0] if answers else default


def _scale(
    seen: Witnesses, projected: list[int], reductions: list[float], downsampling: int, given: float | None
) -> float:
    """Scale of the encoder's input, from how many channels the maps have on the latent's grid.

    A map of p channels with n positions a latent side gives p * n * n; n = scale * downsampling / reduction.
    """
    fused = seen.most(r"ldm_adapter\.final_quant\.blocks\.0\.(norm1|norm3)\..*", 0)
    if fused is None:
        return given or 2.0
    at_one = sum(
        p * (downsampling / reduction) ** 2 for p, reduction in zip(projected, reductions, strict=True)
    )
    found = round(math.sqrt(fused / at_one), 6)
    if given is not None and abs(given - found) > 1e-3:
        raise LumitokError(
            f"the file's projections fit an encoder input of {found:g} times the picture's side, not "
            f"{given:g}; leave the scale out, or check the encoder's name and layers"
        )
    return found


# ------------------------------------------------------------------------------------------------
# The keys that a config has


def official_keys(settings: VFMVAEConfig) -> list[str]:
    """Every key of the official generator with this config, the frozen encoder's left out."""
    adapter = [f"patch_quants.{i}.0" for i in range(len(settings.projected_channels))]
    keys = [
        f"ldm_adapter.{name}.{leaf}"
        for name in (*adapter, "final_quant", "post_quant")
        for leaf in _PROJECTION
    ]
    if settings.vf_head:
        keys.append("ldm_adapter.linear_proj.weight")
    keys += ["mapping.x_avg", *(f"mapping.mlp.{leaf}" for leaf in _pairs("fc0", "fc1"))]
    count = block_count(settings.image_size)
    for place in range(count):
        distance = count - 1 - place
        if settings.block_latent_channels[distance]:
            factor = settings.downsampling / 2 ** (distance + 1)
            # The (un)shuffle takes a place in the sequence, before the convolutions or between them.
            first, last = (1, 2) if factor < 1 else (0, 1) if factor == 1 else (0, 2)
            leaves = [f"{first}.0.weight", f"{first}.1.weight", *_pairs(f"{first}.2")]
            leaves += [f"{last}.0.weight", *_pairs(f"{last}.1")]
            keys += [f"synthesis.z_convs.{place}.{leaf}" for leaf in leaves]
        keys += [
            f"synthesis.blocks.{place}.{leaf}" for leaf in _block_leaves(settings, distance, first=place == 0)
        ]
    return keys


def _pairs(*names: str) -> list[str]:
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


_PROJECTION = [
    f"blocks.0.{leaf}"
    for leaf in (
        *_pairs("norm1", "norm2", "norm3", "proj", "attn.proj", "mlp.norm", "mlp.w0", "mlp.w1", "mlp.w2"),
        "attn.qkv.weight",
        "attn.q_bias",
        "attn.v_bias",
        "attn.zero_k_bias",
    )
]
_UPSAMPLE = ["blur_weight", *_pairs("norm"), "depthwise.weight", "pointwise.weight"]
_LAYER = [*_pairs("affine_pw1.proj", "dwconv", "norm", "pwconv1", "pwconv2"), "gamma"]
_ATTENTION = [
    *(
        f"attn.{leaf}"
        for leaf in ("norm.gamma", "to_q.weight", "to_k.weight", "to_v.weight", "to_out.weight")
    ),
    "attn.null_kv",
    "ff.0.gamma",
    *_pairs("ff.1", "ff.3"),
]


def _block_leaves(settings: VFMVAEConfig, distance: int, *, first: bool) -> list[str]:
    upsamples = ["seperate_upsample_conv"] if first else ["seperate_upsample_conv", "last_upsample_conv"]
    layers = ["conv0", *(f"convs1.{j}" for j in range(settings.block_depths[distance] - 1))]
    layer = [*_LAYER, *(["noise_const", "noise_strength"] if settings.legacy_noise else [])]
    attentions = [f"self_attns.{j}" for j in range(settings.block_attention[distance])]
    groups = ((upsamples, _UPSAMPLE), (layers, layer), (attentions, _ATTENTION))
    leaves = [f"{name}.{leaf}" for names, group in groups for name in names for leaf in group]
    return [*leaves, *_pairs("torgb", "torgb.affine.proj")]
