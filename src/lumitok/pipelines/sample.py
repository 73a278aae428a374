"""Many pictures from a diffusion network: what ``lumitok sample`` does.

Sample i has a seed and a label that follow from the seed of the call and from i alone. So batches, processes
and restarts change nothing, and a folder can be gone on with, also to more samples than were asked for first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lumitok.config import SamplingConfig
from lumitok.config.section import by_dotted_keys
from lumitok.diffusion.sampling import check_together
from lumitok.errors import LumitokError, some
from lumitok.evaluation.image_quality import to_uint8
from lumitok.evaluation.processes import here, is_main, share, together
from lumitok.evaluation.progress import show_progress
from lumitok.foundation.weights import hash_weights
from lumitok.pipelines.import_folder import check_free, write_whole
from lumitok.pipelines.latent_diffusion import LatentDiffusionPipeline
from lumitok.pipelines.sample_files import picture_path, write_listing, write_npz, write_picture, write_sheet
from lumitok.training.precision import choose_precision
from lumitok.training.seeds import derive_seed

SETTINGS, PICTURES, SHEET, LISTING = "samples.json", "samples", "sheet.png", "samples.csv"
WRITERS = 4
MOST = 10**6
"""Samples of a folder at most: their names have six digits."""
DEFAULT_COUNT = 16
_LABEL = 1
"""What a sample's label is drawn with, beside the seed and its number."""
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Wanted:
    """Which samples to draw.

    Attributes:
        count: how many; None: as many as the classes have with ``per_class``, else 16.
        classes: names or numbers, taken in turn; None: all with ``per_class``, else one drawn for each.
        per_class: exactly so many of each class, in the place of ``count``.
        seed: of everything that is drawn.
    """

    count: int | None = None
    classes: Sequence[int | str] | None = None
    per_class: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class SampleReport:
    """What was done.

    Attributes:
        out: the folder; the pictures lie in ``samples/``.
        count: samples that are there now, of those asked for.
        drawn: how many of them this call drew, over all processes.
        seconds: that it took to draw them.
        sheet: the sheet; None where no samples were asked for.
        npz: the npz, where one was asked for.
        pipeline: the pipeline's folder, where one was asked for.
        how: solver, guidance and labels, for people.
    """

    out: Path
    count: int
    drawn: int
    seconds: float
    sheet: Path | None
    npz: Path | None
    pipeline: Path | None
    how: str


@dataclass(frozen=True)
class _Plan:
    """Labels and seeds of all samples, and what tells these from other samples."""

    labels: list[int] | None
    seeds: list[int]
    settings: dict[str, Any]
    how: str


def sample_pictures(
    checkpoint: str,
    out: Path,
    wanted: Wanted | None = None,
    *,
    tokenizer: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    precision: Precision = "fp32",
    npz: Path | None = None,
    save_pipeline: Path | None = None,
    bundle_encoder: bool = False,
) -> SampleReport:
    """Draw samples into a folder; those that lie there already are not drawn again.

    Args:
        checkpoint: diffusion run, checkpoint, network folder, saved pipeline, or hub id.
        out: folder: pictures in ``samples/``, ``sheet.png``, ``samples.csv``, ``samples.json``.
        wanted: which samples.
        tokenizer: run, checkpoint or folder; None: what the run's recipe or the pipeline has.
        sampling: changes of what the recipe or the pipeline says, as in ``SamplingConfig``.
        batch_size: samples at a time in each process.
        precision: ``fp32``; ``bf16``: autocast; ``auto``: bfloat16 where the device is fast in it.
        npz: file to write all samples to, shuffled, for ADM's evaluator.
        save_pipeline: folder to save tokenizer and network to as one pipeline.
        bundle_encoder: with a frozen encoder's weights.

    Raises:
        LumitokError: the parts do not fit, the folder holds other samples, a label there is not, a full disk.
    """
    wanted = wanted or Wanted()
    if npz is not None and npz.suffix != ".npz":
        raise LumitokError(f"'{npz}' is not named as an npz; give a file such as samples.npz")
    if save_pipeline is not None:
        check_free(save_pipeline)
    state = here()
    with state.local_main_process_first():  # The first one fetches what is missing, the others find it.
        pipeline = LatentDiffusionPipeline.from_pretrained(checkpoint, tokenizer=tokenizer, sampling=sampling)
    plan = _plan(pipeline, wanted, precision)
    count = len(plan.seeds)
    missing = together(lambda: _open_folder(out, checkpoint, plan) if is_main() else [])[0]
    begun = time.monotonic()
    if missing:
        pipeline.to(state.device)
        together(lambda: _draw(pipeline, plan, missing, out / PICTURES, batch_size, precision))
    seconds = time.monotonic() - begun
    if is_main() and count:
        folder, names = out / PICTURES, pipeline.class_names
        write_listing(out / LISTING, folder, plan.labels, plan.seeds, names)
        write_sheet(out / SHEET, folder, plan.labels, count, names)
        if npz is not None:
            write_npz(npz, folder, plan.labels, count, wanted.seed)
    if is_main() and save_pipeline is not None:
        write_whole(lambda path: pipeline.save_pretrained(path, bundle_encoder=bundle_encoder), save_pipeline)
    return SampleReport(
        out=out,
        count=count,
        drawn=len(missing),
        seconds=seconds,
        sheet=out / SHEET if count else None,
        npz=npz if count else None,
        pipeline=save_pipeline,
        how=plan.how,
    )


# ------------------------------------------------------------------------------------------------
# Which samples


def _plan(pipeline: LatentDiffusionPipeline, wanted: Wanted, precision: Precision) -> _Plan:
    if wanted.seed < 0:
        raise LumitokError(f"got the seed {wanted.seed}, wanted 0 or more")
    classes, count, said = _classes(pipeline, wanted)
    if not 0 <= count <= MOST:
        raise LumitokError(f"{count:,} samples were asked for, wanted 0 to {MOST:,}")
    seed, known = wanted.seed, pipeline.network.null_label
    # Before the folder says what its samples are.
    check_together(pipeline.network, pipeline.sampling, pipeline.guide, labelled=known > 0)
    labels: list[int] | None = None
    if classes is not None:
        labels = [classes[index % len(classes)] for index in range(count)]
    elif known:
        labels = [derive_seed(seed, index, _LABEL) % known for index in range(count)]
    settings = {
        "network": hash_weights(pipeline.network.state_dict().items()),
        "guide": None if pipeline.guide is None else hash_weights(pipeline.guide.state_dict().items()),
        # A network without an origin has the tokenizer's own; another decoder makes other pictures of them.
        "latents": asdict(pipeline.origin.spec),
        "tokenizer": pipeline.tokenizer.fingerprint(),
        "sampling": pipeline.sampling.model_dump(mode="json"),
        "precision": str(_precision(precision)),
        "labels": classes if classes is not None else ("drawn" if known else None),
        "seed": seed,
    }
    how = f"{said}; {describe(pipeline.sampling, pipeline.guide is not None)}; seed {seed}"
    # As they will be read again: tuples are lists then.
    settings = json.loads(json.dumps(settings))
    return _Plan(labels, [derive_seed(seed, index) for index in range(count)], settings, how)


def _classes(pipeline: LatentDiffusionPipeline, wanted: Wanted) -> tuple[list[int] | None, int, str]:
    """The classes to take in turn, None: to draw or none; how many samples; and that in words."""
    known = pipeline.network.null_label
    if wanted.per_class is not None and wanted.count is not None:
        raise LumitokError("give count or per_class, not both: per_class says how many there are")
    if wanted.classes is None and wanted.per_class is None:
        count = DEFAULT_COUNT if wanted.count is None else wanted.count
        return None, count, "labels drawn uniformly" if known else "no labels"
    if not known:
        raise LumitokError("this network knows no classes; give a count alone")
    classes = list(range(known)) if wanted.classes is None else pipeline.label_ids(wanted.classes)
    if not classes:
        raise LumitokError("there are no classes to draw; name at least one, or leave classes out")
    if wanted.per_class is not None:
        return classes, wanted.per_class * len(classes), f"exactly {wanted.per_class} a class"
    count = max(DEFAULT_COUNT, len(classes)) if wanted.count is None else wanted.count
    return classes, count, "classes in turn"


def describe(sampling: SamplingConfig, guided_by_network: bool = False) -> str:
    """Solver and guidance in words."""
    if sampling.solver == "dopri5":
        words = [f"dopri5 (atol {sampling.atol:g}, rtol {sampling.rtol:g})"]
    else:
        words = [f"{sampling.solver}, {sampling.steps} steps"]
        words += [f"shift {sampling.shift:g}"] if sampling.shift != 1 else []
    words += [f"eta {sampling.eta:g}"] if sampling.eta else []
    if not sampling.guided:
        return ", ".join([*words, "no guidance"])
    words.append(f"{'autoguidance' if guided_by_network else 'guidance'} {sampling.guidance:g}")
    if sampling.class_guidance is not None:
        words.append(f"of the class token {sampling.class_guidance:g}")
    if sampling.guidance_channels is not None:
        words.append(f"on the first {sampling.guidance_channels} channels")
    low, high = sampling.guidance_interval
    if (low, high) != (0, 1):
        words.append(f"for t from {low:g} to {high:g}")
    return ", ".join(words)


# ------------------------------------------------------------------------------------------------
# The folder


def _open_folder(out: Path, checkpoint: str, plan: _Plan) -> list[int]:
    """Say in the folder what its samples are, and return those that it lacks."""
    if not plan.seeds:
        return []
    path, folder = out / SETTINGS, out / PICTURES
    if path.is_file():
        _check_same(path, plan.settings)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LumitokError(f"'{out}' holds something else than samples; name a new folder, or an empty one")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        text = json.dumps({"checkpoint": checkpoint, "settings": plan.settings}, indent=1)
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    folder.mkdir(exist_ok=True)
    there = set(folder.glob("*.png"))
    if len(there) > len(plan.seeds):
        raise LumitokError(
            f"'{out}' holds {len(there):,} samples, more than the {len(plan.seeds):,} asked for; name "
            "another folder, or ask for as many"
        )
    return [index for index in range(len(plan.seeds)) if picture_path(folder, index) not in there]


def _check_same(path: Path, settings: dict[str, Any]) -> None:
    """Raise a LumitokError where a folder's samples were drawn otherwise."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["settings"]
        flat, ours = by_dotted_keys(dict(found)), by_dotted_keys(settings)
    except (ValueError, TypeError, KeyError) as error:
        raise LumitokError(f"'{path}' is damaged ({error}); name another folder") from None
    other = [
        f"{key} was {flat.get(key)}, now {value}" for key, value in ours.items() if flat.get(key) != value
    ]
    if other:
        raise LumitokError(
            f"'{path.parent}' holds samples that were drawn otherwise: {some(other, 3)}; name another "
            "folder, or ask for the same"
        )


# ------------------------------------------------------------------------------------------------
# Drawing


def _precision(setting: Precision) -> torch.dtype:
    return choose_precision(setting, here().device).dtype


def _autocast(setting: Precision) -> AbstractContextManager[object]:
    dtype = _precision(setting)
    return nullcontext() if dtype == torch.float32 else torch.autocast(here().device.type, dtype)


def _draw(
    pipeline: LatentDiffusionPipeline,
    plan: _Plan,
    missing: Sequence[int],
    folder: Path,
    batch_size: int,
    precision: Precision,
) -> None:
    """Draw this process's share of the missing samples, and write each as soon as it is there."""
    mine = [missing[place] for place in share(len(missing))]
    writing: list[Future[None]] = []
    with (
        ThreadPoolExecutor(WRITERS) as pool,
        show_progress("sampling", len(mine)) as tell,
        _autocast(precision),
    ):
        for first in range(0, len(mine), batch_size):
            indices = mine[first : first + batch_size]
            labels = None if plan.labels is None else [plan.labels[index] for index in indices]
            latents = pipeline.draw(
                labels, [plan.seeds[index] for index in indices], report=_part(tell, first, len(indices))
            )
            pixels = to_uint8(pipeline.decode(latents)).cpu()
            _wait(writing, folder)  # For the batch before: this one was drawn meanwhile.
            writing = [
                pool.submit(write_picture, picture, picture_path(folder, index))
                for index, picture in zip(indices, pixels, strict=True)
            ]
            tell(first + len(indices))
        _wait(writing, folder)


def _part(tell: Callable[[int], None], before: int, count: int) -> Callable[[int, int | None], None]:
    """Tell the bar of a batch under way, as if its samples came one after another."""

    def report(done: int, total: int | None) -> None:
        if total:
            tell(before + count * done // total)

    return report


def _wait(writing: Sequence[Future[None]], folder: Path) -> None:
    try:
        for future in writing:
            future.result()
    except OSError as error:
        raise LumitokError(
            f"samples cannot be written to '{folder}': {error}; those in it are whole. Make room, then call "
            "again"
        ) from error
