"""Stacks of matrices: decompositions, the same numbers and gradients as at once, an inverse, and no standing still with
as many devices as threads."""

from __future__ import annotations

import functools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base import linalg

ROOT = pathlib.Path(__file__).parents[2]

PROGRAM = """
import os
os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}'
import jax, jax.numpy as jnp, numpy as np
from ftlib.base import linalg

whole = jax.sharding.NamedSharding(jax.make_mesh((jax.device_count(),), ('x',)), jax.sharding.PartitionSpec())
qr, eigh, solve = (lambda x: jnp.linalg.qr(x)[0]), (lambda x: jnp.linalg.eigh(x)[1]), jnp.linalg.solve

def loss(x):
  def body(c, i):
    y = x + c
    total = sum(linalg.each(f, *args).mean() for f, args in ((qr, [y]), (eigh, [y]), (solve, [y, y + i])))
    return c + total * 1e-6, total
  return jax.lax.scan(body, jnp.float32(0), jnp.arange(6.0))[1].sum()

x = np.random.RandomState(0).randn(12, 32, 32).astype(np.float32) + 20 * np.eye(32, dtype=np.float32)
step = jax.jit(jax.grad(loss), in_shardings=whole, out_shardings=whole)
for _ in range(20):
  y = step(jax.device_put((x + np.swapaxes(x, 1, 2)) / 2, whole))
print('done', bool(jnp.isfinite(jax.block_until_ready(y)).all()))
"""


@pytest.mark.parametrize('lead', [(), (3,), (2, 3)])
def test_results_and_gradients_are_those_of_the_whole_stack(lead):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(*lead, 4, 4)).astype(np.float32)) + 4 * jnp.eye(4)
  for decompose, args in (
    (jnp.linalg.solve, (x, x.mT)),
    (jnp.linalg.qr, (x,)),
    (functools.partial(jnp.linalg.svd, full_matrices=False), (x,)),
    (jnp.linalg.eigh, (x + x.mT,)),
  ):
    got, wanted = linalg.each(decompose, *args), decompose(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), tuple(got), tuple(wanted))
  total = lambda fn: jax.grad(lambda x: (fn(x, x.mT) ** 2).sum())(x)  # noqa: E731
  np.testing.assert_allclose(
    total(functools.partial(linalg.each, jnp.linalg.solve)), total(jnp.linalg.solve), rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize('scale', [0.0, 1e-3, 0.1, 1.0, 30.0])
def test_the_inverse_of_one_and_a_skew_symmetric_matrix(scale):
  """Against NumPy in float64: values, both kinds of derivatives, and rotations that stay rotations."""
  q = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32) * np.float32(scale)
  q = jnp.asarray(q - np.swapaxes(q, 1, 2))
  wanted = np.linalg.inv(np.eye(8) + np.asarray(q, np.float64))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  close(linalg.skew_inverse(q), wanted)
  if not scale:
    np.testing.assert_array_equal(linalg.skew_inverse(q), wanted)
  r = 2 * linalg.skew_inverse(q) - jnp.eye(8)
  close(r @ r.mT, np.broadcast_to(np.eye(8), r.shape))
  total = lambda fn: lambda q: (fn(q) ** 3).sum()  # noqa: E731
  plain = lambda q: jnp.linalg.inv(jnp.eye(8) + q)  # noqa: E731
  np.testing.assert_allclose(jax.grad(total(linalg.skew_inverse))(q), jax.grad(total(plain))(q), rtol=1e-4, atol=2e-5)
  curved = lambda fn: jax.jvp(jax.grad(total(fn)), (q,), (jnp.cos(q),))[1]  # noqa: E731
  np.testing.assert_allclose(curved(linalg.skew_inverse), curved(plain), rtol=1e-3, atol=1e-4)


def test_a_scan_on_every_core_ends():
  """With the stack at once this program stands still on jaxlib 0.10 where devices are as many as cores."""
  ended = subprocess.run([sys.executable, '-c', PROGRAM], capture_output=True, text=True, timeout=200, cwd=ROOT)
  assert ended.stdout.strip() == 'done True', ended.stderr[-2000:]
