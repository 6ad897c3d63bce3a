"""Mixtures of experts: no token is dropped, whatever the gate says and wherever its rows lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merge_jax import models, sharding
from merge_jax.models.mixture import mixture
from tests.golden import cases

EXPERTS, HIDDEN = 5, 4
MATRICES = np.random.default_rng(0).normal(size=(EXPERTS, HIDDEN, HIDDEN))
GATES = {
  "random": lambda tokens: np.argsort(np.random.default_rng(1).random((tokens, EXPERTS)))[:, :2],
  "all to two": lambda tokens: np.tile([4, 1], (tokens, 1)),
  "one expert each": lambda tokens: np.arange(tokens)[:, None] % EXPERTS,
}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("tokens", [1, 7, 200])
def test_every_token_gets_its_experts(gate, tokens):
  generator = np.random.default_rng(2)
  x, chosen = generator.normal(size=(tokens, HIDDEN)), GATES[gate](tokens)
  shares = generator.random(chosen.shape)
  expected = sum(
    shares[:, j, None] * np.einsum("nh,nho->no", x, MATRICES[chosen[:, j]]) for j in range(chosen.shape[1])
  )
  matrices = jnp.asarray(MATRICES, jnp.float32)

  def run(x, matrices, shares):
    return mixture(x, jnp.asarray(chosen, jnp.int32), shares, EXPERTS, lambda e, x: x @ matrices[e])

  args = (jnp.asarray(x, jnp.float32), matrices, jnp.asarray(shares, jnp.float32))
  np.testing.assert_allclose(jax.jit(run)(*args), expected, atol=1e-5)
  found = jax.jit(jax.grad(lambda *a: jnp.sum(run(*a) ** 2), argnums=(0, 1, 2)))(*args)

  def dense(x, matrices, shares):
    each = jnp.einsum("nh,nkho->nko", x, matrices[chosen])
    return jnp.sum((shares[..., None] * each).sum(1) ** 2)

  for one, other in zip(found, jax.jit(jax.grad(dense, argnums=(0, 1, 2)))(*args), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_experts_of_a_mesh_work_on_the_rows_they_have():
  model = models.build(cases.config_of("mixtral") | {"num_hidden_layers": 1})
  params = {
    n: jnp.asarray(x) for n, x in cases.parameters({n: s.shape for n, s in model.specs.items()}).items()
  }
  tokens = jnp.asarray(np.tile(cases.TOKENS[:, :12], (2, 1)))
  loss = jax.jit(jax.value_and_grad(lambda p: jnp.sum(model.apply(p, tokens) ** 2)))
  expected, gradient = loss(params)
  mesh = sharding.make_mesh("data:2,fsdp:2,tensor:2")
  with jax.set_mesh(mesh):
    found, of_mesh = loss(jax.device_put(params, sharding.shardings(model.specs, mesh)))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  for name, value in gradient.items():
    scale = float(jnp.abs(value).max())
    np.testing.assert_allclose(of_mesh[name], value, rtol=0, atol=1e-5 * scale, err_msg=name)


def test_experts_see_the_tokens_that_chose_them():
  """What Gram matrices are made of: zeros for all other tokens."""
  model = models.build(cases.config_of("qwen3_moe"))
  params = cases.parameters({n: s.shape for n, s in model.specs.items()})
  seen = model.inputs(params, jnp.asarray(cases.TOKENS))
  weights = {n for n, s in model.specs.items() if len(s.shape) == 2 and "embed_tokens" not in n}
  assert seen.keys() == weights
  used = jnp.stack([
    jnp.any(seen[f"model.layers.1.mlp.experts.{i}.gate_proj.weight"] != 0, axis=-1) for i in range(6)
  ])  # fmt: skip
  np.testing.assert_array_equal(used.sum(0), np.full(cases.TOKENS.shape, 3))
  x = seen["model.layers.1.mlp.gate.weight"]
  np.testing.assert_array_equal(
    seen["model.layers.1.mlp.experts.2.up_proj.weight"], jnp.where(used[2][..., None], x, 0)
  )


def test_layers_that_differ_are_not_stacked():
  config = cases.config_of("qwen3_moe") | {"num_hidden_layers": 8}
  assert models.build(config).stacks == {}
  assert models.build(config | {"mlp_only_layers": []}).stacks
