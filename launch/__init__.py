"""Jobs: `python -m launch.NAME` from a clone, `merge-jax NAME` from the wheel."""
