"""The analyses of the paper "Recycle" (arXiv 2412.04144) on a pool of checkpoints, as independent cells.

A search is a cell, and knows nothing of the others: over the N best checkpoints for several N at one budget;
over all of them by the paper's search, by ours and at random, beyond the paper's budget, too; and with one
thing varied at a time. `summary` puts together what the searches found, `inputs` what claims are judged by.
"""

from merge_jax.study.recycling.bench import Pool as Pool
from merge_jax.study.recycling.cells import cells as cells
from merge_jax.study.recycling.inputs import inputs as inputs
from merge_jax.study.recycling.settings import Recycling as Recycling
from merge_jax.study.recycling.settings import read as read
from merge_jax.study.recycling.summary import summary as summary
