"""Foreign checkpoints: their keys in, our keys out, one file a system."""
