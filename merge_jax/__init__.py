"""merge_jax: merge models in JAX, and find the merge that is best.

`import merge_jax as mj` offers the operators; the rest is `from merge_jax import search`, ….
"""

from merge_jax.operators import STATIC as STATIC
from merge_jax.operators import AgreeingMean as AgreeingMean
from merge_jax.operators import Axes as Axes
from merge_jax.operators import EnergyMean as EnergyMean
from merge_jax.operators import Leaf as Leaf
from merge_jax.operators import Mask as Mask
from merge_jax.operators import Operator as Operator
from merge_jax.operators import Plan as Plan
from merge_jax.operators import Prepared as Prepared
from merge_jax.operators import Ranked as Ranked
from merge_jax.operators import Ranks as Ranks
from merge_jax.operators import Reducer as Reducer
from merge_jax.operators import Sparsifier as Sparsifier
from merge_jax.operators import TaskVector as TaskVector
from merge_jax.operators import Total as Total
from merge_jax.operators import WeightedSum as WeightedSum
from merge_jax.operators import Weights as Weights
from merge_jax.operators import arcee_fusion as arcee_fusion
from merge_jax.operators import breadcrumbs as breadcrumbs
from merge_jax.operators import breadcrumbs_ties as breadcrumbs_ties
from merge_jax.operators import combine as combine
from merge_jax.operators import consensus as consensus
from merge_jax.operators import dare_linear as dare_linear
from merge_jax.operators import dare_ties as dare_ties
from merge_jax.operators import della as della
from merge_jax.operators import della_linear as della_linear
from merge_jax.operators import drop as drop
from merge_jax.operators import drop_by_magnitude as drop_by_magnitude
from merge_jax.operators import fisher as fisher
from merge_jax.operators import iso_c as iso_c
from merge_jax.operators import iso_cts as iso_cts
from merge_jax.operators import karcher as karcher
from merge_jax.operators import keep_variance as keep_variance
from merge_jax.operators import knots as knots
from merge_jax.operators import linear as linear
from merge_jax.operators import merge as merge
from merge_jax.operators import model_stock as model_stock
from merge_jax.operators import multislerp as multislerp
from merge_jax.operators import nearswap as nearswap
from merge_jax.operators import nuslerp as nuslerp
from merge_jax.operators import passthrough as passthrough
from merge_jax.operators import pcb as pcb
from merge_jax.operators import plan as plan
from merge_jax.operators import prepare as prepare
from merge_jax.operators import pytree as pytree
from merge_jax.operators import ram as ram
from merge_jax.operators import ram_plus as ram_plus
from merge_jax.operators import regmean as regmean
from merge_jax.operators import route as route
from merge_jax.operators import sce as sce
from merge_jax.operators import slerp as slerp
from merge_jax.operators import task_arithmetic as task_arithmetic
from merge_jax.operators import ties as ties
from merge_jax.operators import trim as trim
from merge_jax.operators import trim_outliers as trim_outliers
from merge_jax.operators import tsv as tsv
from merge_jax.operators import uniform as uniform
from merge_jax.operators import widen as widen

__version__ = "0.3.0"
