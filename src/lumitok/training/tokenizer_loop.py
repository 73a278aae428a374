"""Training a tokenizer: one loop over a recipe's stages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import Tensor

from lumitok.config import Recipe, StageConfig, save_recipe
from lumitok.config.saved import look_for_saved
from lumitok.data import BadPicture, Batch, TrainingBatches
from lumitok.errors import LumitokError
from lumitok.evaluation.image_quality import to_uint8
from lumitok.foundation import trained_state
from lumitok.tokenizers import AlignTok, Tokenizer
from lumitok.training.begin import number_format
from lumitok.training.checkpoint import (
    DISCRIMINATOR,
    Best,
    load_optimizer_tensors,
    load_tensors,
    load_trained_state,
    optimizer_tensors,
    remove_old,
    room_is_told,
    save_best,
    save_identity,
    save_place,
    save_tensors,
    write_checkpoint,
)
from lumitok.training.interruption import Interruption, leave_if_asked
from lumitok.training.journal import Journal
from lumitok.training.measure import example_pictures, held_out_quality, measure_latents, to_pictures
from lumitok.training.provenance import provenance_of
from lumitok.training.reference import SemanticReference
from lumitok.training.seeds import StepDraws, derive_seed, seed_step
from lumitok.training.setup import Run, start_run
from lumitok.training.stages import count_step, due, log_means, stages_left, write_final
from lumitok.training.steps import (
    Part,
    StageState,
    adam,
    choose_trainable,
    learning_rate_factor,
    set_learning_rate,
    train_step,
    trained_names,
)
from lumitok.training.sums import Sums

GRID_PICTURES = 8
REFERENCE = "reference.safetensors"


def train(recipe: Recipe, resume: bool = False) -> Path:
    """Train a recipe's tokenizer through all its stages and return the run's folder.

    SIGTERM and Ctrl-C end the run after the step under way, with a checkpoint.

    Args:
        recipe: what to train, on what, how.
        resume: go on from the newest checkpoint of the run's folder; start where there is none.

    Raises:
        LumitokError: no pictures, a folder that holds another run, a number that is not finite, too many
            unreadable pictures, a full disk.
        SystemExit: the run was interrupted and saved; the code is 128 plus the signal's number.
    """
    if not isinstance(recipe, Recipe):
        raise LumitokError(f"train() trains tokenizers, and this is a {type(recipe).__name__}")
    run = start_run(recipe, resume)
    with room_is_told(run.folder):
        _train(run)
    return run.folder


def _train(run: Run) -> None:
    recipe = run.recipe
    steps = [stage.images // stage.batch_size for stage in recipe.stages]
    with (
        Interruption() as interruption,
        Journal(run.folder, run.accelerator, run.place, sum(steps)) as journal,
    ):
        introduce(run, journal)
        note_bad(run, journal, run.pictures.unreadable)
        for index in stages_left(run, len(steps)):
            _train_stage(run, journal, interruption, recipe.stages[index], steps[index])
        _finish(run, journal)


def _train_stage(
    run: Run, journal: Journal, interruption: Interruption, stage: StageConfig, steps: int
) -> None:
    state = enter_stage(run, stage)
    batches = iter(stage_batches(run, stage))
    save = partial(_save, run, state)
    while run.place.stage_step < steps:
        place = run.place
        set_learning_rate(state, learning_rate_factor(stage, place.stage_step, steps))
        parts = next_parts(run, journal, batches)
        train_step(state, parts, place.images)
        count_step(run, stage.batch_size, [run.ema])
        journal.advance(run.place, stage.name)
        report(run, journal, state, save, last=run.place.stage_step == steps)
        leave_if_asked(run.accelerator, journal, interruption, run.place, lambda: save(False))


def next_parts(run: Run, journal: Journal, batches: Iterator[Batch]) -> list[Part]:
    """This process's share of the next step's batch, part by part."""
    training, accelerator, place = run.recipe.training, run.accelerator, run.place
    stage = place.stages_before + place.stage
    # Draws follow from the place alone, so a resumed run repeats what it would have drawn.
    seed_step(training.seed, stage, place.stage_step, accelerator.process_index)
    loaded = [next(batches) for _ in range(training.accumulation)]
    note_bad(run, journal, [picture for batch in loaded for picture in batch.bad])
    names = [run.pictures.names[i] for batch in loaded for i in batch.indices.tolist()]
    run.guard.watch(place.step + 1, [batch.pixels for batch in loaded], names)
    parts = []
    for index, batch in enumerate(loaded):
        count = len(batch.pixels)
        first = (index * accelerator.num_processes + accelerator.process_index) * count
        draws = StepDraws(training.seed, stage, place.stage_step, first, count)
        labels = batch.labels.to(accelerator.device)
        parts.append(Part(to_pictures(batch.pixels, accelerator.device), draws, labels))
    return parts


def report(run: Run, journal: Journal, state: StageState, save: Callable[[bool], None], last: bool) -> None:
    """Log, draw, measure and save as often as the recipe asks, and at the end of a stage.

    ``save`` is told whether the held-out pictures came out better than ever.
    """
    training, step = run.recipe.training, run.place.step
    if due(training.log_every, step, last):
        log_means(run, journal, state.config.name, state.sums)
    with journal.pause():
        if run.held_out and due(training.grid_every, step, last):
            _draw(run, journal)
        improved = False
        if run.held_out and due(training.validate_every, step, last):
            improved = _measure(run, journal, state.config)
        if improved or due(training.checkpoint_every, step, last):
            save(improved)


def note_bad(run: Run, journal: Journal, found: list[BadPicture]) -> None:
    """Write down pictures that could not be read, on any process; stop where they are too many."""
    accelerator = run.accelerator
    if accelerator.num_processes > 1:
        count = torch.tensor([len(found)], device=accelerator.device)
        if int(accelerator.reduce(count, reduction="sum")) == 0:
            return
        found = gather_object(found)
    for picture in run.bad.add(found):
        journal.say(f"left out {picture.name!r}: {picture.reason} ({len(run.bad)} of {run.bad.total})")


def introduce(run: Run, journal: Journal) -> None:
    """Say what is trained, on what, and from where."""
    counts = sum(run.tokenizer.parts().values())
    left_out = ", ".join(f"{count} left out: {reason}" for reason, count in run.pictures.left_out.items())
    held_out = sum(len(p) for p in run.held_out.values())
    journal.say(
        f"{run.recipe.name or run.folder}: {counts / 1e6:.2f} M trainable parameters on "
        f"{run.accelerator.device} ({number_format(run.accelerator)}), "
        f"{run.accelerator.num_processes} process(es); {len(run.pictures)} pictures to train on, "
        f"{held_out} held out{'; ' + left_out if left_out else ''}; writing to {run.folder}"
    )
    if run.buckets is not None:
        stages = run.recipe.stages[run.place.stage :]
        journal.say(run.buckets.describe(max(stage.batch_size for stage in stages)))
    journal.say(run.began)


# ------------------------------------------------------------------------------------------------
# A stage


def enter_stage(run: Run, stage: StageConfig) -> StageState:
    """Set the networks up for a stage: what is trained, new optimizers, or those of the checkpoint."""
    accelerator = run.accelerator
    accelerator.free_memory()
    parameters = choose_trainable(run.tokenizer, stage)
    if run.place.stage_step == 0:
        if stage.begin == "averaged":
            run.ema.write()
        if stage.average == "restart":
            run.ema.restart()
    state = StageState(
        accelerator=accelerator,
        config=stage,
        tokenizer=run.tokenizer,
        generator=accelerator.prepare_model(run.tokenizer),
        objective=run.objectives[run.place.stage],
        parameters=parameters,
        optimizer=adam(parameters, stage.generator_lr, stage),
        guard=run.guard,
        sums=Sums(dict(run.place.sums)),
        reference=_reference(run, stage),
    )
    if run.discriminators is not None and stage.losses.adversarial:
        state.discriminator_parameters = run.discriminators.set_trained(stage.losses, True)
        state.discriminators = run.discriminators
        state.wrapped_discriminators = accelerator.prepare_model(run.discriminators)
        state.discriminator_optimizer = adam(state.discriminator_parameters, stage.discriminator_lr, stage)
        run.discriminators.set_trained(stage.losses, False)
    if run.taken_up is not None and run.place.stage_step > 0:
        folder = run.taken_up / "training"
        tensors = load_tensors(folder / "generator_optimizer.safetensors", accelerator.device)
        load_optimizer_tensors(state.optimizer, tensors)
        if state.discriminator_optimizer is not None:
            tensors = load_tensors(folder / "discriminator_optimizer.safetensors", accelerator.device)
            load_optimizer_tensors(state.discriminator_optimizer, tensors)
    run.taken_up = None
    run.tokenizer.train()
    return state


def _reference(run: Run, stage: StageConfig) -> SemanticReference | None:
    """What the stage holds the latent near; of a run that goes on, as the checkpoint has it."""
    if stage.losses.preservation == 0:
        return None
    assert isinstance(run.tokenizer, AlignTok)
    reference = SemanticReference(run.tokenizer)
    if run.taken_up is not None and run.place.stage_step > 0:
        saved = load_tensors(run.taken_up / "training" / REFERENCE, run.accelerator.device)
        load_trained_state(reference, saved, run.taken_up)
    return reference


def stage_batches(run: Run, stage: StageConfig) -> TrainingBatches:
    """The pictures of a stage from the run's place on."""
    training, world, place = run.recipe.training, run.accelerator.num_processes, run.place
    share = stage.batch_size // (training.accumulation * world)
    return TrainingBatches(
        run.pictures,
        run.recipe.data,
        run.recipe.model.image_size,
        share,
        derive_seed(training.seed, place.stages_before + place.stage),
        start_step=place.stage_step,
        rank=run.accelerator.process_index,
        world=world,
        parts=training.accumulation,
        buckets=run.buckets,
    )


@contextlib.contextmanager
def averaged(run: Run):  # type: ignore[no-untyped-def]
    """The tokenizer with averaged weights, in eval mode."""
    with run.ema.applied():
        run.tokenizer.eval()
        yield run.tokenizer
        run.tokenizer.train()


def _draw(run: Run, journal: Journal) -> None:
    """A grid of held-out pictures above their reconstructions."""
    if not run.accelerator.is_main_process:
        return
    pixels = example_pictures(run.held_out, run.recipe.model.image_size, GRID_PICTURES)
    if not len(pixels):
        return
    with averaged(run) as tokenizer, torch.no_grad(), run.accelerator.autocast():
        output: Tensor = tokenizer.reconstruct(to_pictures(pixels, run.accelerator.device))
    journal.examples(run.place, pixels, to_uint8(output).cpu())


def _measure(run: Run, journal: Journal, stage: StageConfig) -> bool:
    """Measure the held-out pictures; whether they came out better than ever before."""
    training = run.recipe.training
    values: dict[str, float] = {}
    scores: list[float] = []
    distances = {name: d for objective in run.objectives for name, d in objective.distances().items()}
    with averaged(run) as tokenizer, run.accelerator.autocast():
        for name, pictures in run.held_out.items():
            found, bad = held_out_quality(
                tokenizer,
                pictures,
                batch_size=max(1, min(stage.batch_size // run.accelerator.num_processes, 32)),
                limit=training.validation_images,
                distances=distances,
                align_with=run.objectives[run.place.stage].vf_encoder,
                accelerator=run.accelerator,
            )
            for picture in bad:
                if (name, picture.name) in run.said:
                    continue
                run.said.add((name, picture.name))
                journal.say(f"not measured, though held out: {picture.name!r}: {picture.reason}")
            scores.append(found.get(training.best, 0.0))
            values |= {f"{name}/{key}" if name else key: value for key, value in found.items()}
    journal.record(run.place, stage.name, "validation", values)
    if training.best == "none":
        return False
    score = sum(scores) / len(scores)
    if run.best is not None and run.best.metric == training.best and not run.best.beaten_by(score):
        return False
    run.best = Best(training.best, score, run.place.step)
    return True


def _save(run: Run, state: StageState, improved: bool) -> None:
    """Write a checkpoint: the averaged tokenizer to use, and all that is needed to go on."""
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        write_checkpoint(run.folder, run.place.step, lambda folder: fill_checkpoint(run, state, folder))
        if improved and run.best is not None:
            save_best(run.folder, run.best)
        remove_old(run.folder, run.recipe.training.keep)
    run.accelerator.wait_for_everyone()


def fill_checkpoint(run: Run, state: StageState, folder: Path) -> None:
    """Write all of a tokenizer's run into a checkpoint's folder."""
    training = folder / "training"
    run.tokenizer.provenance = provenance_of(run)
    with run.ema.applied():
        run.tokenizer.save_pretrained(folder / "tokenizer")
    save_tensors(training / "generator.safetensors", trained_state(run.tokenizer))
    save_tensors(training / "ema.safetensors", run.ema.average)
    save_tensors(training / "generator_optimizer.safetensors", optimizer_tensors(state.optimizer))
    if run.discriminators is not None:
        save_tensors(training / DISCRIMINATOR, trained_state(run.discriminators))
    if state.discriminator_optimizer is not None:
        optimizer = optimizer_tensors(state.discriminator_optimizer)
        save_tensors(training / "discriminator_optimizer.safetensors", optimizer)
    if state.reference is not None:
        save_tensors(training / REFERENCE, trained_state(state.reference))
    save_place(training, replace(run.place, skipped=run.guard.skipped, sums=state.sums.values))
    save_identity(training, run.identity)
    save_recipe(run.recipe, folder / "recipe.yaml")


def _finish(run: Run, journal: Journal) -> None:
    """Give the averaged weights their latent's statistics and write the final tokenizer."""
    training = run.recipe.training
    if run.accelerator.is_main_process:
        with averaged(run) as tokenizer:
            kept = _statistics_of_start(run, tokenizer)
            if kept is None:
                mean, std, count = measure_latents(
                    tokenizer,
                    run.pictures,
                    batch_size=32,
                    limit=training.statistics_images,
                    seed=training.seed,
                )
                tokenizer.set_latent_statistics(mean, std, count)
                told = f"latent statistics from {count} pictures"
            else:
                tokenizer.set_latent_statistics(*kept)
                told = f"latent and statistics as in {run.recipe.init}"
            tokenizer.provenance = provenance_of(run)
            save = partial(tokenizer.save_pretrained, bundle_encoder=training.bundle_encoder)
            write_final(run.folder, {"tokenizer": save})
        journal.say(f"done: {run.folder / 'tokenizer'} ({told})")
    run.accelerator.wait_for_everyone()


def _statistics_of_start(run: Run, tokenizer: Tokenizer) -> tuple[Tensor, Tensor, int | None] | None:
    """The statistics of the tokenizer that the run began with, where the latent is still that one's.

    A diffusion network knows the latent by them, so a decoder trained anew must not change them.
    """
    trained = set().union(*(trained_names(tokenizer, stage) for stage in run.recipe.stages))
    if not run.recipe.init or {name.split(".")[0] for name in trained} & set(tokenizer.encoding_parts):
        return None  # Without opening a second tokenizer.
    start = look_for_saved(Path(run.recipe.init).expanduser(), "tokenizer")
    if start is None:
        return None
    before = Tokenizer.from_pretrained(start)
    mean, std = before.settings.latents_mean, before.settings.latents_std
    if mean is None or std is None or before.latent_fingerprint() != tokenizer.latent_fingerprint():
        return None
    # As they were written; float32 would round them.
    exact_mean, exact_std = torch.tensor([mean, std], dtype=torch.float64)
    return exact_mean, exact_std, before.settings.latents_count
