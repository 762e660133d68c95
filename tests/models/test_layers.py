"""The product with a kernel: its gradients, what its backward pass multiplies, and what it keeps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.models.layers import contract
from tests.contract import flops

SHAPES = {'wider': ((6,), (4, 5)), 'narrower': ((4, 5), (6,)), 'flat': ((8,), (8,))}


def case(ins, outs):
  keys = jax.random.split(jax.random.key(0), 3)
  return [jax.random.normal(k, s) for k, s in zip(keys, ((2, 3, *ins), (*ins, *outs), (2, 3, *outs)), strict=True)]


def products(fn, *args) -> list[tuple]:
  """Shapes (left, right, result) of the matrix products of `fn`."""
  found = flops.products(jax.make_jaxpr(fn)(*args).jaxpr)
  return [tuple(v.aval.shape for v in (*eqn.invars, *eqn.outvars)) for eqn, _ in found]


@pytest.mark.parametrize('name', SHAPES)
def test_a_product_and_its_gradients_are_the_plain_ones(name):
  ins, outs = SHAPES[name]
  x, kernel, g = case(ins, outs)

  def plain(x, kernel):
    return jnp.tensordot(x, kernel, len(ins))

  ours, pull = jax.vjp(lambda x, k: contract(x, k, len(ins)), x, kernel)
  wanted, pull_plain = jax.vjp(plain, x, kernel)
  np.testing.assert_allclose(ours, wanted, rtol=1e-6, atol=1e-6)
  for a, b in zip(pull(g), pull_plain(g), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  second = lambda fn: jax.grad(lambda x, k: (jax.grad(lambda k: (fn(x, k) ** 3).sum())(k) ** 2).sum(), (0, 1))  # noqa: E731
  for a, b in zip(second(lambda x, k: contract(x, k, len(ins)))(x, kernel), second(plain)(x, kernel), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize('name', ['wider', 'narrower'])
def test_the_narrower_side_of_the_gradient_is_the_left_one(name):
  ins, outs = SHAPES[name]
  x, kernel, g = case(ins, outs)
  found = products(jax.grad(lambda k: (contract(x, k, len(ins)) * g).sum()), kernel)
  assert (2, 3, 6) in [left for left, *_ in found[1:]], found  # before the second there is the forward product
  assert jax.eval_shape(jax.grad(lambda k: contract(x, k, len(ins)).sum()), kernel).shape == (*ins, *outs)


def test_what_is_frozen_is_neither_kept_nor_multiplied():
  x, kernel, g = case((6,), (4, 5))
  _, pull = jax.vjp(lambda x: contract(x, kernel, 1), x)
  assert x.shape not in [a.shape for a in jax.tree.leaves(pull)]
  assert kernel.shape in [a.shape for a in jax.tree.leaves(pull)]
  assert [r for *_, r in products(pull, g)] == [x.shape]
  _, pull = jax.vjp(lambda k: contract(x, k, 1), kernel)
  assert kernel.shape not in [a.shape for a in jax.tree.leaves(pull)]


def test_a_kernel_gets_a_gradient_of_its_own_dtype():
  x, kernel, _ = case((6,), (4, 5))
  y, pull = jax.vjp(lambda k: contract(x.astype(jnp.bfloat16), k, 1), kernel)
  assert y.dtype == jnp.bfloat16
  assert pull(jnp.ones_like(y))[0].dtype == jnp.float32
