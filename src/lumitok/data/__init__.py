"""Pictures on disk become batches of pixels: folders and zips, preparation, seeded order, demo pictures."""

from __future__ import annotations

from lumitok.data.bad_pictures import BadPicture, BadPictures, UnreadableError
from lumitok.data.batches import Batch, TrainingBatches, validation_batches
from lumitok.data.buckets import Buckets
from lumitok.data.demo_pictures import DemoPictures, make_demo_pictures
from lumitok.data.pictures import Pictures, evenly, open_pictures, split_holdout
from lumitok.data.prepare import center_crop, prepare, random_square
from lumitok.data.read import read_picture, reason_of

__all__ = [
    "BadPicture",
    "BadPictures",
    "Batch",
    "Buckets",
    "DemoPictures",
    "Pictures",
    "TrainingBatches",
    "UnreadableError",
    "center_crop",
    "evenly",
    "make_demo_pictures",
    "open_pictures",
    "prepare",
    "random_square",
    "read_picture",
    "reason_of",
    "split_holdout",
    "validation_batches",
]
