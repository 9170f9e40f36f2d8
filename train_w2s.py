#!/usr/bin/env python3
"""Train a strong student on what a weak teacher says, with timm's models, data and flags.

    torchrun train_w2s.py --teacher resnet18 --model vit_base_patch16_224 --loss adaptconf --data-dir IMAGENET
"""

from w2s_plugins.versions import check_versions

check_versions("train_w2s.py")  # an import of what is too old would fail in its own words

from w2s_plugins.cli import parse, train_parser
from w2s_plugins.errors import UserError, exit_now, run_main

if __name__ == "__main__":  # --help and wrong flags are answered before the seconds that it takes to import torch
    run_main(lambda: parse(train_parser()), "train_w2s.py")

import argparse
import contextlib
import logging
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
import torchvision
from timm.task import TrainingTask
from timm.utils import distribute_bn, unwrap_model

from w2s_plugins.build import optimisation as build
from w2s_plugins.build.data import build_data, build_few_shot_test, build_loaders, select_clean
from w2s_plugins.build.device import create_precision, setup_device
from w2s_plugins.build.record import Outcome, make_record
from w2s_plugins.build.resolve import resolve_train_args
from w2s_plugins.build.run import Resumed, look_for_room, new_folder_name, open_run_files, resume, run_place
from w2s_plugins.build.student import build_student, plain_batch_norm
from w2s_plugins.build.task import build_task
from w2s_plugins.build.teacher import build_teacher, cached_targets
from w2s_plugins.data import Batch
from w2s_plugins.distributed.ddp import ddp_options, skip_buffers
from w2s_plugins.distributed.heartbeat import note
from w2s_plugins.distributed.signals import Interrupted, SignalWatch
from w2s_plugins.distributed.world import Precision, World, agree, dealt_rows
from w2s_plugins.files import atomic_write, delete, write_json
from w2s_plugins.hub.errors import check_login
from w2s_plugins.hub.export import export_hashes, export_model
from w2s_plugins.hub.push import push_export
from w2s_plugins.labels.cache import CachedTargets
from w2s_plugins.labels.splits import Data
from w2s_plugins.losses import describe_losses
from w2s_plugins.losses.base import loss_weights
from w2s_plugins.metrics.figures import format_figures
from w2s_plugins.metrics.pgr import chance_level, performance_gap_recovered
from w2s_plugins.metrics.sample_weights import BINS
from w2s_plugins.models.class_names import names_of_data
from w2s_plugins.models.features import pooled_features
from w2s_plugins.models.loading import load_weights, read_weights
from w2s_plugins.monitor import Console, setup_logging
from w2s_plugins.protocol import w2s as protocol
from w2s_plugins.registry import load_plugins
from w2s_plugins.run import folder as run_folder
from w2s_plugins.run import lock as run_lock
from w2s_plugins.run import record as report
from w2s_plugins.run.find import find_best
from w2s_plugins.run.position import Position
from w2s_plugins.run.restore import gather_rank_states, restore_rank_state, stored_predictions
from w2s_plugins.run.saver import Saver
from w2s_plugins.students import probe
from w2s_plugins.teachers.teacher import Teacher
from w2s_plugins.train import fsdp
from w2s_plugins.train.anomaly import detect_anomaly
from w2s_plugins.train.engine import (
    Evaluation,
    StepSettings,
    agree_on_unreadable,
    evaluate,
    train_one_epoch,
    weights_are_finite,
)
from w2s_plugins.train.few_shot import FewShotTest, extract_features
from w2s_plugins.train.task import StudentModule

_logger = logging.getLogger("train_w2s")


@dataclass
class Run:
    """Everything that one training run works with."""

    args: argparse.Namespace
    world: World
    folder: Path
    data: Data
    data_config: dict
    student_source: dict
    teacher: Teacher | None
    targets: CachedTargets | None
    task: TrainingTask
    loaders: dict
    optimizer: torch.optim.Optimizer
    precision: Precision
    scheduler: object
    num_epochs: int
    position: Position
    files: run_folder.RunFiles | None = None  # rank 0
    saver: Saver | None = None  # rank 0; every rank when the student is sharded
    few_shot: FewShotTest | None = None
    weak_metrics: dict[str, dict] = field(default_factory=dict)  # of the teacher, by split
    weak_predictions: dict[str, torch.Tensor] = field(default_factory=dict)  # this rank's


def main() -> None:
    parser = train_parser()
    args, given = parse(parser)
    if args.list_losses:
        load_plugins(args.plugins)
        print(describe_losses())
        return
    setup_logging(primary=int(os.environ.get("RANK", "0")) == 0)
    if args.protocol:
        protocol.run_w2s(args, given, parser, train)
    else:
        train(args, given)
    end_process(0)


def train(args: argparse.Namespace, given: set[str]) -> dict:
    """Train one model and return the record of the run, that of result.json, on every rank.

    Args:
        args: all flags; filled in in place.
        given: names of the flags that were set by hand.
    """
    resolve_train_args(args, given)
    started = time.monotonic()
    run = prepare(args, set(train_parser().by_dest()))
    first_evaluation(run)
    with watch_signals(run) as watch:
        try:
            with watch_anomalies(run) if args.detect_anomaly else contextlib.nullcontext():
                fit(run, watch)
        except Interrupted as interruption:
            stop_early(run, interruption)  # while further signals are still noted: schedulers send several
    note("at the end of the run")
    model = trained_student(run)
    record = finish(run, model, time.monotonic() - started) if run.world.primary else None
    run.loaders.clear()  # ends the data workers
    run_lock.release()
    return agree(record, run.world.distributed)


def prepare(args: argparse.Namespace, flags: set[str]) -> Run:
    """Build data, models, task and optimizer, and go back to where an earlier run stopped."""
    if args.push_to_hub:
        check_login(args.push_to_hub)
    place = run_place(args)
    world = setup_device(args)
    resume_path = run_folder.hold_existing_run(place, world)
    data = build_data(args)
    class_names = names_of_data(data.train)
    student, data_config, student_source = build_student(args, world, class_names)
    precision = create_precision(args, world)
    teacher = build_teacher(args, student, data_config, precision, world, class_names)
    saved = resume_path and resume_path.parent / report.SELECTED
    select_clean(args, data, data_config, teacher, world, saved)
    loaders = (
        probe.feature_loaders(args, data, student, teacher, data_config, precision, world) if args.linear_probe
        else build_loaders(args, data, data_config, precision, world))
    few_shot = build_few_shot_test(args, data)
    folder = run_folder.make_run_folder(place, new_folder_name(args, data_config["input_size"][-1]), world)
    skipped = getattr(loaders["train"], "skipped", None)  # --data-errors skip:N
    targets = cached_targets(args, teacher, data, data_config, precision, world, skipped)
    task = build_task(args, student, teacher, targets, data, data_config, precision, world)
    if args.model_ema:
        task.setup_ema(args.model_ema_decay, args.model_ema_warmup, "cpu" if args.model_ema_force_cpu else None)
    if args.fsdp:
        fsdp.shard(args, task, teacher, precision, world)

    build.settle_learning_rate(args, world.size)
    optimizer = build.create_optimizer(args, task)
    updates_per_epoch = -(-len(loaders["train"]) // args.grad_accum_steps)
    scheduler, num_epochs = build.create_schedule(args, optimizer, updates_per_epoch)
    resumed = resume(args, resume_path, task, optimizer, precision, scheduler, updates_per_epoch)
    if not args.fsdp:
        compile_and_distribute(args, task, world)
    restore_rank_state(resumed.extra.get("rank_states"), task, resumed.position, resumed.path)
    if skipped is not None:
        skipped.go_on_from(resumed.position.unreadable)

    run = Run(args, world, folder, data, data_config, student_source, teacher, targets, task, loaders, optimizer,
              precision, scheduler, num_epochs, resumed.position, few_shot=few_shot)
    if world.primary:
        report.write_labels(folder, data, args.train_split)
        run.files = open_run_files(args, flags, folder, resumed)
        look_for_room(args, folder, task, num_epochs - run.position.epoch)
    if world.primary or args.fsdp:
        run.saver = create_saver(run, flags, resumed)
    return run


def stop_early(run: Run, interruption: Interrupted) -> None:
    """Save where the run stands and end the process with the exit code of the signal."""
    done = -(-run.position.batch // run.args.grad_accum_steps)
    save_recovery(run, max(done - 1, 0), background=False)
    if run.files:
        _logger.warning(f"{interruption}: stopped in epoch {run.position.epoch + 1}, step {done}; go on with "
                        f"the same command and --resume {run.folder}")
        run.files.trackers.close()
    run.loaders.clear()  # ends the data workers
    run_lock.release()
    end_process(interruption.exit_code)


def watch_signals(run: Run) -> SignalWatch:
    """Note the signals that stop a run in place of dying of them."""
    more = (signal.SIGUSR1,) if run.args.signal_usr1 else ()
    return SignalWatch((signal.SIGTERM, signal.SIGINT, *more), run.world.distributed)


def watch_anomalies(run: Run) -> contextlib.AbstractContextManager:
    """Name the module that gives the first value that is not finite."""
    module = unwrap_model(run.task.get_trainable_module())
    parts = {"student": module.student, "loss": module.loss} if isinstance(module, StudentModule) else {
        "student": module}
    if run.teacher is not None:
        parts["teacher"] = run.teacher
    return detect_anomaly(parts, run.position, scaled=run.precision.scaler is not None)


def save_recovery(run: Run, update: int, background: bool = True) -> None:
    """Save a checkpoint inside an epoch, unless its weights are broken; every rank takes part."""
    if not weights_are_finite(run.task.get_trainable_module(), run.world.distributed):
        _logger.warning(f"epoch {run.position.epoch + 1}, step {update + 1}: the weights are not finite; no recovery "
                        "checkpoint is written, the earlier ones are kept")
        return
    agree_on_unreadable(run.position, run.loaders["train"])
    states = gather_rank_states(run.task, run.position) if run.world.distributed else None
    if run.saver:
        run.saver.save_recovery(run.position.epoch, update, states, background)


def end_process(code: int) -> None:
    """End this process; on several ranks without the teardown of objects, in which gloo can wait for ever."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()  # torchrun ends all ranks when one ends with an error: let rank 0 finish
        dist.destroy_process_group()
        for worker in multiprocessing.active_children():
            worker.terminate()
        exit_now(code)
    elif dist.is_initialized():
        dist.destroy_process_group()  # of one process, from --fsdp
    if code:
        sys.exit(code)


def compile_and_distribute(args: argparse.Namespace, task: TrainingTask, world: World) -> None:
    """Compile the task, then wrap it in DDP; its weights are in place."""
    if args.torchcompile:
        task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
        if task.has_ema():
            task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
    if world.distributed:
        device_ids = None if world.device.type == "cpu" else [world.device]  # DDP refuses ids on CPUs
        skip_buffers(task.get_trainable_module(), statistics=True)
        task.prepare_distributed(device_ids=device_ids, **ddp_options(
            task, broadcast_buffers=not args.no_ddp_bb, accum_steps=args.grad_accum_steps))


def create_saver(run: Run, flags: set[str], resumed: Resumed) -> Saver:
    args = run.args
    saver = Saver(
        run.folder,
        task=run.task,
        optimizer=run.optimizer,
        scaler=run.precision.scaler,
        scheduler=run.scheduler,
        position=run.position,
        flags={k: v for k, v in vars(args).items() if k in flags},
        files=run.files.state if run.files else dict,
        max_history=args.checkpoint_hist,
        decreasing=args.eval_metric == "loss",
        milestones=args.save_epochs,
        max_failures=0 if args.fsdp else args.max_save_failures,  # ranks write shards together
        sharded=args.fsdp,
        primary=run.world.primary,
    )
    saver.go_on_from(resumed.path, resumed.content.get("saver"))
    return saver


def evaluate_split(run: Run, split: str, model: object, **kwargs: object) -> Evaluation:
    """Evaluate on ``val`` or ``select`` as the flags say."""
    return evaluate(
        model, run.loaders[split], run.precision, distributed=run.world.distributed,
        channels_last=run.args.channels_last, tta=run.args.tta, groups=run.data.groups, **kwargs)


def evaluate_few_shot(
        run: Run,
        encode: Callable[[torch.Tensor], torch.Tensor],
        progress: Callable[[Iterable], Iterable] | None = None,
) -> dict[str, float]:
    """Test an encoder on the episodes of ``--few-shot-eval``."""
    features = extract_features(
        encode, run.loaders["few_shot"], run.precision, distributed=run.world.distributed,
        channels_last=run.args.channels_last, progress=progress)
    return run.few_shot.measure(features)


def first_few_shot(run: Run) -> None:
    """Test student and teacher, where it is a single one, on episodes before the first step."""
    student = unwrap_model(run.task.get_eval_model()).eval()
    found = {"student": evaluate_few_shot(run, lambda images: pooled_features(student, images))}
    if run.teacher is not None and len(run.teacher.members) == 1:
        found["teacher"] = evaluate_few_shot(run, lambda images: run.teacher.encode(images)[0])
        run.weak_metrics["few_shot"] = found["teacher"]
    _logger.info(f"Before training, few-shot on {run.args.few_shot_split}: " + "; ".join(
        f"{who} " + ", ".join(f"{k} {v}" for k, v in format_figures(f).items()) for who, f in sorted(found.items())))
    if run.files and run.position.epoch == 0 and run.position.batch == 0:
        run.files.metrics.write("start", split="few_shot", **found)


def first_evaluation(run: Run) -> None:
    """Measure teacher and student before the first step, through the input path of training."""
    args = run.args
    if run.few_shot is not None and not args.no_teacher_eval and not args.speedtest:
        first_few_shot(run)
    if run.teacher is None or args.no_teacher_eval or args.speedtest:
        return
    for split in ("val", "select"):
        if run.loaders[split] is None:
            continue
        console = Console(run.world.primary, 0)
        teacher = run.loaders[split].teacher if args.linear_probe else run.teacher
        found = evaluate_split(
            run, split, run.task.get_eval_model(), teacher=teacher, progress=console.wrap("before training"))
        run.weak_metrics[split], run.weak_predictions[split] = found.teacher_metrics, found.teacher_predictions
        name = args.val_split if split == "val" else "held-out part"
        _logger.info(f"Before training, {name}: teacher top-1 {found.teacher_metrics['top1']:.2f}, student top-1 "
                     f"{found.metrics['top1']:.2f}, agreement {found.metrics['agreement']:.2f}")
        if run.files and run.position.epoch == 0 and run.position.batch == 0:
            run.files.metrics.write("start", split=split, teacher=found.teacher_metrics, student=found.metrics)
        warn_of_chance(found, args.num_classes)
    if args.ceiling_acc is not None and "val" in run.weak_metrics:
        performance_gap_recovered(run.weak_metrics["val"]["top1"], 0.0, args.ceiling_acc)  # refuses a low ceiling


def warn_of_chance(found: Evaluation, num_classes: int) -> None:
    """Warn loudly of a teacher that is not better than guessing, by two standard errors."""
    chance, count = chance_level(num_classes) / 100, max(1, len(found.targets))
    if found.teacher_metrics["top1"] <= 100 * (chance + 2 * (chance * (1 - chance) / count) ** 0.5):
        _logger.warning(
            f"WARNING: the teacher is at chance: top-1 {found.teacher_metrics['top1']:.2f} with {num_classes} classes "
            f"(guessing gives {100 * chance:.2f}). Wrong weights, class order, normalisation or input size?")


def fit(run: Run, watch: SignalWatch) -> None:
    """Train from the run's position to the end, evaluating and saving as the flags say.

    Raises:
        Interrupted: a signal asked for an end.
    """
    args, world, position = run.args, run.world, run.position
    updates = -(-len(run.loaders["train"]) // args.grad_accum_steps)
    stop = min(run.num_epochs, args.stop_epoch or run.num_epochs)
    console = Console(world.primary, updates * stop, position.epoch * updates + position.batch // args.grad_accum_steps)
    settings = step_settings(args, world)

    def on_log(update: int, terms: dict[str, float], lr: float) -> None:
        console.log(position.epoch, stop, update, updates, terms, lr)
        if run.files:
            step = position.epoch * updates + update
            run.files.metrics.write("train", epoch=position.epoch, update=update, step=step, lr=lr, terms=terms)
            run.files.trackers.log(step, {"lr": lr, **{f"train/{k}": v for k, v in terms.items()}})

    def on_update(update: int, samples: int) -> None:
        console.update(samples * world.size)
        watch.check(position.epoch * updates + update)
        if args.recovery_interval and (update + 1) % args.recovery_interval == 0 and not position.bad_steps:
            save_recovery(run, update)

    def on_batch(batch: Batch, number: int) -> None:
        if args.save_images and run.files:
            try:
                with atomic_write(run.folder / f"train-batch-{number}.jpg") as file:
                    torchvision.utils.save_image(batch.input, file, format="jpeg", normalize=True)
            except UserError as error:
                _logger.warning(f"WARNING: {error}; training goes on without this image")

    try:
        while position.epoch < stop:
            terms = train_one_epoch(
                position, run.task, run.loaders["train"], run.optimizer, run.precision, settings,
                num_epochs=run.num_epochs, scheduler=run.scheduler, on_log=on_log, on_update=on_update,
                on_batch=on_batch, waiting=watch.waiting)
            finish_epoch(run, terms, stop, updates, watch)
    finally:
        console.close()


def log_sample_weights(run: Run) -> None:
    """Write how the epoch's samples were weighed to metrics.jsonl; all ranks take part."""
    weights = run.position.weights.record(run.world.distributed)
    if run.files and weights:
        run.files.metrics.write("weights", epoch=run.position.epoch, bins=BINS, weights=weights)
    elif run.files and run.args.log_beta and run.position.epoch == 0:
        _logger.info(f"--log-beta: the loss '{run.args.loss}' does not weigh samples one by one, nothing is recorded")


def step_settings(args: argparse.Namespace, world: World) -> StepSettings:
    """Return how batches become updates."""
    return StepSettings(
        accum_steps=max(1, args.grad_accum_steps),
        clip_grad=args.clip_grad,
        clip_mode=args.clip_mode,
        channels_last=args.channels_last,
        nan_patience=args.nan_patience,
        log_interval=args.log_interval,
        synchronize=args.synchronize_step,
        loss_scale=args.variable_batch_loss_scale if args.train_img_sizes else "none",
        seed=args.seed,
        rank=world.rank,
        distributed=world.distributed,
        share_statistics=world.distributed and not args.no_ddp_bb,
    )


def finish_epoch(run: Run, terms: dict[str, float], stop: int, updates: int, watch: SignalWatch) -> None:
    """Evaluate, log and save after an epoch, and move on to the next."""
    args, epoch = run.args, run.position.epoch
    share_statistics = (
        run.world.distributed and args.dist_bn in ("broadcast", "reduce") and not run.position.statistics_shared)
    if share_statistics:
        distribute_bn(run.task.get_trainable_module(), run.world.size, args.dist_bn == "reduce")
    if not evaluation_due(args, epoch, stop):
        if run.scheduler is not None:
            run.scheduler.step(epoch + 1, metric=None)
        log_sample_weights(run)
        run.position.next_epoch()
        return
    use_ema = evaluates_average(run)
    if use_ema and share_statistics:
        distribute_bn(run.task.get_trainable_module(ema=True), run.world.size, args.dist_bn == "reduce")
    run.position.statistics_shared = True
    model = run.task.get_eval_model(ema=use_ema)
    found = {
        split: evaluate_split(
            run, split, model, teacher_predictions=run.weak_predictions.get(split),
            progress=watch.waiting if args.fsdp else watch.guard)  # a sharded model runs on all ranks or on none
        for split in ("val", "select") if run.loaders[split] is not None and not args.speedtest
    }
    figures = {split: evaluation.metrics for split, evaluation in found.items()}
    if run.few_shot is not None and not args.speedtest:
        encoder = unwrap_model(model).eval()
        figures["few_shot"] = evaluate_few_shot(
            run, lambda images: pooled_features(encoder, images), progress=watch.guard)
    metric = selection_metric(args, figures, terms)
    if not math.isfinite(metric):  # nothing compares with NaN: the first epoch to have it would stay the best
        metric = math.inf if args.eval_metric == "loss" else -math.inf
    log_sample_weights(run)
    run.position.next_epoch()
    if run.position.bad_steps and not all(math.isfinite(f.get("loss", 0)) for f in figures.values()):
        broken = (f"epoch {epoch + 1}: the last {run.position.bad_steps} step(s) and the evaluation gave losses that "
                  f"are not finite, learning rate {args.lr:.3g}; it is not saved")
        if epoch + 1 == stop:
            raise UserError(f"{broken}, checkpoints of earlier epochs are kept; try a lower --lr, --clip-grad 1")
        _logger.warning(broken)
        if run.scheduler is not None:
            run.scheduler.step(epoch + 1, metric=None)
        return
    if not weights_are_finite(run.task.get_trainable_module(), run.world.distributed):
        raise UserError(f"epoch {epoch + 1}: the weights are not finite, learning rate {args.lr:.3g}; they are not "
                        "saved, checkpoints of earlier epochs are kept; try a lower --lr, --clip-grad 1")
    if run.files:
        _logger.info(f"epoch {epoch + 1}/{stop} done: " + " ".join(f"{k} {v:.4g}" for k, v in terms.items())
                     + "".join(f" | {s} " + " ".join(f"{k} {v:.2f}" for k, v in f.items()) for s, f in figures.items()))
        lr = sum(g["lr"] for g in run.optimizer.param_groups) / len(run.optimizer.param_groups)
        run.files.metrics.write("eval", epoch=epoch, metric=metric, train=terms, lr=lr, ema=use_ema, **figures)
        run.files.trackers.log(
            run.position.epoch * updates, {f"{s}/{k}": v for s, f in figures.items() for k, v in f.items()})
    if run.scheduler is not None:
        run.scheduler.step(epoch + 1, metric)
    predictions = gather_predictions(run, found["val"]) if "val" in found else None
    save_epoch(run, epoch, metric, predictions)


def save_epoch(run: Run, epoch: int, metric: float, predictions: tuple[list[str], torch.Tensor] | None) -> None:
    """Write what an epoch ends with. The checkpoint has all that the other files need, so these may fail."""
    if run.files:
        run.files.predictions = predictions
        try:
            run.files.metrics.save()
        except UserError as error:
            _logger.warning(f"WARNING: {error}; it is written at the end of a later epoch")
    if run.saver:
        run.saver.save_epoch(epoch, metric)


def evaluates_average(run: Run) -> bool:
    """True when the average of the weights is what is evaluated and exported."""
    return run.task.has_ema() and not run.args.model_ema_force_cpu


def gather_predictions(run: Run, found: Evaluation) -> tuple[list[str], torch.Tensor]:
    """Return what the student says of each sample of the validation split, as columns and rows; all ranks take part."""
    columns = {"target": found.targets, "student": found.predictions}
    if found.teacher_predictions is not None:
        columns["teacher"] = found.teacher_predictions
    return list(columns), dealt_rows(torch.stack(list(columns.values()), dim=1).int(), run.world.distributed)


def evaluation_due(args: argparse.Namespace, epoch: int, stop: int) -> bool:
    """True when an evaluation and a checkpoint follow this epoch."""
    if args.eval_interval_end is not None and epoch > int(args.eval_interval_end * args.epochs):
        return True
    return (epoch + 1) % args.val_interval == 0 or epoch + 1 == stop or epoch + 1 in args.save_epochs


def selection_metric(args: argparse.Namespace, figures: dict, terms: dict[str, float]) -> float:
    """Return what ranks this epoch: the held-out part where there is one, else the validation split, else the loss.

    Trained on weak labels alone, a held-out part is scored against the teacher: its ground truth is not to be used.
    Of several kinds of episodes the first one counts.
    """
    if args.eval_metric == "few-shot" and "few_shot" in figures:
        return next(iter(figures["few_shot"].values()))
    if "select" in figures:
        blind = args.teacher and loss_weights(args.task_loss_weight, args.distill_loss_weight)[0] == 0
        if not blind:
            return figures["select"][args.eval_metric]
        agreement = figures["select"]["agreement"]
        return -agreement if args.eval_metric == "loss" else agreement  # of a loss, less is better
    if "val" in figures:
        return figures["val"][args.eval_metric]
    return terms["loss"] if args.eval_metric == "loss" else -terms["loss"]


def trained_student(run: Run) -> torch.nn.Module | None:
    """Return the student, or its average where that was evaluated; a sharded one is gathered on rank 0."""
    model = run.task.get_eval_model(ema=evaluates_average(run))
    if run.args.fsdp:
        return model.gather()
    model = unwrap_model(model)
    if run.args.linear_probe:
        probe.thaw(model)
    return model


def take_best(run: Run, model: torch.nn.Module, best: dict) -> tuple[list[str], torch.Tensor] | None:
    """Load the weights of the epoch that ranked first, for ``--select best``; return its predictions."""
    try:
        path, content = find_best(run.folder, best["epoch"], run.args.fsdp)
    except UserError as error:
        if run.args.select == "best":
            raise UserError(f"--select best: {error}; --select last exports the last epoch") from error
        _logger.warning(f"WARNING: {error}; there is no {report.PREDICTIONS['best']}")
        delete(run.folder / report.PREDICTIONS["best"])
        return None
    if run.args.select == "best":
        load_weights(model, read_weights(path, "--select", best["ema"]), str(path), "--select")
    return stored_predictions(content.get("w2s") or {})


def finish(run: Run, model: torch.nn.Module, seconds: float) -> dict:
    """Export the selected student, write result.json, print the closing table, publish; return the record."""
    args = run.args
    run.files.trackers.close()
    run.files.metrics.save()
    if not run.files.metrics.evaluations:
        raise UserError(f"{run.folder}: no epoch was trained (--epochs {args.epochs}, --stop-epoch {args.stop_epoch})")
    if not run.position.taken:
        raise UserError(f"{run.folder}: every step was skipped, its loss or gradient was not finite: the student is "
                        "untrained and not exported; try a lower --lr, --clip-grad 1, or --amp-dtype bfloat16")
    last, best = run.files.metrics.evaluations[-1], report.best_of(run.files.metrics.evaluations, run.saver.best_epoch)
    predictions = dict.fromkeys(report.PREDICTIONS, run.files.predictions)
    if best is not last:
        predictions["best"] = take_best(run, model, best)
    record = make_record(
        args, model, run.student_source, run.teacher, run.targets, run.data, run.data_config,
        Outcome(last, best, run.weak_metrics, run.position, seconds))
    plain_batch_norm(model)
    export_model(model, run.folder / "export", run.data_config, record, names_of_data(run.data.train))
    if module := record["model"]["plugin_module"]:
        _logger.info(f"The architecture of the export is not one of timm's own: timm loads it after `import {module}`")
    record["export"] = export_hashes(run.folder / "export")
    for name, found in predictions.items():
        if found is not None:
            report.write_predictions(run.folder / report.PREDICTIONS[name], *found)
    write_json(run.folder / "result.json", record)  # last: it says that the run is finished
    for warning in record["warnings"]:
        _logger.warning(f"WARNING: {warning}")
    print(report.closing_table(record))
    print(f"* exported to {run.folder / 'export'}")
    if args.push_to_hub:
        url = push_export(run.folder / "export", args.push_to_hub, private=args.hub_private or None,
                          revision=args.hub_revision, commit_message=args.hub_commit_message)
        print(f"published at {url}")
    return record


if __name__ == "__main__":
    run_main(main, "train_w2s.py")
