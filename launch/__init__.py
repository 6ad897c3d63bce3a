"""Jobs: `python -m launch.NAME` from a clone, `merge-jax NAME` from the wheel."""

import gc
import os

# Modules live as long as the process: to look for garbage every 700 objects was 4 % of a whole merge.
gc.set_threshold(50_000, 20, 20)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads wait in a loop; JAX does the arithmetic
