import functools

import jax
import jax.numpy as jnp
import pytest

from nvae_jax.parallel import batch_sharding, make_mesh, replicated
from nvae_jax.tools.hlo import traffic

ROUNDS, SIZE = 7, 64


def compiled_loop():
    """Rounds of a product with a matrix, each with a sum over eight devices."""
    mesh = make_mesh()

    def step(x, w):
        y = jnp.tanh(x @ w)
        return x + y.sum(0), None

    @functools.partial(
        jax.jit, in_shardings=(batch_sharding(mesh), replicated(mesh)), out_shardings=None
    )
    def program(x, w):
        return jax.lax.scan(step, x, w)[0]

    x = jax.ShapeDtypeStruct((16, SIZE), jnp.float32)
    return program.lower(x, jax.ShapeDtypeStruct((ROUNDS, SIZE, SIZE), jnp.float32)).compile()


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    moved = traffic(compiled_loop().as_text())
    assert moved.collectives == {"all-reduce": ROUNDS}
    assert moved.collective_bytes == {"all-reduce": ROUNDS * 4 * SIZE}
    # Each round reads one matrix at least, from the stack of all.
    assert moved.bytes >= ROUNDS * 4 * SIZE * SIZE


# As the TPU compiler prints it: no number of rounds, layouts with parentheses, fast memory S(1).
TPU_LOOP = """
HloModule jit_f, is_scheduled=true

%body.3 (p.1: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %gte.1 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p.1), index=1
  %copy.1 = f32[8,128]{1,0:T(8,128)S(1)} copy(%gte.1)
  %ag.1 = (f32[8,128]{1,0:T(8,128)S(1)}, f32[16,128]{1,0:T(8,128)}) all-gather-start(%copy.1)
  %ag.2 = f32[16,128]{1,0:T(8,128)} all-gather-done(%ag.1)
  ROOT %t.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%gte.1, %gte.1)
}

%condition.4 (p.2: (s32[], f32[8,128])) -> pred[] {
  %p.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  %limit = s32[]{:T(128)} constant(36)
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}

ENTRY %main.5 (x: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %x = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  ROOT %w = (s32[], f32[8,128]{1,0}) while(%x), condition=%condition.4, body=%body.3
}
"""


def test_loops_of_the_tpu_compiler_run_to_their_counters_limit():
    moved = traffic(TPU_LOOP)
    assert moved.collectives == {"all-gather": 36}
    assert moved.collective_bytes == {"all-gather": 36 * 4 * 16 * 128}


def test_values_in_fast_memory_are_no_traffic():
    # A round's copy reads one array of main memory; gather and its end touch the gathered one.
    one, gathered, compare = 4 * 8 * 128, 4 * 16 * 128, 4 + 4 + 1
    done = 2 * gathered  # the end names it as its operand's second part, and as its result
    expected = 36 * (one + gathered + done) + 36 * compare
    assert traffic(TPU_LOOP).bytes == pytest.approx(expected, rel=0.01)
