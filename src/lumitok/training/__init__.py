"""The tokenizer loop, its stages, averages, checkpoints and journal."""

from lumitok.tokenizers.base import find_tokenizer
from lumitok.training.measure import measure_latents
from lumitok.training.tokenizer_loop import train

__all__ = ["find_tokenizer", "measure_latents", "train"]
