"""Inception with made-up weights: the published ones are 96 MB that a test cannot fetch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


class _Bare(FeatureExtractorInceptionV3):
    """Built without a file of weights."""

    def load_state_dict(self, *args: object, **kwargs: object) -> None:
        pass


def write_random_inception(path: Path) -> Path:
    """Write weights whose scale keeps the features alive down to the logits."""
    torch.save({}, path)
    network = _Bare("made-up", ["2048"], feature_extractor_weights_path=path)
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = network.state_dict()
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            inputs = module.weight[0].numel()
            noise = torch.randn(module.weight.shape, generator=generator)
            state[f"{name}.weight"] = noise * (2 / inputs) ** 0.5
        if isinstance(module, nn.BatchNorm2d | nn.Linear):
            state[f"{name}.bias"] = torch.randn(module.bias.shape, generator=generator) * 0.1
    torch.save(state, path)
    return path
