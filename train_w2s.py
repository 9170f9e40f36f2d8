#!/usr/bin/env python3
"""Train a strong student on what a weak teacher says, with timm's models, data and flags.

Read it from the top: `train` makes one model, `prepare` builds its parts, `train_one_epoch` is the loop over batches.
The path of one image through these functions is drawn in docs/architecture.md.

    torchrun train_w2s.py --teacher resnet18 --model vit_base_patch16_224 --loss adaptconf --data-dir IMAGENET
"""

from w2s_plugins.errors import run_main
from w2s_plugins.registry import check_versions

# Packages that are too old would fail below, with errors of their own.
if __name__ == "__main__":
    run_main(check_versions, "train_w2s.py")

from w2s_plugins.cli import Command, ExplicitFlags, parse, read_flags, train_parser

# --help, wrong flags and wrong tables are answered before the seconds that it takes to import torch.
if __name__ == "__main__":
    COMMAND = run_main(lambda: read_flags(train_parser()), "train_w2s.py")

import argparse
import contextlib
import functools
import os
import time
from collections.abc import Callable, Sequence

import torch
from timm.optim.lookahead import Lookahead
from timm.utils.clip_grad import dispatch_clip_grad

from w2s_plugins.cli.parser import fill
from w2s_plugins.data import Batch
from w2s_plugins.distributed.signals import Interrupted, SignalWatch
from w2s_plugins.distributed.world import broadcast_from_rank0
from w2s_plugins.errors import STOPPING, kept_warnings
from w2s_plugins.labels.samples import TOLD
from w2s_plugins.losses import describe_losses
from w2s_plugins.monitor import Console, setup_logging
from w2s_plugins.registry import load_plugins
from w2s_plugins.resolve.train import resolve_train_args
from w2s_plugins.run import record as report
from w2s_plugins.run.lock import unlock_run
from w2s_plugins.settings.composite import TrainSettings
from w2s_plugins.settings.teacher_name import TeacherName
from w2s_plugins.students.tuning import freeze_batchnorm
from w2s_plugins.teachers.openers import Opened
from w2s_plugins.training import step
from w2s_plugins.training.data import build_data, select_clean
from w2s_plugins.training.evaluation import average_batch_norm, evaluate_epoch, first_evaluation
from w2s_plugins.training.finish import (
    end_process,
    finish,
    stop_between_runs,
    stop_early,
    stop_outside_of_runs,
    trained_student,
)
from w2s_plugins.training.labels import attach_labels, find_label_files
from w2s_plugins.training.loaders import (
    fit_to_data,
)
from w2s_plugins.training.preparation import build_models, build_run, open_workspace
from w2s_plugins.training.run_files import (
    in_layout_of,
)
from w2s_plugins.training.saving import (
    check_weights,
    log_epoch,
    log_update,
    save_epoch,
    save_recovery,
)
from w2s_plugins.training.task import trained_module
from w2s_plugins.training.training_run import Run


def main(command: Command | None = None) -> None:
    """Train what the command line asks for; ``command`` is that line if it has been parsed already."""
    args, explicit_flags = command or parse(train_parser())
    if args.list_losses:
        load_plugins(args.plugins)
        print(describe_losses())
        return
    setup_logging(primary=int(os.environ.get("RANK", "0")) == 0)
    train_all(args, explicit_flags)
    end_process(0)


def train_all(args: argparse.Namespace, explicit_flags: ExplicitFlags) -> dict | None:
    """Train what the flags ask for, one model or several, and return the content of result.json.

    If there are several (``--protocol``, ``--stages``, ``--folds``), only the first rank returns it.

    Args:
        args: all flags, with their defaults filled in.
        explicit_flags: names of the flags that the user set, on the command line or in files, and which were typed.
    """
    TOLD.clear()
    if not (args.protocol or args.stages or args.folds):
        return train(args, explicit_flags)

    # Several runs need one another (the teacher comes before its student), so they are planned as a list first. A
    # single run does not wait for pandas, which is why the plan is imported here.
    from w2s_plugins.study.carry_out import carry_out

    def train_one(flags: dict[str, object]) -> dict:
        filled, names = fill(train_parser(), flags)
        record = train(filled, ExplicitFlags(names, explicit_flags.typed))
        stop_between_runs()
        return record

    def audit(runs: Sequence[str], images: int, plugins: Sequence[str]) -> None:
        # Few files of stages end with an audit, so the others don't wait for what it needs.
        from w2s_plugins.audit.run import begin_audit

        begin_audit(runs, images, plugins)

    given = {name: getattr(args, name) for name in explicit_flags}
    with stop_outside_of_runs():
        return carry_out(given, explicit_flags.typed, train_one, audit)


def train(args: argparse.Namespace, explicit_flags: ExplicitFlags) -> dict:
    """Train one model and return its record, the content of result.json, on every rank.

    Args:
        args: all flags, with their defaults filled in.
        explicit_flags: names of the flags that the user set, on the command line or in files, and which were typed.
            All others are defaults.
    """
    # Flags become settings once. From here on a function is given those of its concern, and no flags.
    settings = resolve_train_args(args, explicit_flags)
    started = time.monotonic()

    def refit(batch_size: int) -> TrainSettings:
        # Other flags follow from the size of a batch, such as the learning rate.
        smaller = argparse.Namespace(**{**vars(args), "batch_size": batch_size})
        return resolve_train_args(smaller, explicit_flags)

    # Build everything, and measure teacher and student before the first step, to see later what was gained.
    run = prepare(settings, None if "batch_size" in explicit_flags.typed else refit)
    first_evaluation(run)

    # Train. A signal ends the run after the update in hand, with a checkpoint; it is still watched while that is
    # written, because schedulers send several.
    with SignalWatch(STOPPING, run.world) as watch:
        try:
            fit(run, watch)
        except Interrupted as interruption:
            stop_early(run, interruption)

        # Export the student and write its record, on the first rank. A sharded student is gathered there by all.
        model = trained_student(run)
        record = None
        if run.world.primary and model is not None:
            record = finish(run, model, time.monotonic() - started)
        run.loaders.clear()  # ends the data workers
        unlock_run()
        return broadcast_from_rank0(record, run.world.distributed)


def prepare(settings: TrainSettings, refit: Callable[[int], TrainSettings] | None = None) -> Run:
    """Build data, models, task and optimizer, and go back to where an earlier run stopped.

    If there are fewer samples than in a batch, ``refit`` makes settings with a smaller one.

    The order matters, because each part needs the ones before it. For example, the head of the student has the classes
    of the data, so the data comes first.
    """
    # Workspace: the folder is locked first, so that no other process trains the same run.
    workspace = open_workspace(settings)
    world, checkpoint = workspace.world, workspace.checkpoint
    settings = in_layout_of(settings, checkpoint)

    # Data, then the student, whose head has the classes of the data, then the teacher. Images without labels have the
    # classes of the teacher, which is opened for them; `opened` keeps it, so that it is not opened twice.
    labels = find_label_files(settings.teacher, world)
    opened: dict[TeacherName, Opened] = {}
    with kept_warnings() as warnings:
        data = build_data(settings, labels, opened)
        models = build_models(settings, world, data, labels, opened)
    data.warnings = warnings

    # Choose the samples to train on, if a model is to leave some out. Labels are read after that, for those that are
    # left. A run that goes on takes the selection that it has made before.
    saved = None if checkpoint is None else checkpoint.path.parent / report.SELECTED
    data_config = models.student.data_config
    select_clean(settings.data, settings.labels, data, data_config, models.teacher, world, saved)
    attach_labels(data, labels, models.labels)
    settings = fit_to_data(settings, data, world, refit)

    # The run: what its loop works with, at the step at which it goes on.
    return build_run(settings, workspace, data, models)


def fit(run: Run, watch: SignalWatch) -> None:
    """Train from the run's position to the end; evaluate and save as the flags say. A resumed run begins in the middle.

    Raises:
        Interrupted: a signal asked the run to end.
    """
    console = Console(
        run.world.primary, run.schedule.updates_per_epoch * run.stop, run.updates_done
    )
    try:
        while run.position.epoch < run.stop:
            terms = train_one_epoch(run, watch, console)
            finish_epoch(run, terms, watch)
    finally:
        console.close()


def train_one_epoch(run: Run, watch: SignalWatch, console: Console) -> dict[str, float]:
    """Train for one epoch, or for the rest of one that was interrupted; return the mean of the loss and of its terms.

    Two words: a *batch* is one forward and backward pass, an *update* is one step of the optimizer. With
    ``--grad-accum-steps`` an update is made of several batches.

    Raises:
        UserError: there were ``--nan-patience`` bad updates in a row.
        Interrupted: a signal asked the run to end; the current update was finished first.
    """
    settings, task, optimizer = run.settings, run.task, run.optimizer
    compute, precision, position = settings.compute, run.precision, run.position
    loader, epoch, distributed = run.loaders["train"], position.epoch, run.world.distributed
    accum_steps, per_epoch = settings.optim.grad_accum_steps, run.schedule.updates_per_epoch
    module, update_loss = trained_module(task), torch.zeros(())
    buffers = step.BufferUndo(module)

    # Dropout and batch norm train. If only a part of the student does, batch norm keeps its statistics, because they
    # belong to the frozen rest.
    task.train()
    if settings.student.tune.is_partial:
        freeze_batchnorm(run.student.model)
    # Answers may be stored for the views of several epochs, of which this epoch has its own.
    weak_to_strong = run.weak_to_strong
    if weak_to_strong is not None:
        weak_to_strong.set_epoch(epoch)
    optimizer.zero_grad()
    # The order of an epoch is a function of seed and epoch, so a resumed one begins at any of its batches.
    batches = enumerate(loader.epoch(epoch, position.batch), start=position.batch)
    for number, batch in console.timed(batches):
        # Find the update that this batch belongs to, the batches from `first` to before `end`. The last update of an
        # epoch may have fewer of them than the others.
        in_epoch = number // accum_steps
        first, end = in_epoch * accum_steps, min((in_epoch + 1) * accum_steps, len(loader))
        completes_update = number + 1 == end

        # Before the first batch of an update, note the buffers that forward passes change. A bad update puts them back.
        # Only evaluations read the statistics of batch norm, so ranks share them in the last update of an epoch.
        if number == first:
            if in_epoch + 1 == per_epoch and distributed and not compute.no_ddp_bb:
                step.share_statistics(module)
            buffers.keep()

        # Seed by the position alone, so that a run that is resumed here draws the same dropout as one that never
        # stopped.
        step.seed_step(precision.device, settings.run.seed, run.world.rank, epoch, number)

        # Exchange gradients between the ranks in the last batch of an update only, because they add up until then.
        exchange = contextlib.nullcontext()
        if distributed and not completes_update:
            exchange = task.no_sync()
        images = batch.input.contiguous(memory_format=precision.layout)
        with exchange:
            with precision.autocast():
                if weak_to_strong is not None:
                    # Teacher: the weak labels of this batch. Some losses change in the course of training, so the task
                    # is told first which share of it is done.
                    weak_to_strong.set_progress(
                        (epoch * len(loader) + number) / (run.schedule.num_epochs * len(loader))
                    )
                    weak = weak_to_strong.teacher_forward(images, batch.index, batch.share)

                    # Student: its answer, and the terms of the loss that compare it with the weak labels. Both are
                    # computed in one module, because DDP must see the parameters of student and loss.
                    strong = weak_to_strong.student_forward(images, weak, batch.target, batch.index)

                    # Loss: one number, the weighted sum of these terms and of the criterion, if there is ground truth.
                    result = weak_to_strong.combine_losses(strong, batch.target)
                else:  # no teacher, or timm's own distillation
                    result = task(images, batch.target)

            # Backward: gradients of the batches of one update add up, so each loss is divided by their number.
            part_of_loss = result["loss"] * loss_scale(run, batch) / (end - first)
            step.backward(part_of_loss, optimizer, precision)

        # Count the batch for the log. The loss of an update is a sum: it is finite only if all of its parts are.
        position.count(result, batch.target, number)
        loss = result["loss"].detach()
        update_loss = loss if number == first else update_loss + loss
        if not completes_update:
            continue

        # Step: change the weights, unless a gradient is not finite. Then nothing of this update may stay, so batch norm
        # and the memories of losses are put back too.
        update_applied, loss_finite = step.update_weights(
            optimizer, precision, functools.partial(clip_gradients, run), update_loss
        )
        update = epoch * per_epoch + in_epoch  # since the start of the run
        if update_applied:
            position.taken += 1
            task.update_ema(step=update + 1)
        else:
            buffers.put_back()

        # Many bad updates in a row end the run. In float16 infinite gradients are normal, because the loss scaler tries
        # scales until they are too large. So there only the loss decides.
        gradients_finite = update_applied or precision.scaler is not None
        step.count_bad_steps(run, update, not (loss_finite and gradients_finite))
        optimizer.zero_grad()

        # Log, and set the learning rate of the next update. The log says the rate of this one, so it comes first.
        if compute.synchronize_step and precision.device.type == "cuda":
            torch.cuda.synchronize()
        if in_epoch % settings.run.log_interval == 0 or number + 1 == len(loader):
            log_update(run, console, update, batch, number)
        if run.schedule.scheduler is not None:
            run.schedule.scheduler.step_update(num_updates=update + 1, metric=None)
        console.update(len(batch.input) * accum_steps * run.world.size)

        # Stop at a signal, which all ranks do after the same update, or save a checkpoint inside the epoch, but not one
        # that a resumed run would begin with bad updates from.
        watch.check()
        interval = settings.run.recovery_interval
        if interval and (in_epoch + 1) % interval == 0 and not position.bad_steps:
            save_recovery(run, in_epoch)

    # Lookahead has two sets of weights, and the slow ones are what is evaluated.
    if isinstance(optimizer, Lookahead):
        optimizer.sync_lookahead()
    return position.meter.average(distributed)


def loss_scale(run: Run, batch: Batch) -> float:
    """Return the weight of a batch. It is 1, unless ``--train-img-sizes`` makes batches of different sizes."""
    rule = run.settings.optim.variable_batch_loss_scale
    if rule == "none" or not run.settings.views.train_img_sizes:
        return 1.0
    # A batch of small images has more of them, and would count no more than one of large images.
    ratio = len(batch.input) / run.loaders["train"].average_batch_size
    return ratio if rule == "linear" else ratio**0.5


def clip_gradients(run: Run) -> None:
    """Clip the gradients as ``--clip-grad`` and ``--clip-mode`` say."""
    optim = run.settings.optim
    if optim.clip_grad is None:
        return
    # The task of a sharded student holds gathered copies; the gradients are with the optimizer's parameters.
    if run.settings.compute.fsdp:
        parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    else:
        parameters = run.task.get_clip_parameters(exclude_head="agc" in optim.clip_mode)
    dispatch_clip_grad(parameters, value=optim.clip_grad, mode=optim.clip_mode)


def finish_epoch(run: Run, terms: dict[str, float], watch: SignalWatch) -> None:
    """Evaluate, log and save if that is due after this epoch, and move on to the next.

    The position moves on before the checkpoint is saved, so that a resumed run begins with the next epoch.
    """
    epoch, scheduler = run.position.epoch, run.schedule.scheduler
    # Each rank has statistics of its own images.
    average_batch_norm(run)
    outcome = evaluate_epoch(run, terms, watch) if run.evaluation_due else None
    run.position.next_epoch()
    # Broken weights end the run before anything is written of them.
    if outcome is not None:
        check_weights(run, epoch, outcome)
        log_epoch(run, epoch, terms, outcome)
    # The schedule moves on before the checkpoint, which has the rate that the next epoch begins with.
    if scheduler is not None:
        scheduler.step(epoch + 1, metric=None if outcome is None else outcome.metric)
    if outcome is not None:
        save_epoch(run, epoch, outcome)


if __name__ == "__main__":
    run_main(lambda: main(COMMAND), "train_w2s.py")
