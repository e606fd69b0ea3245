import functools

import jax
import jax.numpy as jnp
import pytest

from nvae_jax.measuring.hlo import traffic
from nvae_jax.parallel import batch_sharding, make_mesh, replicated

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


# A round slices one stack, within a fusion that is nested, and updates another one in place.
STACKS = """
%inner.1 (p.1: f32[9,8,128], p.2: s32[]) -> f32[8,128] {
  %p.1 = f32[9,8,128]{2,1,0} parameter(0)
  %p.2 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %slice.1 = f32[1,8,128]{2,1,0} dynamic-slice(%p.1, %p.2, %zero.1, %zero.1), dynamic_slice_sizes={1,8,128}
  ROOT %bitcast.1 = f32[8,128]{1,0} bitcast(%slice.1)
}

%outer.2 (p.3: f32[9,8,128], p.4: f32[9,8,128], p.5: s32[]) -> (f32[9,8,128], f32[8,128]) {
  %p.3 = f32[9,8,128]{2,1,0} parameter(0)
  %p.4 = f32[9,8,128]{2,1,0} parameter(1)
  %p.5 = s32[] parameter(2)
  %zero.2 = s32[] constant(0)
  %read.2 = f32[8,128]{1,0} fusion(%p.3, %p.5), kind=kLoop, calls=%inner.1
  %row.2 = f32[1,8,128]{2,1,0} bitcast(%read.2)
  %update.2 = f32[9,8,128]{2,1,0} dynamic-update-slice(%p.4, %row.2, %p.5, %zero.2, %zero.2)
  ROOT %both.2 = (f32[9,8,128]{2,1,0}, f32[8,128]{1,0}) tuple(%update.2, %read.2)
}

ENTRY %main.3 (x: f32[9,8,128], y: f32[9,8,128], i: s32[]) -> (f32[9,8,128], f32[8,128]) {
  %x = f32[9,8,128]{2,1,0} parameter(0)
  %y = f32[9,8,128]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = (f32[9,8,128]{2,1,0}, f32[8,128]{1,0}) fusion(%x, %y, %i), kind=kLoop, calls=%outer.2
}
"""  # noqa: E501


def test_of_stacks_count_the_slices_that_are_read_and_the_updates_that_are_written():
    row, index = 4 * 8 * 128, 4
    assert traffic(STACKS).bytes == 3 * row + index


def test_the_same_without_fusions_and_of_whole_arrays():
    row, index = 4 * 8 * 128, 4
    text = """
ENTRY %main (x: f32[9,8,128], y: f32[1,8,128], i: s32[]) -> f32[9,8,128] {
  %x = f32[9,8,128]{2,1,0} parameter(0)
  %y = f32[1,8,128]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %s = f32[1,8,128]{2,1,0} dynamic-slice(%x, %i, %i, %i), dynamic_slice_sizes={1,8,128}
  %z = f32[1,8,128]{2,1,0} add(%s, %y)
  ROOT %u = f32[9,8,128]{2,1,0} dynamic-update-slice(%x, %z, %i, %i, %i)
}
"""
    # Slice: a row in, a row out; sum: two in, one out; update: a row in, a row out; six indices.
    assert traffic(text).bytes == (2 + 3 + 2) * row + 6 * index
    copied = text.replace("dynamic-update-slice(%x, %z, %i, %i, %i)", "copy(%x)")
    assert traffic(copied).bytes == (2 + 3 + 2 * 9) * row + 3 * index


def test_a_loop_moves_in_proportion_to_its_rounds():
    def moved(rounds):
        def program(x, w):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), x), x, w)

        x = jax.ShapeDtypeStruct((16, SIZE), jnp.float32)
        w = jax.ShapeDtypeStruct((rounds, SIZE, SIZE), jnp.float32)
        return traffic(jax.jit(program).lower(x, w).compile().as_text()).bytes

    few, more, most = map(moved, (8, 16, 24))
    assert most - more == pytest.approx(more - few, rel=0.01)
