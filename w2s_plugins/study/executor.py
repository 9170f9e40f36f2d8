"""Works through a plan. How a run is made, in this process or as one of its own, is the affair of two subclasses."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic

from ..errors import say
from ..made_of import Ingredient, check_same
from .layout import made_of_run
from .plan import R, RunPlan

PAUSE = 0.2  # seconds between looks at runs that go on


class Executor(ABC, Generic[R]):
    """Brings every run of a plan to its end, but for those that fail and those that need them.

    Runs that were made of different data, labels or weights of one name belong in no table together. So this is
    compared before a run begins, when hours can still be saved, and when it has ended, because files may have changed
    meanwhile.

    Args:
        plan: runs with a record are finished already.
    """

    def __init__(self, plan: RunPlan[R]):
        self.plan = plan
        self.lost: set[str] = set()  # runs that failed, or that need one
        # what finished runs were made of, and what there was when those began that still go on
        self.made_of = {
            run.name: made_of_run(run.folder, run.record) for run in plan.runs if run.record
        }
        self.begun: dict[str, list[Ingredient]] = {}

    @abstractmethod
    def begin(self, run: R) -> bool:
        """Make a run whose needs are finished, or let it begin; False if that has to wait."""

    def collect(self) -> None:
        """Take leave of runs that have ended since the last look."""

    def work(self, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Work through the plan until nothing is left to do, or somebody wants it to stop.

        Raises:
            UserError: data, labels or weights changed between two runs.
        """
        while not is_stopped():
            self.collect()
            self.note_finished()
            left = self.find_left()
            if not left and not self.begun:
                return
            # one at a time, since what has just begun may be finished, so that an earlier one can begin
            if not any(self.is_ready(run) and self.begin(run) for run in left):
                time.sleep(PAUSE)

    def note_finished(self) -> None:
        """Compare what has finished since the last look with all that were finished before."""
        # each is read and compared once, when it is seen for the first time
        new = [run for run in self.plan.runs if run.name not in self.made_of and run.look()]
        if new:
            self.made_of |= {run.name: made_of_run(run.folder, run.record) for run in new}
            check_same(self.made_of, self.plan.flag)

    def check_before(self, run: R, sources: list[Ingredient]) -> None:
        """Compare what a run would be made of with what the others were made of, before it begins."""
        # those that go on began with what was there then, and are as good as finished for this
        check_same({**self.made_of, **self.begun, run.name: sources}, self.plan.flag)

    def find_left(self) -> list[R]:
        """Return the runs that are neither finished nor lost. Whoever needs a lost one is lost too."""
        # the plan has each run behind those that it needs, so one pass finds all that are lost
        left = []
        for run in self.plan.runs:
            if run.name in self.made_of.keys() | self.lost:
                continue
            if self.lost & set(run.needs):
                self.lost.add(run.name)
                say(f"{run.name}: left out, since it needs a run that failed")
                continue
            left.append(run)
        return left

    def is_ready(self, run: R) -> bool:
        """Return whether all that a run needs is finished, and it has not begun."""
        return run.name not in self.begun and self.made_of.keys() >= set(run.needs)
