"""``python -m w2s_plugins.predictions MODEL DIR --output FILE``. What it needs is imported when its flags are right."""

import sys

from ..errors import run_main
from .flags import is_sharded, predict_parser, settle


def main() -> None:
    """Parse the command line and do what it says."""
    request = settle(predict_parser().take(sys.argv[1:]))
    from .run import Request, predict
    from .shards import predict_shards

    (predict_shards if is_sharded(str(request["dir"])) else predict)(Request(**request))


if __name__ == "__main__":
    run_main(main, "w2s_plugins.predictions")
