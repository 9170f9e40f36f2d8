"""Signs of life: a run of several processes ends with the name of the one that is missing, not in silence.

Without this, survivors wait for gloo or NCCL until their timeout of 10 to 30 minutes, and then say only that something
did not answer. So each process has a thread that every second writes a sign of life to the store of the process group
(rank, host, place in training), reads that of the next rank, and asks whether anyone has ended the run. Whoever finds a
rank silent for `--dist-timeout`, or fails with an error, writes why; the first to do so counts, one process a node
prints it, and all end with code 1, or 2 where the `UserError` was. A failed exchange, whose limit is about the same, is
first traced to a rank without signs of life. A second thread ends the process when the store itself does not answer.
Time is counted in rounds of the thread, so a job that was suspended as a whole goes on.
"""

import contextlib
import datetime
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from ..errors import exit_now, first_to_report, one_line, print_traceback, watch_others
from ..tokens import scrub

EXIT_FAILED = 1
ROUNDS = 4  # without a sign of life, after a failed exchange, in which a process is taken for dead
MARGIN = 5.0  # seconds by which a rank that is silent is found before an exchange with it fails


class Heartbeat:
    """The signs of life of this process, and its watch over the next rank.

    Args:
        store: store of the process group.
        rank: this process.
        size: number of processes.
        timeout: seconds of silence after which a process is given up.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: float):
        self.store = dist.PrefixStore("w2s/life", store.clone())  # a connection of its own: requests may wait in others
        self.rank, self.size, self.timeout = rank, size, timeout
        self.period = min(1.0, timeout / 5)
        self.doing, self.marks = "at the start", 0
        self._beats = 0
        self._unanswered = 0  # rounds since the store answered last
        self._store_error: Exception | None = None
        self._ending = threading.Lock()
        for work in (self._watch, self._watch_store):
            threading.Thread(target=work, daemon=True, name="heartbeat").start()

    def note(self, doing: str) -> None:
        """Say what this process is about to do; all ranks say the same, in the same order."""
        self.doing = doing
        self.marks += 1

    def announce(self, message: str, **more: object) -> dict:
        """End the run with ``message``, unless another process was first; returns the words of the first."""
        own = json.dumps(dict(message=message, by=self.rank, **more))
        return json.loads(self.store.compare_set("end", "", own))

    def failed(self, error: Exception) -> NoReturn:
        """End this process after an error, with its message or, if that is the cause, with what happened to another."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, after the end of another: the message comes first
        try:
            end = self._end() or (self._cause(error) if isinstance(error, RuntimeError) else None)
            if end is None:
                end = self.announce(f"rank {self.rank} ({socket.gethostname()}), {self.doing}: "
                                    f"{type(error).__name__}: {scrub(one_line(error))}")
                if end["by"] == self.rank:
                    print_traceback(error)
        except dist.DistError as lost:
            end = dict(message=f"{self._store_name()} is gone: {one_line(lost)}")
        self._leave(end)

    def _watch(self) -> None:
        following, last, silent = (self.rank + 1) % self.size, None, 0
        while True:
            try:
                self._beat()
                end, sign = self._end(), self._sign(following)
                if sign == last and silent * self.period >= self.timeout:
                    end = self.announce(
                        f"{_name(following, sign)} has given no sign of life for {self.timeout:g} s (--dist-timeout), "
                        "it is stopped or cut off from the network", silent=sign)
            except dist.DistError as error:
                self._store_error = error  # it never answers again
                return
            self._unanswered = 0
            if end:
                self._leave(end)
            silent, last = silent + 1 if sign == last else 0, sign
            time.sleep(self.period)

    def _watch_store(self) -> None:
        """A thread of its own, because a request to a store whose host is down never returns."""
        while True:
            time.sleep(self.period)
            self._unanswered += 1
            if self._unanswered * self.period >= self.timeout or (self._store_error and self._unanswered >= ROUNDS):
                why = one_line(self._store_error) if self._store_error else f"no answer for {self.timeout:g} s"
                self._leave(dict(message=f"{self._store_name()} is gone: {why}"))

    def _store_name(self) -> str:
        place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        return f"rank {self.rank} ({socket.gethostname()}), {self.doing}: the host of rank 0, or the store on {place},"

    def _beat(self) -> None:
        self._beats += 1
        sign = dict(host=socket.gethostname(), pid=os.getpid(), parent=os.getppid(), beats=self._beats,
                    marks=self.marks, doing=self.doing)
        self.store.set(f"rank{self.rank}", json.dumps(sign))

    def _sign(self, rank: int) -> dict:
        key = f"rank{rank}"
        return json.loads(self.store.get(key)) if self.store.check([key]) else {}

    def _end(self) -> dict | None:
        return json.loads(self.store.get("end")) if self.store.check(["end"]) else None

    def _cause(self, error: Exception) -> dict | None:
        """Return the end of the run when another process is the cause of this one's error."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        before = [self._sign(rank) for rank in others]
        for _ in range(ROUNDS):
            time.sleep(self.period)
            if end := self._end():
                return end
        for rank, old in zip(others, before):
            sign, found = self._sign(rank), f"rank {self.rank}, {self.doing}, found: {one_line(error, 150)}"
            if sign == old:
                return self.announce(
                    f"{_name(rank, sign)} has died without a message, killed or out of memory; {found}", silent=sign)
            if "timed out" in str(error).lower() and sign["marks"] < self.marks:
                return self.announce(f"{_name(rank, sign)} does not go on; {found}")
        return None

    def _leave(self, end: dict) -> NoReturn:
        with self._ending:  # never released: one thread ends the process
            if first_to_report():
                print(f"{Path(sys.argv[0]).name}: error: {end['message']}", file=sys.stderr, flush=True)
            silent = end.get("silent") or {}
            if (silent.get("host"), silent.get("parent")) == (socket.gethostname(), os.getppid()) and os.getppid() > 1:
                with contextlib.suppress(OSError):  # it may be dead already
                    os.kill(silent["pid"], signal.SIGKILL)  # a stopped one would keep torchrun waiting for 30 s
            if self.rank == 0:
                time.sleep(2 * self.period)  # the store may end with this process: let the others read it
            exit_now(EXIT_FAILED)


def _name(rank: int, sign: dict) -> str:
    if not sign:
        return f"rank {rank}"
    return f"rank {rank} ({sign['host']}, process {sign['pid']}), last heard of {sign['doing']},"


_heartbeat: Heartbeat | None = None


def start(timeout: float) -> None:
    """Start giving signs of life, in a process group: one without any for ``timeout`` seconds ends the run, and so does
    an exchange that takes longer.
    """
    global _heartbeat
    dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=timeout + MARGIN))
    store = dist.distributed_c10d._get_default_store()
    _heartbeat = Heartbeat(store, dist.get_rank(), dist.get_world_size(), timeout)
    watch_others(_heartbeat)
    store.set(f"w2s/joined{_heartbeat.rank}", "")  # rank 0 may end, and its store with it, only when all are connected
    store.wait([f"w2s/joined{rank}" for rank in range(_heartbeat.size)])


def note(doing: str) -> None:
    """Say what this process is about to do, for the message that others may have to give."""
    if _heartbeat is not None:
        _heartbeat.note(doing)


def end_all(message: str) -> bool:
    """End every process of the run with a message; return False in a run of one process, which ends by itself."""
    if _heartbeat is not None:
        _heartbeat.announce(message)
    return _heartbeat is not None
