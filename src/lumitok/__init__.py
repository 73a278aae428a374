"""Image tokenizers for latent diffusion, built on frozen vision foundation models.

The rooms, in the order in which they import one another: ``nn``, ``data``, ``foundation``,
``tokenizers`` and ``losses``, ``evaluation``, ``training``, ``pipelines``, ``cli``. This module imports
none of them, so that ``import lumitok`` costs nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"
