"""The loops of tokenizers, of diffusion networks and of both together, with all that a run keeps."""

from lumitok.tokenizers.base import find_tokenizer
from lumitok.training.diffusion_loop import train_diffusion
from lumitok.training.end_to_end_loop import train_end_to_end
from lumitok.training.measure import measure_latents
from lumitok.training.tokenizer_loop import train

__all__ = ["find_tokenizer", "measure_latents", "train", "train_diffusion", "train_end_to_end"]
