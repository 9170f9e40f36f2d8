"""Small changes to the code, one at a time: do its tests notice?

    pip install cosmic-ray
    python benchmarks/mutants.py --count 12

Of each module below some places are drawn, and at each one change of cosmic-ray's. The module's own tests run on a copy
of the repository; what passes them is printed. Imports that all need are made once.
"""

import argparse
import collections
import difflib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from cosmic_ray.commands import init
from cosmic_ray.mutating import apply_mutation
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import use_db

TOP = Path(__file__).parents[1]
COMMON = ("huggingface_hub.hf_api", "hypothesis", "scipy.stats",
          "timm.data", "timm.optim", "timm.task", "torch._dynamo", "torch.distributed.fsdp", "torchvision.datasets",
          "yaml")
SECONDS = 300.0  # that the tests of one change may take: what they wait for may never come
TESTS = {
    "metrics/pgr.py": ["metrics/test_metrics.py"],
    "study/statistics.py": ["study/test_statistics.py"],
    "losses/confidence.py": ["losses/test_confidence.py", "losses/test_reference.py"],
    "losses/robust.py": ["losses/test_reference.py", "losses/test_memory.py"],
    "engine/step.py": ["engine/test_step.py", "engine/test_anomaly.py"],
    "labels/combine.py": ["labels/test_combine.py"],
    "labels/store.py": ["labels/test_store.py", "labels/test_target_cache.py"],
    "run/restore.py": ["run/test_checkpoint.py"],
}


def passes(copy: Path, tests: list[str]) -> bool:
    """Run tests in a process forked from this one, which has imported nothing of the project; return if all pass."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            os.chdir(copy)
            sys.path[0] = str(copy)
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)
                os.dup2(nothing.fileno(), 2)
                code = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore", "-o", "addopts=",
                                    f"--basetemp={copy.parent / 'tests'}", *(f"tests/{test}" for test in tests)])
        finally:
            os._exit(code)
    deadline = time.monotonic() + SECONDS
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            ended = os.waitpid(pid, 0)
            break
        time.sleep(0.02)
    return ended[1] == 0


def draw(module: Path, count: int, seed: int) -> list[object]:
    """Return changes to a module, each at another place."""
    with tempfile.TemporaryDirectory() as folder, use_db(str(Path(folder) / "session")) as session:
        init([module], session, {})
        places = collections.defaultdict(list)
        for item in session.work_items:
            places[item.mutations[0].start_pos].append(item.mutations[0])
    chosen = random.Random(seed)
    return [chosen.choice(places[place]) for place in chosen.sample(sorted(places), min(count, len(places)))]


def survives(copy: Path, module: Path, change: object, tests: list[str]) -> str | None:
    """Return the lines of a change that tests do not notice, None where they do."""
    before = module.read_text()
    try:
        apply_mutation(module, get_operator(change.operator_name)(**change.operator_args), change.occurrence)
        after = module.read_text()
        if before == after or not passes(copy, tests):
            return None
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
        return "\n".join([f"{module.name}:{change.start_pos[0]}", *[*lines][3:]])
    finally:
        module.write_text(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=12, help="changes of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="+", choices=TESTS, default=[*TESTS])
    args = parser.parse_args()
    sys.dont_write_bytecode = True  # two changes within a second may have one size
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    for name in COMMON:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(TOP, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "output", "__pycache__"))
        for name in args.modules:
            module, tests = copy / "w2s_plugins" / name, TESTS[name]
            started, cpu = time.monotonic(), os.times().children_user
            if not passes(copy, tests):
                raise SystemExit(f"{name}: its tests fail without any change")
            changes = draw(module, args.count, args.seed)
            left = [*filter(None, (survives(copy, module, change, tests) for change in changes))]
            print(f"{name}: {len(changes)} changes, {len(left)} unnoticed, {time.monotonic() - started:.0f} s, "
                  f"{os.times().children_user - cpu:.0f} s of a CPU", *left, sep="\n", flush=True)


if __name__ == "__main__":
    main()
