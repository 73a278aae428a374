"""The tokenizer loop and the diffusion loop, their stages, averages, checkpoints and journal."""

from lumitok.tokenizers.base import find_tokenizer
from lumitok.training.diffusion_loop import train_diffusion
from lumitok.training.measure import measure_latents
from lumitok.training.tokenizer_loop import train

__all__ = ["find_tokenizer", "measure_latents", "train", "train_diffusion"]
