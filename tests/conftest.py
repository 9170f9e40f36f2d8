"""One thread a process, as in the scripts that the tests start.

Tests run side by side, a core each; and a process that is forked from one whose OpenMP threads have worked would wait
for them for ever.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
