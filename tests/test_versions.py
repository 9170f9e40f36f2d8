"""Minimum versions: the same as in requirements.txt, and told in one line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from w2s_plugins import registry
from w2s_plugins.errors import UserError

ROOT = Path(__file__).parents[1]


def bounds(file: str, sign: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    return dict(
        re.match(rf"([\w-]+){sign}([\d.]+)", line).groups() for line in lines if sign in line
    )


def test_oldest_versions_are_those_of_the_requirements():
    required = bounds("requirements.txt", ">=")
    assert {name: required[name] for name in registry.OLDEST} == registry.OLDEST
    oldest = bounds("requirements-min.txt", "==") | bounds("requirements-min-torch.txt", "==")
    assert all(
        v.removesuffix(".0") == required[name] for name, v in oldest.items() if name in required
    )
    assert {"timm", "torch", "huggingface-hub"} <= set(oldest)


@pytest.mark.parametrize("script", ["train_w2s.py", "validate.py"])
def test_a_package_that_is_too_old_is_told_before_it_is_imported(tmp_path, script):
    """A distribution of another version, found first, whose package cannot be imported."""
    (tmp_path / "timm-0.9.2.dist-info").mkdir()
    (tmp_path / "timm-0.9.2.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: timm\nVersion: 0.9.2\n"
    )
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("raise RuntimeError('imported')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import runpy; runpy.run_path({str(ROOT / script)!r}, "
        "run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr
        == f"{script}: error: too old or absent: pip install 'timm>={registry.OLDEST['timm']}'\n"
    )


def test_an_absent_package_is_told(monkeypatch):
    registry.check_versions()
    monkeypatch.setitem(registry.OLDEST, "no-such-package", "1")
    with pytest.raises(UserError, match="too old or absent: pip install 'no-such-package>=1'"):
        registry.check_versions()
