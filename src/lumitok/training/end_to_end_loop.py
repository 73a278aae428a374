"""Training a tokenizer and a diffusion network together: one loop over a recipe's stages."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch.optim import AdamW

from lumitok.config import EndToEndRecipe, EndToEndStageConfig
from lumitok.data.latents import LatentOrigin
from lumitok.foundation import trained_state
from lumitok.training.checkpoint import (
    load_optimizer_tensors,
    load_tensors,
    optimizer_tensors,
    remove_old,
    room_is_told,
    save_best,
    save_tensors,
    write_checkpoint,
)
from lumitok.training.diffusion_loop import compiles, sample_pictures
from lumitok.training.diffusion_steps import DiffusionState
from lumitok.training.end_to_end_setup import SAVED, EndToEndRun, start_end_to_end
from lumitok.training.end_to_end_steps import EndToEndState, end_to_end_step, set_network_rate
from lumitok.training.interruption import Interruption, leave_if_asked
from lumitok.training.journal import SAMPLE_SHEETS, Journal
from lumitok.training.provenance import provenance_of
from lumitok.training.stages import count_step, due, stages_left, write_final
from lumitok.training.steps import learning_rate_factor, set_learning_rate
from lumitok.training.tokenizer_loop import (
    averaged,
    enter_stage,
    fill_checkpoint,
    introduce,
    next_parts,
    note_bad,
    report,
    stage_batches,
)


def train_end_to_end(recipe: EndToEndRecipe, resume: bool = False) -> Path:
    """Train a recipe's tokenizer and network through all its stages and return the run's folder.

    SIGTERM and Ctrl-C end the run after the step under way, with a checkpoint.

    Args:
        recipe: what to train, on what, how.
        resume: go on from the newest checkpoint of the run's folder; start where there is none.

    Raises:
        LumitokError: no pictures, a folder that holds another run, a number that is not finite, too many
            unreadable pictures, a full disk.
        SystemExit: the run was interrupted and saved; the code is 128 plus the signal's number.
    """
    run = start_end_to_end(recipe, resume)
    with room_is_told(run.folder):
        _train(run)
    return run.folder


def _train(run: EndToEndRun) -> None:
    stages = run.recipe.stages
    steps = [stage.images // stage.batch_size for stage in stages]
    with (
        Interruption() as interruption,
        Journal(run.folder, run.accelerator, run.place, sum(steps)) as journal,
    ):
        introduce(run, journal)
        count = sum(p.numel() for p in run.network.parameters() if p.requires_grad)
        journal.say(f"with a network of {count / 1e6:.2f} M trainable parameters")
        note_bad(run, journal, run.pictures.unreadable)
        for index in stages_left(run, len(stages)):
            _train_stage(run, journal, interruption, stages[index], steps[index])
        _finish(run, journal)


def _train_stage(
    run: EndToEndRun,
    journal: Journal,
    interruption: Interruption,
    stage: EndToEndStageConfig,
    steps: int,
) -> None:
    state = _enter(run, stage)
    batches = iter(stage_batches(run, stage))
    save = partial(_save, run, state)
    while run.place.stage_step < steps:
        place = run.place
        factor = learning_rate_factor(stage, place.stage_step, steps)
        set_learning_rate(state.tokenizer, factor)
        set_network_rate(state, stage.network_lr * factor)
        end_to_end_step(state, next_parts(run, journal, batches), place.images)
        count_step(run, stage.batch_size, [run.ema, run.network_ema, run.normaliser_ema])
        journal.advance(run.place, stage.name)
        last = run.place.stage_step == steps
        if due(run.recipe.samples.every, run.place.step, last):
            with journal.pause():
                _draw_samples(run, journal)
        report(run, journal, state.tokenizer, save, last=last)
        leave_if_asked(run.accelerator, journal, interruption, run.place, lambda: save(False))


def _enter(run: EndToEndRun, stage: EndToEndStageConfig) -> EndToEndState:
    """Set both sides up for a stage: new optimizers, or those of the checkpoint."""
    accelerator, taken_up = run.accelerator, run.taken_up
    tokenizer = enter_stage(run, stage)
    run.network.train()
    if compiles(run.recipe.training.compile, accelerator):
        run.network.compile_blocks()
    parameters = [p for p in run.network.parameters() if p.requires_grad]
    optimizer = AdamW(
        parameters, lr=stage.network_lr, betas=stage.network_betas, weight_decay=0.0, fused=True
    )
    if taken_up is not None and run.place.stage_step > 0:
        saved = taken_up / "training" / SAVED / "optimizer.safetensors"
        load_optimizer_tensors(optimizer, load_tensors(saved, accelerator.device))
    network = DiffusionState(
        accelerator=accelerator,
        config=stage.diffusion,
        network=run.network,
        wrapped=accelerator.prepare_model(run.network),
        encoder=run.encoders[run.place.stage],
        parameters=parameters,
        optimizer=optimizer,
        guard=run.guard,
        sums=tokenizer.sums,
    )
    return EndToEndState(tokenizer, network, run.normaliser, stage.tokenizer_alignment)


# ------------------------------------------------------------------------------------------------
# What it leaves behind


def _origin(run: EndToEndRun) -> LatentOrigin:
    """The averaged tokenizer's latents with the averaged live statistics; the tokenizer is told them too."""
    with run.ema.applied(), run.normaliser_ema.applied():
        mean, std = run.normaliser.statistics
        run.tokenizer.set_latent_statistics(mean.cpu(), std.cpu(), run.place.images - run.place.images_before)
        return LatentOrigin(run.tokenizer.latent_spec, tuple(run.pictures.classes))


def _draw_samples(run: EndToEndRun, journal: Journal) -> None:
    """A sheet of samples from the averaged weights, always of the same noise and classes."""
    if not run.accelerator.is_main_process:
        return
    origin = _origin(run)
    with averaged(run) as tokenizer, run.network_ema.applied(), run.accelerator.autocast():
        drawn = sample_pictures(run.network, tokenizer, origin, run.recipe.samples)
    journal.samples(run.place, *drawn, sheets=SAMPLE_SHEETS)


def _save(run: EndToEndRun, state: EndToEndState, improved: bool) -> None:
    """Write a checkpoint: averaged tokenizer and network to use, and all that is needed to go on."""
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        write_checkpoint(run.folder, run.place.step, lambda folder: _fill(run, state, folder))
        if improved and run.best is not None:
            save_best(run.folder, run.best)
        remove_old(run.folder, run.recipe.training.keep)
    run.accelerator.wait_for_everyone()


def _fill(run: EndToEndRun, state: EndToEndState, folder: Path) -> None:
    origin = _origin(run)
    fill_checkpoint(run, state.tokenizer, folder)
    _write_network(run, origin, folder / "network")
    saved = folder / "training" / SAVED
    saved.mkdir()
    save_tensors(saved / "weights.safetensors", trained_state(run.network))
    save_tensors(saved / "ema.safetensors", run.network_ema.average)
    save_tensors(saved / "optimizer.safetensors", optimizer_tensors(state.network.optimizer))
    save_tensors(saved / "normaliser.safetensors", run.normaliser.state_dict())
    save_tensors(saved / "normaliser_ema.safetensors", run.normaliser_ema.average)


def _write_network(run: EndToEndRun, origin: LatentOrigin, folder: Path) -> None:
    with run.network_ema.applied():
        run.network.save_pretrained(folder)
    origin.save(folder)


def _finish(run: EndToEndRun, journal: Journal) -> None:
    """Write the averaged tokenizer and network."""
    if run.accelerator.is_main_process:
        origin = _origin(run)
        run.tokenizer.provenance = provenance_of(run)
        bundle = run.recipe.training.bundle_encoder
        with run.ema.applied():
            write_final(
                run.folder,
                {
                    "tokenizer": partial(run.tokenizer.save_pretrained, bundle_encoder=bundle),
                    "network": partial(_write_network, run, origin),
                },
            )
        journal.say(f"done: {run.folder / 'tokenizer'} and {run.folder / 'network'}")
    run.accelerator.wait_for_everyone()
