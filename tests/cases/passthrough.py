"""One model, times a number."""

from merge_jax.operators.contrib.passthrough import passthrough
from tests.cases.common import Case, wide


def np_passthrough(experts, base, weights, scale):
  (model,) = experts
  return {name: scale * value for name, value in wide(model).items()}


CASES = {
  "passthrough": Case(passthrough(), lambda e, b, w: np_passthrough(e, b, w, 1.0), count=1),
  "passthrough_scaled": Case(
    passthrough(0.3), lambda e, b, w: np_passthrough(e, b, w, 0.3), count=1, equal=None
  ),
}
