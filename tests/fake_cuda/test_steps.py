"""What a training step asks of a GPU, without one: it waits for its gradients alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths, library_paths

from tests.losses.common import own_losses

HERE = Path(__file__).parent
GRADIENTS = "w2s_plugins/engine/step.py:update_weights: _local_scalar_dense"  # docs/reliability.md says why
AGREEMENT = "w2s_plugins/teachers/mix.py:forward: nonzero"  # docs/losses.md
RUN = """
import ctypes, runpy, sys
ctypes.CDLL(sys.argv[1])
runpy.run_module("tests.fake_cuda.steps", run_name="__main__")
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # sixty steps of training in one process


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, int]]]:
    """What a step asks of the device, by what it is made of: waits and launches by place."""
    compiler, library = shutil.which("c++"), tmp_path_factory.mktemp("fake_cuda") / "guard.so"
    if compiler is None:
        if os.environ.get("W2S_REQUIRE_COMPILER"):
            pytest.fail("there is no C++ compiler")
        pytest.skip("needs a C++ compiler")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-std=c++20", *(f"-I{path}" for path in include_paths()), HERE / "guard.cpp",
         "-o", library, *(word for path in library_paths() for word in (f"-L{path}", f"-Wl,-rpath,{path}")),
         "-lc10", "-ltorch_cpu"], check=True)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, library], cwd=HERE.parents[1], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    assert {*own_losses(), "agreement phase", "--episodic"} <= found.keys()
    return found


def test_waits_are_seen(asked) -> None:
    seen = asked.pop("waits")["waits"]
    assert {place.partition(": ")[2] for place in seen if "steps.py:waits" in place} == {
        "index", "_local_scalar_dense", "_unique2", "_to_copy", "nonzero"}


def test_a_step_waits_for_its_gradients_alone(asked) -> None:
    """float16's scaler asks once more, when nothing is left to wait for; samples of agreement are counted."""
    known = {name: {GRADIENTS: 2 if name == "float16" else 1, **({AGREEMENT: 1} if "agreement" in name else {})}
             for name in asked if name != "waits"}
    assert {name: asked[name]["waits"] for name in known} == known
