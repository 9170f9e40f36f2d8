"""How a run is stopped, and how its processes end."""

import logging
import multiprocessing
import signal
import sys

import torch.distributed as dist

from ..distributed.signals import Interrupted, SignalWatch
from ..distributed.world import count_processes, gather_objects, meet
from ..errors import exit_now
from ..run.lock import unlock_run
from ..system import STOPPING
from .saving import save_recovery
from .training_run import Run

_logger = logging.getLogger(__name__)


def stop_early(run: Run, interruption: Interrupted) -> None:
    """Save where the run stands and end the process with the exit code of the signal."""
    # The update in hand is finished. It is saved in this thread, because the process ends after that.
    done = -(-run.position.batch // run.args.grad_accum_steps)
    save_recovery(run, max(done - 1, 0))
    if run.files:
        _logger.warning(f"{interruption}: stopped in epoch {run.position.epoch + 1}, step {done}; go on with "
                        f"the same command and --resume {run.output.folder} (a command of several runs: --resume auto)")
        run.files.trackers.close()
    run.loaders.clear()  # ends the data workers
    unlock_run()
    end_process(interruption.exit_code)


def stop_between_runs() -> None:
    """End the process where a signal came while the run before was finished, which nothing interrupts by itself."""
    watch = SignalWatch.entered
    received = None if watch is None else watch.received
    # One rank may have got the signal alone, and all have to end at the same place.
    asked = [received] if count_processes() == 1 else gather_objects(received)
    if signum := next(filter(None, asked), None):
        _logger.warning(f"{signal.Signals(signum).name}: stopped between two runs; go on with the same command and "
                        "--resume auto")
        end_process(Interrupted(signum).exit_code)


def end_process(code: int) -> None:
    """End this process; on several ranks without the teardown of objects, in which gloo may never return.

    Signals change nothing from here on: what is to be written is written.
    """
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)  # an interpreter that ends would take any other handler away
    if dist.is_initialized() and dist.get_world_size() > 1:
        meet()  # torchrun ends all ranks when one ends with an error: let rank 0 finish
        dist.destroy_process_group()
        for worker in multiprocessing.active_children():
            worker.terminate()
        exit_now(code)
    elif dist.is_initialized():
        dist.destroy_process_group()  # of one process, from --fsdp
    if code:
        sys.exit(code)
