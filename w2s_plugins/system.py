"""What the system has: its signals."""

import signal

# that stop a run; Windows has only the first two
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


