"""What the system has: its signals and its limits."""

import math
import signal

# that stop a run; Windows has only the first two
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


def system_limit(name: str) -> tuple[float, float]:
    """Return the soft and the hard limit of ``name``, as "NOFILE"; infinity for none, as on Windows."""
    try:
        import resource
    except ImportError:
        return math.inf, math.inf
    limits = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
    return tuple(math.inf if most == resource.RLIM_INFINITY else most for most in limits)
