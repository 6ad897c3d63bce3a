"""Jobs: `python -m launch.NAME` from a clone, `merge-jax NAME` from the wheel."""

import gc
import os

# What is imported lives as long as the process: looking for garbage meanwhile takes a tenth of the start.
gc.disable()
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads wait in a loop; JAX does the arithmetic
