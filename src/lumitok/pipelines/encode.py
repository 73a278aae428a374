"""A data set's latents, made once: what ``lumitok encode`` does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lumitok.data import BadPicture, Batch, Pictures, UnreadableError, evenly, open_pictures
from lumitok.data.bad_pictures import listing
from lumitok.data.batches import Key, loader, raising
from lumitok.data.latent_batches import cropped
from lumitok.data.latent_store import VIEWS, DType, Header, LatentStore, finish_store, open_latent_store
from lumitok.data.latent_writing import channel_statistics, close_gaps, write_lists, write_rows
from lumitok.data.latents import LatentSpec
from lumitok.errors import LumitokError, some
from lumitok.evaluation.processes import here, is_main, share, together
from lumitok.evaluation.progress import show_progress
from lumitok.nn.precision import exact_float32
from lumitok.pipelines.encode_plan import Log, Plan, clean, hash_pictures, read_logs, take_up
from lumitok.pipelines.reconstruct import open_tokenizer
from lumitok.tokenizers import Tokenizer
from lumitok.training.interruption import Interruption
from lumitok.training.measure import to_pictures
from lumitok.training.seeds import derive_seed

CHUNK = 256
"""Pictures that are encoded, written and noted together: what a kill costs a process at most."""
SHOWN = 3


@dataclass(frozen=True)
class Encoded:
    """What an encoding has left.

    Attributes:
        store: the finished store.
        missing: names of the pictures that could not be read and are not in it.
        notes: sentences to print.
    """

    store: LatentStore
    missing: list[str]
    notes: list[str]


def encode_pictures(
    checkpoint: str,
    folder: str | Path,
    out: Path,
    *,
    flip: bool = False,
    moments: bool = False,
    dtype: DType = "float32",
    precision: Literal["fp32", "bf16"] = "fp32",
    size: int | None = None,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 2,
    chunk: int = CHUNK,
    device: torch.device | None = None,
) -> Encoded:
    """Encode pictures and write their latents as a store.

    Started by ``torchrun`` or ``accelerate launch``, each process takes its share. A run that was killed goes
    on where it stopped when it is called again alike, with any number of processes. A picture's draw depends
    on the seed, its place in the listing and the view alone; batches are the same however often a run was
    stopped and whoever encodes them, so that the store has the same bits. Another batch size changes only
    rounding. Pictures that cannot be read are left out and counted.

    Args:
        checkpoint: folder of a run, a checkpoint or a tokenizer, or a hub id.
        folder: folder or zip of pictures; each is centre-cropped as ADM does.
        out: folder of the store.
        flip: encode the mirrored pictures too.
        moments: store mean and standard deviation of the posterior in place of one draw.
        dtype: of the numbers on disk.
        precision: that the tokenizer computes in: float32 without TF32, or autocast to bfloat16.
        size: side of the pictures in pixels; None: the tokenizer's.
        count: pictures to encode, spread evenly over the listing; None: all.
        seed: of the draws, 0 or more.
        batch_size: pictures at a time in each process.
        workers: processes that open pictures, for each process.
        chunk: pictures that are encoded, written and noted together.
        device: where it computes; None: this process's own.

    Raises:
        LumitokError: the checkpoint or the pictures do not open, the tokenizer is deterministic and moments
            were asked for, the folder holds something else or another encoding, a latent is not finite, the
            disk is full.
        SystemExit: the run was interrupted; the code is 128 plus the signal's number.
    """
    if batch_size < 1 or chunk < 1 or seed < 0 or workers < 0:
        raise LumitokError(
            "wanted a batch size of at least 1, a seed and workers of at least 0; got "
            f"{batch_size}, {seed} and {workers}"
        )
    device = device or here().device
    with here().local_main_process_first():  # The first one fetches what is missing, the others find it.
        tokenizer = open_tokenizer(checkpoint)
    listed = open_pictures(folder)
    if count is not None and not 1 <= count <= len(listed):
        raise LumitokError(f"'{folder}' holds {len(listed)} pictures and {count} were asked for")
    places = evenly(len(listed), count or len(listed))
    pictures = listed.subset(places)
    with exact_float32(), torch.no_grad():
        encoder = _Encoder(tokenizer.to(device), moments, precision, seed)
        header = Header(
            spec=encoder.spec(size or int(tokenizer.config.image_size), tokenizer),
            count=len(pictures),
            kind="moments" if moments else "samples",
            dtype=dtype,
            views=VIEWS if flip else VIEWS[:1],
            classes=tuple(pictures.classes),
            tokenizer=checkpoint,
            pictures=Path(folder).expanduser().resolve().name,
            image_size=size or int(tokenizer.config.image_size),
            seed=seed,
            left_out=pictures.left_out,
            files={},
            precision=precision,
        )
        wanted = Plan(header, hash_pictures(pictures), chunk)
        plan, *_ = together(lambda: take_up(out, wanted, pictures) if is_main() else None)
        if plan is not None:
            # One reads for all: another machine may see a shared disk as it was a moment ago.
            done, *_ = together(lambda: read_logs(out) if is_main() else {})
            pending = [number for number in range(plan.chunks()) if number not in done]
            mine = [pending[place] for place in share(len(pending))]
            job = _Job(encoder, plan, pictures, places, out, batch_size, workers)
            together(lambda: _encode(job, mine))
            together(lambda: _finish(plan, pictures, out) if is_main() else None)
    return _report(out, pictures)


class _Encoder:
    """Pictures to rows of a store."""

    def __init__(self, tokenizer: Tokenizer, moments: bool, precision: str, seed: int) -> None:
        self.tokenizer, self.moments, self.seed = tokenizer, moments, seed
        self.half = precision == "bf16"

    def spec(self, size: int, tokenizer: Tokenizer) -> LatentSpec:
        """Shape of the latents of pictures of a size, seen on a black one."""
        spec = tokenizer.latent_spec
        if size < 1 or size % tokenizer.config.downsampling:
            raise LumitokError(
                f"a latent's place is {tokenizer.config.downsampling} px, and a picture of {size} px cannot "
                "be divided into such; choose a multiple"
            )
        found = self.rows(torch.zeros(1, 3, size, size, dtype=torch.uint8), [0], 0)
        height, width = found.shape[2:]
        if height * tokenizer.config.downsampling != size:
            raise LumitokError(f"the tokenizer would pad pictures of {size} px; choose another --size")
        return replace(spec, height=height, width=width)

    def rows(self, pixels: Tensor, places: Sequence[int], view: int) -> Tensor:
        """8-bit pictures (b, 3, H, W) at places of the listing -> float32 rows (b, *row), on the CPU."""
        if view == 1:
            pixels = pixels.flip(3)
        device = self.tokenizer.device
        autocast = torch.autocast(device.type, torch.bfloat16) if self.half else nullcontext()
        with autocast:
            posterior = self.tokenizer.encode(to_pictures(pixels, device)).latent_dist
        if not self.moments:
            seeds = [derive_seed(self.seed, place, view) for place in places]
            drawn: Tensor = posterior.sample([torch.Generator().manual_seed(number) for number in seeds])
            return drawn.float().cpu()
        if posterior.logvar is None:
            raise LumitokError(
                f"the latent of this tokenizer ({type(self.tokenizer).__name__}) is deterministic: it has no "
                "standard deviation, and nothing can be drawn anew; encode without --moments"
            )
        return torch.cat([posterior.mean, posterior.std], dim=1).float().cpu()


class _Crops(Dataset[Batch]):
    """Opens whole batches of pictures, in a worker process or in this one."""

    def __init__(self, pictures: Pictures, size: int) -> None:
        self.pictures, self.size = pictures, size

    def __getitems__(self, keys: Sequence[Key]) -> Batch | LumitokError:
        pixels, rows, bad = [], [], []
        for _, row in keys:
            try:
                pixels.append(cropped(self.pictures, row, self.size))
                rows.append(row)
            except UnreadableError as error:
                bad.append(error.bad)
            except LumitokError as error:
                return error
        empty = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        stacked = torch.stack(pixels) if pixels else empty
        labels = torch.tensor([self.pictures.labels[row] for row in rows], dtype=torch.int64)
        return Batch(stacked, labels, torch.tensor(rows, dtype=torch.int64), bad)


@dataclass(frozen=True)
class _Job:
    """What one process encodes, and how."""

    encoder: _Encoder
    plan: Plan
    pictures: Pictures
    places: Sequence[int]
    """Where each picture stands in the whole listing."""
    out: Path
    batch_size: int
    workers: int

    def batches(self, chunk: int) -> list[list[Key]]:
        """The rows of a chunk, batch by batch, as the loader's keys."""
        keys = [(0, row) for row in self.plan.rows(chunk)]
        return [keys[start : start + self.batch_size] for start in range(0, len(keys), self.batch_size)]


def _encode(job: _Job, chunks: Sequence[int]) -> None:
    """Encode this process's chunks; each is noted once it is on the disk."""
    if not chunks:
        return
    keys = [batch for chunk in chunks for batch in job.batches(chunk)]
    crops = _Crops(job.pictures, job.plan.header.image_size)
    with (
        closing(Log(job.out, here().process_index)) as log,
        Interruption() as interruption,
        show_progress("encoding", sum(map(len, keys))) as show,
        closing(raising(loader(crops, keys, job.workers))) as batches,
    ):
        advance = counted(show)
        for chunk in chunks:
            rows, bad = _encode_chunk(job, chunk, batches, interruption, advance)
            try:
                for view, values in rows.items():
                    write_rows(job.out, job.plan.header, view, job.plan.rows(chunk).start, values)
                log.note(chunk, bad)
            except OSError as error:
                raise LumitokError(
                    f"cannot write to '{job.out}': {error.strerror}; what was encoded is kept: make room, "
                    "and the same command goes on"
                ) from error


def _encode_chunk(
    job: _Job,
    chunk: int,
    batches: Iterator[Batch],
    interruption: Interruption,
    advance: Callable[[int], None],
) -> tuple[dict[str, Tensor], list[tuple[int, BadPicture]]]:
    """Return a chunk's rows, view by view, and which of them have no picture that can be read."""
    header, start = job.plan.header, job.plan.rows(chunk).start
    rows = {view: torch.zeros(len(job.plan.rows(chunk)), *header.row) for view in header.views}
    bad: list[tuple[int, BadPicture]] = []
    for keys in job.batches(chunk):
        if interruption.asked is not None:
            number = int(interruption.asked)
            print(f"stopped by signal {number}; the same command goes on with '{job.out}'", file=sys.stderr)
            raise SystemExit(128 + number)
        batch = next(batches)
        used = batch.indices.tolist()
        places = [job.places[row] for row in used]
        for number, view in enumerate(header.views):
            if used:
                rows[view][batch.indices - start] = job.encoder.rows(batch.pixels, places, number)
        missing = [row for _, row in keys if row not in set(used)]
        bad += zip(missing, batch.bad, strict=True)
        advance(len(keys))
    return rows, bad


def _finish(plan: Plan, pictures: Pictures, out: Path) -> None:
    """Make a store of the rows that all processes have written."""
    bad = {row: picture for found in read_logs(out).values() for row, picture in found}
    header = plan.header
    if len(bad) == header.count:
        raise LumitokError(
            f"none of the {header.count} pictures can be read; mend them, then delete '{out}' and encode "
            f"again:\n{listing(list(bad.values()))}"
        )
    order = close_gaps(out, header, list(bad))
    left_out = header.left_out | ({"unreadable": len(bad)} if bad else {})
    few = pictures.subset(order).hash_few()
    header = replace(header, count=len(order), left_out=left_out, few_pictures=few)
    if header.spec.mean is None or header.spec.std is None:
        mean, std = channel_statistics(out, header)
        header = replace(header, spec=replace(header.spec, mean=mean, std=std), statistics="store")
    write_lists(out, [pictures.labels[row] for row in order], [pictures.names[row] for row in order])
    size = len(header.views) * header.count * header.row_bytes
    with show_progress("hashing", size >> 20, "MiB") as show:
        finish_store(out, header, counted(lambda done: show(done >> 20)))
    clean(out)


def counted(show: Callable[[int], None]) -> Callable[[int], None]:
    """Turn what is told a sum into what is told of each part."""
    total = 0

    def advance(more: int) -> None:
        nonlocal total
        total += more
        show(total)

    return advance


def _report(out: Path, pictures: Pictures) -> Encoded:
    store = open_latent_store(out)
    encoded = set(store.names)
    missing = [name for name in pictures.names if name not in encoded]
    notes = []
    if missing:
        notes.append(
            f"{len(missing):,} of {len(pictures):,} pictures could not be read and are not in the store: "
            f"{some(missing, SHOWN)}"
        )
    if store.header.statistics == "store":
        notes.append(
            "the tokenizer carries no latent statistics: mean and standard deviation were measured on this "
            "store's own latents; what is trained on it keeps them"
        )
    return Encoded(store, missing, notes)
