"""What merging is: pure functions on parameter trees. Imports jax and numpy alone."""

from merge_jax.operators.core import Leaf as Leaf
from merge_jax.operators.core import Operator as Operator
from merge_jax.operators.core import Ranked as Ranked
from merge_jax.operators.core import Total as Total
from merge_jax.operators.core import Weights as Weights
from merge_jax.operators.core import route as route
from merge_jax.operators.lifting import Prepared as Prepared
from merge_jax.operators.lifting import combine as combine
from merge_jax.operators.lifting import merge as merge
from merge_jax.operators.lifting import prepare as prepare
from merge_jax.operators.linear import linear as linear
from merge_jax.operators.linear import slerp as slerp
from merge_jax.operators.linear import uniform as uniform
from merge_jax.operators.naming import Axes as Axes
from merge_jax.operators.planning import Plan as Plan
from merge_jax.operators.planning import plan as plan
from merge_jax.operators.reduce import AgreeingMean as AgreeingMean
from merge_jax.operators.reduce import WeightedSum as WeightedSum
from merge_jax.operators.sparsify import drop as drop
from merge_jax.operators.sparsify import trim as trim
from merge_jax.operators.task_vector import TaskVector as TaskVector
from merge_jax.operators.task_vector import dare_linear as dare_linear
from merge_jax.operators.task_vector import dare_ties as dare_ties
from merge_jax.operators.task_vector import task_arithmetic as task_arithmetic
from merge_jax.operators.task_vector import ties as ties
