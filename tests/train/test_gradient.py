"""Gradients before the first step: many batches on devices that share parameters end."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from ftlib.train.gradient import mean_gradient

rows = jax.sharding.NamedSharding(jax.make_mesh((8,), ('x',)), jax.sharding.PartitionSpec('x'))
drawn = lambda seed, count: np.random.default_rng(seed).normal(size=(count, 64)).astype(np.float32) / 8
put = lambda seed, count: jax.device_put(drawn(seed, count), rows)
params = {f'w{i}': put(i, 64) for i in range(6)}

def apply(params, batch, key):
  x = batch['x']
  for i in range(6):
    x = jnp.tanh(x @ params[f'w{i}'])
  return x

loss = lambda model, batch, key: {'loss': (model(batch, None).sum(), jnp.float32(1))}
found = mean_gradient(apply, loss, params, list(params), [{'x': put(9, 8)}] * 300)
print('done', all(bool(jnp.isfinite(x).all()) for x in found.values()))
"""


def test_many_batches_on_eight_devices_end():
  """With all batches under way at once the devices of jaxlib 0.10 wait for each other's threads, and none goes on."""
  flags = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
  environment = {**os.environ, 'XLA_FLAGS': flags}
  ended = subprocess.run(
    [sys.executable, '-c', PROGRAM], capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment
  )
  assert ended.stdout.strip() == 'done True', ended.stderr[-2000:]
