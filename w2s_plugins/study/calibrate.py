"""Measure a few steps of some commands: ``python -m w2s_plugins.study.calibrate`` reads them from stdin.

Each is prepared as it would be for training, makes some updates and evaluates some batches. One line of JSON a command
is written to stdout, the first one when everything is imported.
"""

import argparse
import contextlib
import itertools
import json
import logging
import sys
import time
from dataclasses import asdict

import train_w2s

from ..build.resolve import resolve_train_args
from ..cli import parse, train_parser
from ..errors import UserError, run_main
from ..train.engine import train_one_epoch
from .estimate import Timing

WARM, STEPS, SECONDS = 2, 10, 10.0  # updates before the clock starts, updates on it, and time for them at most
EVAL_BATCHES = 4


class _EnoughError(Exception):
    pass


def measure(args: argparse.Namespace, given: set[str]) -> Timing:
    """Prepare a run, make some updates and evaluate some batches.

    A student with cached targets is measured without them: its teacher is not at work while it learns.
    """
    if args.teacher and args.teacher_targets != "online":
        args.teacher = args.teacher_checkpoint = args.loss = None
        args.loss_kwargs, args.eval_metric = {}, "top1"
    args.log_wandb = args.log_tensorboard = False
    resolve_train_args(args, given)
    started = time.monotonic()
    run = train_w2s.prepare(args, set(train_parser().by_dest()))
    start = time.monotonic() - started
    step = time_of_update(run)
    images = min(len(run.data.val), EVAL_BATCHES * (args.validation_batch_size or args.batch_size))
    started = time.monotonic()
    train_w2s.evaluate_split(
        run, "val", run.task.get_eval_model(), progress=lambda items: itertools.islice(items, EVAL_BATCHES))
    eval_image = (time.monotonic() - started) / images
    run.saver.save_checkpoint(0, metric=0.0)  # others may have it as their teacher
    epochs = min(run.num_epochs, args.stop_epoch or run.num_epochs)
    per_epoch = -(-len(run.loaders["train"]) // args.grad_accum_steps)
    evaluations = sum(train_w2s.evaluation_due(args, epoch, epochs) for epoch in range(epochs))
    run.loaders.clear()  # ends the data workers
    return Timing(start, step, epochs * per_epoch, eval_image, evaluations, len(run.data.train), len(run.data.val))


def time_of_update(run: "train_w2s.Run") -> float:
    """Return the seconds of an update, with the loading of its images."""
    marks = [time.monotonic()]

    def on_update(update: int, samples: int) -> None:
        marks.append(time.monotonic())
        if len(marks) > WARM + STEPS or marks[-1] - marks[0] > SECONDS:
            raise _EnoughError

    run.args.synchronize_step = True
    with contextlib.suppress(_EnoughError):
        while True:
            train_one_epoch(
                run.position, run.task, run.loaders["train"], run.optimizer, run.precision,
                train_w2s.step_settings(run.args, run.world), num_epochs=run.num_epochs, on_update=on_update)
            run.position.next_epoch()
    counted = marks[min(WARM, len(marks) - 2):]
    return (counted[-1] - counted[0]) / (len(counted) - 1)


def main() -> None:
    """Measure the commands of stdin; one that cannot run is answered with its error."""
    logging.disable(logging.WARNING)
    print(json.dumps({"ready": time.time()}), flush=True)
    for argv in json.load(sys.stdin):
        try:
            args, given = parse(train_parser(), argv)
            print(json.dumps(asdict(measure(args, given))), flush=True)
        except UserError as error:
            print(json.dumps({"error": str(error)}), flush=True)
            return


if __name__ == "__main__":
    run_main(main, "w2s_plugins.study")
