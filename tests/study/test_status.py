"""Where a study stands, told of whatever is found in its folder."""

import json
from pathlib import Path

import pytest

from w2s_plugins.study.layout import PlannedRun, save_plan
from w2s_plugins.study.status import describe, epochs_done

from .conftest import Cli


def study(root: Path, *argv: str) -> PlannedRun:
    """One run, of which something is on disk."""
    run = PlannedRun("weak-a", "weak", "weak-a", "a", None, None, None, 0, list(argv), [], root)
    save_plan(root, [run])
    run.state_file("json").parent.mkdir()
    run.path.mkdir(parents=True)
    return run


@pytest.mark.parametrize(("argv", "shown"), [
    (["--epochs", "3"], "epoch 1 of 3"), (["--epochs", "3", "--stop-epoch", "2"], "epoch 1 of 2"),
    (["--epochs", "x"], "epoch 1 of ?"), (["--epochs"], "epoch 1 of ?"), (["--epochs", "1" * 5000], "epoch 1 of ?"),
    (["--epochs", "0"], "epoch 1 of ?"), (["--epochs", "-3"], "epoch 1 of ?"),
])
def test_numbers_of_epochs(tmp_path: Path, cli: Cli, argv: list[str], shown: str) -> None:
    run = study(tmp_path, *argv)
    run.state_file("json").write_text('{"state": "stopped"}')
    (run.path / "metrics.jsonl").write_text('{"event": "eval", "epoch": 0}\n')
    code, out, err = cli("status", tmp_path)
    assert code == 0 and shown in out and not err


@pytest.mark.parametrize(("text", "epochs"), [
    ("", 0), ('{"event": "train", "epoch": 4}\n', 4), ('{"event": "eval", "epoch": 4}\n', 5),
    ('{"event": "train", "epoch": 4}\n{"event": "train", "ep', 4),
    ('{"event": "train", "epoch": 4}\n{"event": "trai', 4),
    ('{"event": "eval", "epoch": 4}\n{"event": "train", "epoch": ', 4), ('"epoch": \u00b2', 0), ("\0" * 70_000, 0),
    ('"epoch": ' + "9" * 5000, 0),
])
def test_lines_that_are_cut_off(tmp_path: Path, text: str, epochs: int) -> None:
    run = study(tmp_path)
    (run.path / "metrics.jsonl").write_text(text)
    assert epochs_done(run) == epochs


@pytest.mark.parametrize("state", [
    "", "[]", "3", "{", "\0", "[" * 100_000, '{"state": ["failed"]}', '{"state": "failed", "error": 3}',
    '{"state": "failed", "error": "a\\nb\\u001b[2J"}', '{"seconds": "x"}', '{"seconds": NaN}', '{"seconds": -1e400}',
    '{"seconds": 1' + "0" * 400 + "}", '{"started": "x", "earlier": []}', '{"state": "stopped", "host": {"a": 1}}',
])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("done", [False, True])
def test_states_that_nobody_writes(tmp_path: Path, state: str, held: bool, done: bool) -> None:
    run = study(tmp_path)
    run.state_file("json").write_text(state)
    run.state_file("json").with_name("estimate.json").write_text('{"weak-a": "x"}')
    if held:
        run.state_file("1.lock").write_text('{"host": "node7", "place": "node7", "pid": 1}')
    if done:
        (run.path / "result.json").write_text(json.dumps({}))
    text = describe(tmp_path, 120.0)
    assert "1 runs: 1 " in text and "\x1b" not in text
    assert ("1 finished" in text) == done
