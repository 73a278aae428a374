"""Training a tokenizer: one loop over a recipe's stages."""

from __future__ import annotations

import contextlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import ProjectConfiguration
from torch import Tensor

from lumitok.config import Recipe, StageConfig, load_recipe, save_recipe
from lumitok.data import Pictures, TrainingBatches, open_pictures, split_holdout
from lumitok.errors import LumitokError
from lumitok.evaluation.image_quality import to_uint8
from lumitok.losses.discriminators.foundation import FoundationDiscriminator
from lumitok.losses.discriminators.head import VIRTUAL_BATCH
from lumitok.tokenizers import Tokenizer, build_tokenizer
from lumitok.training.checkpoint import (
    CheckpointWriter,
    Place,
    checkpoints,
    load_optimizer_tensors,
    load_place,
    load_tensors,
    load_trained_state,
    optimizer_tensors,
    save_place,
    save_tensors,
    trained_state,
)
from lumitok.training.ema import EMA
from lumitok.training.journal import Journal
from lumitok.training.measure import example_pictures, held_out_quality, measure_latents, to_pictures
from lumitok.training.memory import keep_freed_memory
from lumitok.training.objective import GeneratorObjective
from lumitok.training.precision import choose_precision, default_device
from lumitok.training.seeds import derive_seed, seed_step
from lumitok.training.steps import (
    StageState,
    adam,
    choose_trainable,
    learning_rate_factor,
    set_learning_rate,
    set_trained,
    train_step,
)

GRID_PICTURES = 8
# Settings that may differ when a run is taken up again: they do not change what is learnt.
_FREE_TRAINING = "log_every grid_every validate_every validation_images checkpoint_every keep"
_FREE_TRAINING += " statistics_images bundle_encoder tracker"
FREE = {"training": set(_FREE_TRAINING.split()), "data": {"workers"}}


@dataclass
class Run:
    """All that outlives a stage."""

    recipe: Recipe
    folder: Path
    accelerator: Accelerator
    tokenizer: Tokenizer
    discriminator: FoundationDiscriminator | None
    objectives: list[GeneratorObjective]
    """One a stage."""
    ema: EMA
    pictures: Pictures
    held_out: dict[str, Pictures]
    place: Place
    taken_up: Path | None
    """The checkpoint to go on from, until its optimizers are read."""


def train(recipe: Recipe, resume: bool = False) -> Path:
    """Train a recipe's tokenizer through all its stages and return the run's folder.

    Args:
        recipe: what to train, on what, how.
        resume: go on from the newest checkpoint of the run's folder; start where there is none.

    Raises:
        LumitokError: no pictures, a folder that holds another run, a loss that is not finite.
    """
    run = _start(recipe, resume)
    steps = [stage.images // stage.batch_size for stage in recipe.stages]
    with Journal(run.folder, run.accelerator, run.place, sum(steps)) as journal:
        _introduce(run, journal)
        for index in range(run.place.stage, len(recipe.stages)):
            if index > run.place.stage:
                run.place = Place(index, 0, run.place.step, run.place.images)
            _train_stage(run, journal, recipe.stages[index], steps[index])
        _finish(run, journal)
    return run.folder


def _train_stage(run: Run, journal: Journal, stage: StageConfig, steps: int) -> None:
    state = _enter(run, stage)
    batches = iter(_batches(run, stage))
    while run.place.stage_step < steps:
        place = run.place
        # Draws follow from the place alone, so a resumed run repeats what it would have drawn.
        seed_step(run.recipe.training.seed, place.stage, place.stage_step, run.accelerator.process_index)
        set_learning_rate(state, learning_rate_factor(stage, place.stage_step, steps))
        parts = [
            to_pictures(next(batches)[0], run.accelerator.device)
            for _ in range(run.recipe.training.accumulation)
        ]
        train_step(state, parts, place.images)
        seen = place.images + stage.batch_size
        run.ema.update(seen, stage.batch_size)
        run.place = Place(place.stage, place.stage_step + 1, place.step + 1, seen)
        journal.advance(run.place, stage.name)
        _report(run, journal, state, last=run.place.stage_step == steps)


def _report(run: Run, journal: Journal, state: StageState, last: bool) -> None:
    """Log, draw, measure and save as often as the recipe asks, and at the end of a stage."""
    training, step, name = run.recipe.training, run.place.step, state.config.name

    def due(every: int) -> bool:
        return last or (every > 0 and step % every == 0)

    if due(training.log_every):
        journal.record(run.place, name, "train", state.means())
    with journal.pause():
        if run.held_out and due(training.grid_every):
            _draw(run, journal)
        if run.held_out and due(training.validate_every):
            _measure(run, journal, state.config)
        if due(training.checkpoint_every):
            _save(run, state)


# ------------------------------------------------------------------------------------------------
# Start


def _start(recipe: Recipe, resume: bool) -> Run:
    if recipe.training.tracker == "wandb" and importlib.util.find_spec("wandb") is None:
        raise LumitokError("training.tracker is wandb, which is not installed: pip install 'lumitok[wandb]'")
    precision = choose_precision(recipe.training.precision, default_device())
    folder = Path(recipe.out or f"runs/{recipe.name}")
    if default_device().type == "cpu":
        keep_freed_memory()
    accelerator = Accelerator(
        mixed_precision="bf16" if precision.dtype == torch.bfloat16 else "no",
        cpu=default_device().type == "cpu",
        log_with=None if recipe.training.tracker == "none" else recipe.training.tracker,
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder)),
        # Spectral norms evolve alike on every process; broadcasting them would break the two passes.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    taken_up = _take_up(folder, recipe, resume)
    _check_stages(recipe, accelerator.num_processes)
    pictures, held_out = _open_data(recipe)
    torch.manual_seed(derive_seed(recipe.training.seed))
    tokenizer = build_tokenizer(recipe.model).to(accelerator.device)
    discriminator = None
    if recipe.discriminator is not None and any(stage.losses.gan > 0 for stage in recipe.stages):
        discriminator = FoundationDiscriminator(recipe.discriminator).to(accelerator.device)
    # Channels last is the layout that bfloat16 kernels want, and 1x1 convolutions on any processor.
    tokenizer.to(memory_format=torch.channels_last)
    place = Place()
    training = recipe.training
    if taken_up is not None:
        place = load_place(taken_up / "training")
        state = load_tensors(taken_up / "training" / "generator.safetensors", accelerator.device)
        load_trained_state(tokenizer, state)
        if discriminator is not None:
            state = load_tensors(taken_up / "training" / "discriminator.safetensors", accelerator.device)
            load_trained_state(discriminator, state)
    # Every stage's losses and patterns are looked at now, so that no later stage stops for want of a file.
    objectives = [GeneratorObjective(stage.losses) for stage in recipe.stages]
    for stage in recipe.stages:
        choose_trainable(tokenizer, stage)
    ema = EMA(tokenizer, tokenizer.trainable_names(), training.ema_half_life, training.ema_ramp)
    if taken_up is not None:
        ema.load(load_tensors(taken_up / "training" / "ema.safetensors", accelerator.device))
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, folder / "recipe.yaml")
    if training.tracker != "none":
        accelerator.init_trackers("log" if training.tracker == "tensorboard" else "lumitok")
    return Run(
        recipe,
        folder,
        accelerator,
        tokenizer,
        discriminator,
        objectives,
        ema,
        pictures,
        held_out,
        place,
        taken_up,
    )


def _take_up(folder: Path, recipe: Recipe, resume: bool) -> Path | None:
    """Find the checkpoint to go on from, and see that it belongs to this recipe."""
    found = checkpoints(folder)
    if not found:
        return None
    if not resume:
        raise LumitokError(
            f"{folder} holds a run already; go on with --resume, or choose another folder with out="
        )
    saved = load_recipe(str(found[-1] / "recipe.yaml"))
    for section in type(recipe).model_fields:
        old, new = getattr(saved, section), getattr(recipe, section)
        if section in FREE:
            old, new = (value.model_dump(exclude=FREE[section]) for value in (old, new))
        if section not in ("name", "about", "out") and old != new:
            raise LumitokError(
                f"the run in {folder} was started with another '{section}'; resume it with the recipe "
                f"{folder / 'recipe.yaml'}, or start a new run with out="
            )
    return found[-1]


def _check_stages(recipe: Recipe, world: int) -> None:
    """See that every stage's batch divides as it must."""
    parts = recipe.training.accumulation
    for stage in recipe.stages:
        share, rest = divmod(stage.batch_size, parts * world)
        if rest:
            raise LumitokError(
                f"stage '{stage.name}': batch_size {stage.batch_size} does not divide among {world} "
                f"processes and {parts} accumulated parts"
            )
        if stage.losses.gan > 0 and share % -(-share // VIRTUAL_BATCH):
            raise LumitokError(
                f"stage '{stage.name}': the discriminator normalises in equal groups of at most "
                f"{VIRTUAL_BATCH} pictures, and {share} pictures (a process, a part) do not divide so; make "
                f"it a multiple of {VIRTUAL_BATCH}"
            )


def _open_data(recipe: Recipe) -> tuple[Pictures, dict[str, Pictures]]:
    data = recipe.data
    if not data.train:
        raise LumitokError("this recipe names no pictures; add data.train=FOLDER_OR_ZIP")
    pictures = open_pictures(Path(data.train), min_side=data.min_side)
    held_out: dict[str, Pictures] = {}
    if isinstance(data.validation, dict):
        held_out = {name: open_pictures(Path(path)) for name, path in data.validation.items()}
    elif data.validation:
        held_out = {"": open_pictures(Path(data.validation))}
    elif data.holdout:
        pictures, rest = split_holdout(pictures, data.holdout, data.holdout_seed)
        held_out = {"": rest}
    return pictures, held_out


def _introduce(run: Run, journal: Journal) -> None:
    counts = sum(run.tokenizer.parts().values())
    left_out = ", ".join(f"{count} left out: {reason}" for reason, count in run.pictures.left_out.items())
    held_out = sum(len(p) for p in run.held_out.values())
    journal.say(
        f"{run.recipe.name or run.folder}: {counts / 1e6:.2f} M trainable parameters on "
        f"{run.accelerator.device} ({run.accelerator.mixed_precision}), "
        f"{run.accelerator.num_processes} process(es); {len(run.pictures)} pictures to train on, "
        f"{held_out} held out{'; ' + left_out if left_out else ''}; writing to {run.folder}"
    )
    if run.taken_up is not None:
        journal.say(f"going on from {run.taken_up}")


# ------------------------------------------------------------------------------------------------
# A stage


def _enter(run: Run, stage: StageConfig) -> StageState:
    """Set the networks up for a stage: what is trained, new optimizers, or those of the checkpoint."""
    accelerator = run.accelerator
    accelerator.free_memory()
    optimizer = adam(choose_trainable(run.tokenizer, stage), stage.generator_lr, stage)
    state = StageState(
        accelerator=accelerator,
        config=stage,
        tokenizer=run.tokenizer,
        generator=accelerator.prepare_model(run.tokenizer),
        objective=run.objectives[run.place.stage].to(accelerator.device),
        optimizer=optimizer,
    )
    if run.discriminator is not None and stage.losses.gan > 0:
        set_trained(run.discriminator, True)
        heads = [p for p in run.discriminator.parameters() if p.requires_grad]
        state.discriminator = run.discriminator
        state.wrapped_discriminator = accelerator.prepare_model(run.discriminator)
        state.discriminator_optimizer = adam(heads, stage.discriminator_lr, stage)
        set_trained(run.discriminator, False)
    if run.taken_up is not None and run.place.stage_step > 0:
        folder = run.taken_up / "training"
        tensors = load_tensors(folder / "generator_optimizer.safetensors", accelerator.device)
        load_optimizer_tensors(optimizer, tensors)
        if state.discriminator_optimizer is not None:
            tensors = load_tensors(folder / "discriminator_optimizer.safetensors", accelerator.device)
            load_optimizer_tensors(state.discriminator_optimizer, tensors)
    run.taken_up = None
    run.tokenizer.train()
    return state


def _batches(run: Run, stage: StageConfig) -> TrainingBatches:
    training, world = run.recipe.training, run.accelerator.num_processes
    share = stage.batch_size // (training.accumulation * world)
    return TrainingBatches(
        run.pictures,
        run.recipe.data,
        run.recipe.model.image_size,
        share,
        derive_seed(training.seed, run.place.stage),
        start_step=run.place.stage_step,
        rank=run.accelerator.process_index,
        world=world,
        parts=training.accumulation,
    )


@contextlib.contextmanager
def _averaged(run: Run):  # type: ignore[no-untyped-def]
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
    with _averaged(run) as tokenizer, torch.no_grad(), run.accelerator.autocast():
        output: Tensor = tokenizer.reconstruct(to_pictures(pixels, run.accelerator.device))
    journal.examples(run.place, pixels, to_uint8(output).cpu())


def _measure(run: Run, journal: Journal, stage: StageConfig) -> None:
    training = run.recipe.training
    values: dict[str, float] = {}
    with _averaged(run) as tokenizer, run.accelerator.autocast():
        for name, pictures in run.held_out.items():
            found = held_out_quality(
                tokenizer,
                pictures,
                batch_size=max(1, min(stage.batch_size // run.accelerator.num_processes, 32)),
                limit=training.validation_images,
            )
            values |= {f"{name}/{key}" if name else key: value for key, value in found.items()}
    journal.record(run.place, stage.name, "validation", values)


def _save(run: Run, state: StageState) -> None:
    """Write a checkpoint: the averaged tokenizer to use, and all that is needed to go on."""
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        writer = CheckpointWriter(run.folder, run.recipe.training.keep)
        folder = writer.begin(run.place.step)
        training = folder / "training"
        with run.ema.applied():
            run.tokenizer.save_pretrained(folder / "tokenizer")
        save_tensors(training / "generator.safetensors", trained_state(run.tokenizer))
        save_tensors(training / "ema.safetensors", run.ema.average)
        save_tensors(training / "generator_optimizer.safetensors", optimizer_tensors(state.optimizer))
        if run.discriminator is not None:
            save_tensors(training / "discriminator.safetensors", trained_state(run.discriminator))
        if state.discriminator_optimizer is not None:
            save_tensors(
                training / "discriminator_optimizer.safetensors",
                optimizer_tensors(state.discriminator_optimizer),
            )
        save_place(training, run.place)
        save_recipe(run.recipe, folder / "recipe.yaml")
        writer.commit(folder)
    run.accelerator.wait_for_everyone()


def _finish(run: Run, journal: Journal) -> None:
    """Measure the latent's statistics on the averaged weights and write the final tokenizer."""
    training = run.recipe.training
    if run.accelerator.is_main_process:
        with _averaged(run) as tokenizer, run.accelerator.autocast():
            mean, std, count = measure_latents(
                tokenizer,
                run.pictures,
                batch_size=32,
                limit=training.statistics_images,
                seed=training.seed,
            )
            tokenizer.set_latent_statistics(mean, std, count)
            tokenizer.save_pretrained(run.folder / "tokenizer", bundle_encoder=training.bundle_encoder)
        journal.say(f"done: {run.folder / 'tokenizer'} (latent statistics from {count} pictures)")
    run.accelerator.wait_for_everyone()
