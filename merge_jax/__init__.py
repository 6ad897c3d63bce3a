"""merge_jax: merge models in JAX, and find the merge that is best.

`import merge_jax as mj` offers the operators; the rest is `from merge_jax import search`, ….
"""

from merge_jax.operators import AgreeingMean as AgreeingMean
from merge_jax.operators import Axes as Axes
from merge_jax.operators import Leaf as Leaf
from merge_jax.operators import Operator as Operator
from merge_jax.operators import Plan as Plan
from merge_jax.operators import Prepared as Prepared
from merge_jax.operators import Ranked as Ranked
from merge_jax.operators import TaskVector as TaskVector
from merge_jax.operators import Total as Total
from merge_jax.operators import WeightedSum as WeightedSum
from merge_jax.operators import Weights as Weights
from merge_jax.operators import combine as combine
from merge_jax.operators import dare_linear as dare_linear
from merge_jax.operators import dare_ties as dare_ties
from merge_jax.operators import drop as drop
from merge_jax.operators import linear as linear
from merge_jax.operators import merge as merge
from merge_jax.operators import plan as plan
from merge_jax.operators import prepare as prepare
from merge_jax.operators import route as route
from merge_jax.operators import slerp as slerp
from merge_jax.operators import task_arithmetic as task_arithmetic
from merge_jax.operators import ties as ties
from merge_jax.operators import trim as trim
from merge_jax.operators import uniform as uniform

__version__ = "0.2.0"
