"""Values that are not finite are kept out of statistics and checkpoints."""

from collections.abc import Callable
from pathlib import Path

from tests.e2e.conftest import TINY, Done, here, read_run, weak  # noqa: F401  (fixtures)

Run = Callable[..., Done]


PLUGIN = '''
import torch
from w2s_plugins.losses import register_loss
calls = 0

@register_loss("steep_{at}", summary="an infinite step at one call")
def steep(inputs):
    global calls
    calls += 1
    z = inputs.student_logits
    return {{"z": z.square().mean() * (1e38 if calls == {at} else 1.0)}}
'''


def test_broken_weights_never_go_over_a_good_checkpoint(here: Run, weak: Path, tmp_path: Path) -> None:  # noqa: F811
    """The last step of the second epoch is finite in loss and gradient, and takes the weights out of range."""
    (tmp_path / "steep.py").write_text(PLUGIN.format(at=8))
    done = here(*TINY, "--model", "w2s_cnn5", "--teacher", "w2s_cnn2", "--teacher-checkpoint", weak,
                "--no-teacher-eval", "--plugins", "steep.py", "--loss", "steep_8", "--task-loss-weight", 0,
                "--opt", "sgd", "--lr", 1e4,
                "--recovery-interval", 1, "--experiment", "run", "--epochs", 3, "--sched", "none", "--clip-grad", 1e35,
                "--weight-decay", 0, "--nan-patience", 3)
    assert done.code == 2 and "not finite" in done.error, done.err
    for saved in (tmp_path / "output" / "train" / "run").glob("*.pth.tar"):
        state = read_run(saved.parent, saved.name)["state_dict"]
        assert all(v.isfinite().all() for v in state.values() if v.is_floating_point()), saved
