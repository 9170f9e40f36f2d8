"""``python -m w2s_plugins.predictions MODEL DIR --output FILE``. What it needs is imported when its flags are right."""

import sys

from ..cli.parser import predict_parser
from ..errors import run_main
from ..settings.concerns import Prediction
from .flags import settle


def main() -> None:
    """Parse the command line and do what it says."""
    # wrong flags are answered at once: torch is imported after that
    flags = settle(predict_parser().take(sys.argv[1:]))
    from .run import predict

    predict(Prediction(**flags))


def console() -> None:
    """The command of that name, ``w2s-predict``, and ``python -m``."""
    run_main(main, "w2s_plugins.predictions")


if __name__ == "__main__":
    console()
