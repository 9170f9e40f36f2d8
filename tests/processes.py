"""Processes that are fresh but for what takes longest to import: a start takes a quarter of the time."""

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# Forks of a process that has imported torch and all that nothing of the environment changes, as huggingface_hub's
# settings do: the rest is imported anew by each.
SERVER = '''
import json, os, runpy, sys, tempfile
import PIL.Image, safetensors.torch, sklearn.datasets, sklearn.model_selection, torch, torch._dynamo
import torch.distributed.fsdp, torch.export, torchvision, torchvision.datasets
import torchvision.models.feature_extraction, yaml

assert not {"huggingface_hub", "timm", "w2s_plugins"} & sys.modules.keys()
for line in sys.stdin:
    argv, env, cwd, given = json.loads(line)
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        file.write(given.encode())
        file.seek(0)
        pid = os.fork()
        if pid == 0:
            for number, file in enumerate((file, out, err)):
                os.dup2(file.fileno(), number)
            sys.stdin = open(0)
            break
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = [file.seek(0) or file.read().decode() for file in (out, err)]
    print(json.dumps([code, *texts]), flush=True)
else:
    sys.exit()
os.environ.clear()
os.environ.update(env)
os.chdir(cwd)
place = {"-c": "", "-m": cwd}.get(argv[0], os.path.dirname(argv[0]))
sys.path[:1] = [place, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
if argv[0] == "-c":
    code = argv.pop(1)
    sys.argv = argv
    exec(code, {"__name__": "__main__"})
elif argv[0] == "-m":
    sys.argv = argv[1:]
    runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
else:
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
'''


@functools.cache
def _server() -> subprocess.Popen:
    """The process that all others are forked from; it ends when this one does."""
    return subprocess.Popen([sys.executable, "-c", SERVER], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def python(*argv: object, env: Mapping[str, str], cwd: Path, given: str = "") -> subprocess.CompletedProcess:
    """Run ``python *argv``, a script, ``-m MODULE`` or ``-c CODE``, and wait for its end.

    Args:
        argv: the command line after the name of the interpreter.
        env: environment of the process. What is read before anything is imported, as OMP_NUM_THREADS, is that of the
            tests; in place of one of the packages named above it can put no other.
        cwd: its folder.
        given: its standard input.
    """
    server = _server()
    print(json.dumps([[*map(str, argv)], dict(env), str(cwd), given]), file=server.stdin, flush=True)
    return subprocess.CompletedProcess(argv, *json.loads(server.stdout.readline()))
