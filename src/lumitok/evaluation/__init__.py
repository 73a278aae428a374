"""How good the pictures are: paired metrics, latents in colour, curves and the report."""
