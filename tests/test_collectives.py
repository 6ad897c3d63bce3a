"""Collectives of compiled programs: as XLA prints them for CPUs, GPUs and TPUs, and of a real program."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from merge_jax.collectives import Collective, by_kind, collectives, size_of

GROUPS = "channel_id=1, replica_groups={{0,1},{2,3}}, use_global_device_ids=true"


def program(*lines, more=""):
  body = "\n".join(f"  {line}" for line in lines)
  return (
    f"HloModule jit_f, is_scheduled=true\n{more}\nENTRY %main.7 (x: f32[2,16]) -> f32[2,16] {{\n{body}\n}}"
  )


@pytest.mark.parametrize(
  ("lines", "found"),
  [
    (
      [f"%ag = bf16[8,4]{{1,0:T(8,128)(2,1)}} all-gather(%x), {GROUPS}, dimensions={{0}}"],
      [("all-gather", 64)],
    ),
    (
      [f"ROOT %ar.1 = (f32[3]{{0}}, /*index=1*/u32[], pred[5]{{0}}) all-reduce(%a, %b, %c), {GROUPS}"],
      [("all-reduce", 21)],
    ),
    (
      [
        f"%s = (f32[2]{{0}}, f32[16]{{0}}) all-gather-start(%x), {GROUPS}, dimensions={{0}}",
        "%d = f32[16]{0} all-gather-done(%s)",
      ],
      [("all-gather", 64)],
    ),
    (
      [
        "%s = (s64[2]{0}, s64[2]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}",
        "%d = s64[2]{0:S(1)} collective-permute-done(%s)",
      ],
      [("collective-permute", 16)],
    ),
    ([f"reduce-scatter.3 = f8e4m3fn[7]{{0}} reduce-scatter(x), {GROUPS}"], [("reduce-scatter", 7)]),
    ([f"%a = (f16[1,4]{{1,0}}, f16[1,4]{{1,0}}) all-to-all(%x, %y), {GROUPS}"], [("all-to-all", 16)]),
    (["%r = f32[<=8]{0} ragged-all-to-all(%x)", "%b = c64[2] collective-broadcast(%x)"],
     [("ragged-all-to-all", 32), ("collective-broadcast", 16)]),
    (['%f = f32[64]{0} fusion(%x), kind=kLoop, metadata={op_name="jit(f)/all-gather(y)"}'], []),
  ],
)  # fmt: skip
def test_kinds_and_bytes(lines, found):
  assert collectives(program(*lines)) == [Collective(*one) for one in found]


LOOP = """
%inner (p: f32[4]) -> f32[4] {
  %sum = f32[4]{0} all-reduce(%p), to_apply=%add
}
%test (p: f32[4]) -> pred[] {
  %any = pred[] all-reduce(%p), to_apply=%or
}
%outer (p: f32[4]) -> f32[4] {
  %w = f32[4]{0} while(%p), condition=%less, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
}
%wrapped (p: f32[4]) -> f32[8] {
  ROOT %g = f32[8]{0} all-gather(%p), dimensions={0}
}
"""


def test_loops_branches_and_calls():
  lines = (
    '%a = f32[4]{0} while(%x), condition=%test, body=%outer, backend_config={"known_trip_count":{"n":"5"}}',
    "%b = f32[4]{0} while(%a), condition=%test, body=%inner",
    "%c = f32[4]{0} conditional(%i, %a, %b), branch_computations={%inner, %inner}",
    "%d = ((f32[4]{0}), f32[8]{0}, s32[]) async-start(%c), calls=%wrapped",
    "%e = f32[8]{0} async-done(%d)",
  )
  found = collectives(program(*lines, more=LOOP))
  assert found == [
    Collective("all-reduce", 1, 6),
    Collective("all-reduce", 16, 15),
    Collective("all-reduce", 1, 1, exact=False),
    Collective("all-reduce", 16, 1, exact=False),
    Collective("all-reduce", 16),
    Collective("all-reduce", 16),
    Collective("all-gather", 32),
  ]
  assert by_kind(found) == {"all-reduce": (25, 295), "all-gather": (1, 32)}


@pytest.mark.parametrize(
  ("shape", "size"),
  [("s4[3]{0:E(4)}", 2), ("u64[]", 8), ("f4e2m1fn[8]", 4), ("(f8e8m0fnu[2], bf16[2,0])", 2), ("token[]", 0)],
)
def test_sizes(shape, size):
  assert size_of(shape) == size


def test_a_real_program():
  mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
  spec = jax.ShapeDtypeStruct((16, 16), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))

  def run(x):
    x = jax.lax.fori_loop(0, 10, lambda _, x: x / jnp.sum(x), x)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))

  found = collectives(jax.jit(run).lower(spec).compile())
  assert by_kind(found) == {"all-reduce": (10, 40), "all-gather": (1, 1024)}


def test_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match="no ENTRY computation"):
    collectives("module @jit_f {}")
