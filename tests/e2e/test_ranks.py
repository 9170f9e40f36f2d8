"""Several processes of one run, of which one has more to do than the others."""

import datetime
import time
from pathlib import Path

import torch.distributed as dist

import train_w2s

from .conftest import TINY, Fork


def test_no_limit_of_an_exchange_ends_a_run_whose_export_takes_longer(
    fork: Fork, tmp_path: Path
) -> None:
    """Rank 0 alone exports and pushes, while the others wait for it."""

    def before(rank: int) -> None:
        trained, finish = train_w2s.trained_student, train_w2s.finish

        def trained_student(*args: object) -> object:
            dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=2))
            return trained(*args)

        def finish_late(*args: object) -> object:
            time.sleep(4)
            return finish(*args)

        train_w2s.trained_student, train_w2s.finish = trained_student, finish_late

    run = fork(
        *TINY, "--model w2s_cnn2 --batch-size 8", "--output", tmp_path, processes=2, before=before
    )
    assert run.wait() == [0, 0], run.text(0) + run.text(1)
