"""Training a diffusion network: one loop over a recipe's stages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import AdamW

from lumitok.config import DiffusionRecipe, DiffusionStageConfig, SamplesConfig, save_recipe
from lumitok.data.latent_batches import LatentBatch, LatentBatches
from lumitok.data.latents import LatentOrigin
from lumitok.diffusion.base import DiffusionNetwork
from lumitok.diffusion.sampling import sample
from lumitok.evaluation.image_quality import to_uint8
from lumitok.foundation import trained_state
from lumitok.tokenizers import Tokenizer
from lumitok.training.begin import number_format
from lumitok.training.checkpoint import (
    load_optimizer_tensors,
    load_tensors,
    optimizer_tensors,
    remove_old,
    room_is_told,
    save_identity,
    save_place,
    save_tensors,
    write_checkpoint,
)
from lumitok.training.diffusion_setup import NETWORK, DiffusionRun, start_diffusion
from lumitok.training.diffusion_steps import DiffusionState, LatentPart, diffusion_step
from lumitok.training.interruption import Interruption, leave_if_asked
from lumitok.training.journal import Journal
from lumitok.training.seeds import Draw, StepDraws, derive_seed, seed_step
from lumitok.training.stages import count_step, due, log_means, stages_left, write_final
from lumitok.training.sums import Sums


def train_diffusion(recipe: DiffusionRecipe, resume: bool = False) -> Path:
    """Train a recipe's diffusion network through all its stages and return the run's folder.

    SIGTERM and Ctrl-C end the run after the step under way, with a checkpoint.

    Args:
        recipe: what to train, on which latents, how.
        resume: go on from the newest checkpoint of the run's folder; start where there is none.

    Raises:
        LumitokError: no latents, latents that do not fit, a folder that holds another run, a number that is
            not finite, a full disk.
        SystemExit: the run was interrupted and saved; the code is 128 plus the signal's number.
    """
    run = start_diffusion(recipe, resume)
    with room_is_told(run.folder):
        _train(run)
    return run.folder


def _train(run: DiffusionRun) -> None:
    stages = run.recipe.stages
    steps = [stage.images // stage.batch_size for stage in stages]
    with (
        Interruption() as interruption,
        Journal(run.folder, run.accelerator, run.place, sum(steps)) as journal,
    ):
        _introduce(run, journal)
        for index in stages_left(run, len(stages)):
            _train_stage(run, journal, interruption, stages[index], steps[index])
        _finish(run, journal)


def _train_stage(
    run: DiffusionRun, journal: Journal, interruption: Interruption, stage: DiffusionStageConfig, steps: int
) -> None:
    state = _enter(run, stage)
    batches = iter(_batches(run, stage))
    while run.place.stage_step < steps:
        place = run.place
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(stage, place.stage_step, steps)
        diffusion_step(state, _next_parts(run, batches))
        count_step(run, stage.batch_size, [run.ema])
        journal.advance(run.place, stage.name)
        _report(run, journal, state, last=run.place.stage_step == steps)
        leave_if_asked(run.accelerator, journal, interruption, run.place, lambda: _save(run, state))


def learning_rate(stage: DiffusionStageConfig, step: int, steps: int) -> float:
    """The rate at ``step`` (from 0) of a stage of ``steps``."""
    if step < stage.warmup_steps:
        return stage.lr * (step + 1) / stage.warmup_steps
    begin = max(stage.warmup_steps, stage.decay_from // stage.batch_size)
    if stage.schedule == "constant" or step < begin:
        return stage.lr
    done = (step - begin) / max(1, steps - begin)
    left = 1 - done if stage.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return stage.final_lr + (stage.lr - stage.final_lr) * left


def _next_parts(run: DiffusionRun, batches: Iterator[LatentBatch]) -> list[LatentPart]:
    """This process's share of the next step's batch, part by part."""
    training, accelerator, place = run.recipe.training, run.accelerator, run.place
    stage = place.stages_before + place.stage
    # Draws follow from the place alone, so a resumed run repeats what it would have drawn.
    seed_step(training.seed, stage, place.stage_step, accelerator.process_index)
    loaded = [next(batches) for _ in range(training.accumulation)]
    run.guard.watch(
        place.step + 1,
        [batch.values for batch in loaded],
        [str(i) for batch in loaded for i in batch.indices.tolist()],
    )
    parts = []
    for index, batch in enumerate(loaded):
        count = len(batch.indices)
        first = (index * accelerator.num_processes + accelerator.process_index) * count
        draws = StepDraws(training.seed, stage, place.stage_step, first, count)
        raw = run.store.draw(batch.values, draws.pictures(Draw.POSTERIOR))
        pixels = None if batch.pixels is None else batch.pixels.to(accelerator.device).float() / 255
        labels = batch.labels.to(accelerator.device) if run.network.null_label else None
        data = run.store.spec.whiten(raw.to(accelerator.device))
        parts.append(LatentPart(data, labels, pixels, draws))
    return parts


def _report(run: DiffusionRun, journal: Journal, state: DiffusionState, last: bool) -> None:
    """Log, draw samples and save as often as the recipe asks, and at the end of a stage."""
    training, step = run.recipe.training, run.place.step
    if due(training.log_every, step, last):
        log_means(run, journal, state.config.name, state.sums)
    with journal.pause():
        if run.tokenizer is not None and due(run.recipe.samples.every, step, last):
            _draw_samples(run, run.tokenizer, journal)
        if due(training.checkpoint_every, step, last) or due(training.keep_every, step, last):
            _save(run, state)


def _introduce(run: DiffusionRun, journal: Journal) -> None:
    count = sum(p.numel() for p in run.network.parameters() if p.requires_grad)
    shape = "x".join(str(side) for side in run.network.latent_shape)
    labels = f"{len(run.store.classes)} classes" if run.network.null_label else "no classes, so no guidance"
    journal.say(
        f"{run.recipe.name or run.folder}: {count / 1e6:.2f} M trainable parameters on "
        f"{run.accelerator.device} ({number_format(run.accelerator)}), "
        f"{run.accelerator.num_processes} process(es); {run.store.count} latents of {shape}, {labels}; "
        f"writing to {run.folder}"
    )
    journal.say(run.began)
    if run.tokenizer is None:
        journal.say("no samples are drawn on the way: data.tokenizer names no tokenizer to decode them")


# ------------------------------------------------------------------------------------------------
# A stage


def _enter(run: DiffusionRun, stage: DiffusionStageConfig) -> DiffusionState:
    """Set the network up for a stage: a new optimizer, or that of the checkpoint."""
    accelerator = run.accelerator
    accelerator.free_memory()
    # What no loss reaches must not wait for a gradient where several processes exchange them.
    for name, parameter in run.network.named_parameters():
        if name.startswith("projector."):
            parameter.requires_grad_(stage.losses.alignment > 0)
    run.network.train()
    if compiles(run.recipe.training.compile, accelerator):
        run.network.compile_blocks()
    parameters = [p for p in run.network.parameters() if p.requires_grad]
    optimizer = AdamW(parameters, lr=stage.lr, betas=stage.betas, weight_decay=stage.weight_decay, fused=True)
    state = DiffusionState(
        accelerator=accelerator,
        config=stage,
        network=run.network,
        wrapped=accelerator.prepare_model(run.network),
        encoder=run.encoders[run.place.stage],
        parameters=parameters,
        optimizer=optimizer,
        guard=run.guard,
        sums=Sums(dict(run.place.sums)),
    )
    if run.taken_up is not None and run.place.stage_step > 0:
        path = run.taken_up / "training" / "optimizer.safetensors"
        load_optimizer_tensors(optimizer, load_tensors(path, accelerator.device))
    run.taken_up = None
    return state


def compiles(wanted: str, accelerator: Accelerator) -> bool:
    """Whether ``training.compile`` asks for the network's blocks to be compiled."""
    return wanted == "on" or (wanted == "auto" and accelerator.device.type == "cuda")


def _batches(run: DiffusionRun, stage: DiffusionStageConfig) -> LatentBatches:
    training, world, place = run.recipe.training, run.accelerator.num_processes, run.place
    return LatentBatches(
        run.store,
        stage.batch_size // (training.accumulation * world),
        derive_seed(training.seed, place.stages_before + place.stage),
        start_step=place.stage_step,
        rank=run.accelerator.process_index,
        world=world,
        parts=training.accumulation,
        flip=run.recipe.data.flip,
        pictures=run.pictures if run.encoders[place.stage] is not None else None,
        workers=run.recipe.data.workers,
    )


def _draw_samples(run: DiffusionRun, tokenizer: Tokenizer, journal: Journal) -> None:
    """A sheet of samples from the averaged weights, always of the same noise and classes."""
    if not run.accelerator.is_main_process:
        return
    with run.ema.applied(), run.accelerator.autocast():
        drawn = sample_pictures(run.network, tokenizer, run.origin, run.recipe.samples)
    journal.samples(run.place, *drawn)


@torch.no_grad()
def sample_pictures(
    network: DiffusionNetwork, tokenizer: Tokenizer, origin: LatentOrigin, wanted: SamplesConfig
) -> tuple[Tensor, list[str]]:
    """Draw what a recipe's ``samples`` asks for: pictures, uint8 (N, 3, H, W), and their classes' names.

    The network is left in training mode.
    """
    labels = wanted.labels(len(origin.classes) if network.null_label else 0)
    seeds = [derive_seed(wanted.seed, index) for index in range(wanted.count)]
    network.eval()
    z = sample(network, labels or None, seeds, wanted.sampling)
    network.train()
    pictures: Tensor = tokenizer.decode(origin.spec.unwhiten(z)).sample
    return to_uint8(pictures.float()).cpu(), [origin.classes[label] for label in labels]


def _save(run: DiffusionRun, state: DiffusionState) -> None:
    """Write a checkpoint: the averaged network to use, and all that is needed to go on."""
    training = run.recipe.training
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        write_checkpoint(run.folder, run.place.step, lambda folder: _fill(run, state, folder))
        remove_old(run.folder, training.keep, training.keep_every)
    run.accelerator.wait_for_everyone()


def _fill(run: DiffusionRun, state: DiffusionState, folder: Path) -> None:
    training = folder / "training"
    with run.ema.applied():
        _write_network(run, folder / "network")
    save_tensors(training / NETWORK, trained_state(run.network))
    save_tensors(training / "ema.safetensors", run.ema.average)
    save_tensors(training / "optimizer.safetensors", optimizer_tensors(state.optimizer))
    save_place(training, replace(run.place, skipped=run.guard.skipped, sums=state.sums.values))
    save_identity(training, run.identity)
    save_recipe(run.recipe, folder / "recipe.yaml")


def _write_network(run: DiffusionRun, folder: Path) -> None:
    run.network.save_pretrained(folder)
    run.origin.save(folder)


def _finish(run: DiffusionRun, journal: Journal) -> None:
    """Write the averaged network."""
    if run.accelerator.is_main_process:
        with run.ema.applied():
            write_final(run.folder, {"network": lambda folder: _write_network(run, folder)})
        journal.say(f"done: {run.folder / 'network'}")
    run.accelerator.wait_for_everyone()
