"""What pyproject.toml cannot say: a wheel carries the two scripts and the recipes, which stand beside the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BESIDE = ("train_w2s.py", "validate.py", "hparams")


class BuildWithScripts(build_py):
    """Also copies them to ``w2s_plugins/top``, where `w2s_plugins.files.TOP` is in a package that is installed."""

    def run(self) -> None:
        super().run()
        # an editable package finds them where they are
        if self.editable_mode:
            return
        # a folder of an earlier build may have a recipe that is gone
        top = Path(self.build_lib, "w2s_plugins", "top")
        shutil.rmtree(top, ignore_errors=True)
        top.mkdir(parents=True)
        for name in BESIDE:
            copy = shutil.copytree if Path(name).is_dir() else shutil.copy
            copy(name, top / name)


setup(cmdclass={"build_py": BuildWithScripts})
