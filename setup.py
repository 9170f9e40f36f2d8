"""What pyproject.toml cannot say: the wheel has the two scripts and the recipes too, as the package w2s_plugins.top."""

from setuptools import find_packages, setup

setup(
    script_name="setup.py",  # else it would be taken for a module of that package
    packages=[*find_packages(include=["w2s_plugins*"]), "w2s_plugins.top"],
    package_dir={"w2s_plugins.top": "."},
    package_data={
        "w2s_plugins": [
            "py.typed",
            "cli/*.yaml",
            "data/*.npz",
            "labels/*.txt",
            "labels/*.yaml",
            "data/class_lists/*/*.txt",
            "study/templates/*",
            "hub/templates/*",
            "audit/templates/*",
        ],
        "w2s_plugins.top": ["hparams/README.md", "hparams/*/*.yaml"],
    },
)
