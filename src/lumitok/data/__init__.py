"""Pictures on disk become batches of pixels: folders and zips, preparation, seeded order, demo pictures."""

from __future__ import annotations

from lumitok.data.batches import TrainingBatches, validation_batches
from lumitok.data.demo_pictures import DemoPictures, make_demo_pictures
from lumitok.data.pictures import Pictures, open_pictures, read_picture, split_holdout
from lumitok.data.prepare import center_crop, prepare, random_square

__all__ = [
    "DemoPictures",
    "Pictures",
    "TrainingBatches",
    "center_crop",
    "make_demo_pictures",
    "open_pictures",
    "prepare",
    "random_square",
    "read_picture",
    "split_holdout",
    "validation_batches",
]
