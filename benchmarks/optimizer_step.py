"""The cost of an optimizer's update: python benchmarks/optimizer_step.py [--optimizers=A,B] [--parameters=100000000]

The time of an update of 100 million parameters over that of a hand-fused adamw, one jitted tree-map that does nothing
but Adam's formula, in turns in one process; the target for ftlib's adamw is 1.15. Times are means of 10 or 20 steps:
what soap and sophia do every 10 steps is in them, galore's decomposition every 200 is not. Beside it the bytes of
state, by shapes, and what they are in theory, which must agree. No clipping, decay 0.01 on matrices; an optimizer that
evaluates the loss again (sam, sophia, l-bfgs) gets one that costs next to nothing.

The parameters are those of a 12-layer encoder, layers stacked, as wide as the number asks for. Results are kept in
benchmarks/results/optimizer_step.json, a row an optimizer. On a quiet machine only.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from ftlib import cli  # noqa: E402, F401, I001 - sets the environment before JAX is imported

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from ftlib.base import lookup, settings, trees  # noqa: E402
from ftlib.base.types import ParamInfo, Params  # noqa: E402
from ftlib.optim import chain  # noqa: E402
from ftlib.optimizer_trial import Updates, alternated, filled  # noqa: E402

TARGET = 1.15
RATE, B1, B2, EPS, DECAY = 1e-3, 0.9, 0.999, 1e-8, 0.01
Info = dict[str, ParamInfo]
KEPT = {  # float32 numbers of state a parameter: what keeps so many; others are in `theory`
  1: ('sgd', 'lion', 'rmsprop', 'adagrad', 'schedule_free_sgd'),
  2: ('adam', 'adamw', 'nadamw', 'radam', 'lamb', 'adopt', 'adadelta', 'sophia', 'sam', 'schedule_free_adamw'),
  3: ('ademamix', 'mars', 'dadapt_adamw', 'lookahead'),
  4: ('adan', 'prodigy'),
  23: ('lbfgs',),  # 10 pairs, and three more
}
NUMBERS = {name: count for count, names in KEPT.items() for name in names}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--optimizers', default='adamw,' + ','.join(n for n in lookup.names('optim') if n != 'adamw'))
  parser.add_argument('--parameters', type=int, default=100_000_000)
  parser.add_argument('--rounds', type=int, default=20)
  parser.add_argument('--seconds', type=float, default=120.0, help='the most for an optimizer, but 10 rounds')
  parser.add_argument('--output', type=pathlib.Path, default=HERE / 'results' / 'optimizer_step.json')
  args = parser.parse_args()
  info = parameters(args.parameters)
  rows = {r['optimizer']: r for r in json.loads(args.output.read_text())} if args.output.exists() else {}
  for name in args.optimizers.split(','):
    row = measured(name, info, rounds=args.rounds, seconds=args.seconds)
    rows[name] = row
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(list(rows.values()), indent=1) + '\n')
    print(said(row), flush=True)


def parameters(count: int) -> Info:
  """About `count` of them: 12 layers of width d with 12 d^2 each, and a table of 40 d words."""
  d = max(8, 8 * round(math.sqrt(count / 184) / 8))
  shapes = {
    'embed/words/table': (('vocab', 'embed'), (40 * d, d)),
    **{f'layers/0:12/attn/{n}/kernel': (('layers', 'embed', 'embed_out'), (12, d, d)) for n in 'qkvo'},
    **{f'layers/0:12/attn/{n}/bias': (('layers', 'embed_out'), (12, d)) for n in 'qkvo'},
    'layers/0:12/mlp/down/kernel': (('layers', 'mlp', 'embed'), (12, 4 * d, d)),
    'layers/0:12/mlp/up/bias': (('layers', 'mlp'), (12, 4 * d)),
    'layers/0:12/mlp/up/kernel': (('layers', 'embed', 'mlp'), (12, d, 4 * d)),
    'layers/0:12/norm/scale': (('layers', 'embed'), (12, d)),
  }
  return {n: ParamInfo(shape, jnp.float32, axes) for n, (axes, shape) in shapes.items()}


def optimizer(name: str, info: Info) -> chain.Optimizer:
  """An optimizer of ftlib at a constant rate, without clipping."""
  module = lookup.component('optim', name, field='--optimizers')
  shared = {'schedule': 'constant', 'warmup': 0.0, 'clip_norm': 0.0, 'weight_decay': DECAY, 'learning_rate': RATE}
  return chain.build(module, settings.read(chain.config_of(module), shared, where='optim'), info, steps=1000)


class Fused:
  """adamw by hand: `seconds()` of one update in place."""

  def __init__(self, info: Info):
    self.params, self._grads = filled(info), filled(info, seed=1)
    zeros = lambda: jax.tree.map(jnp.zeros_like, self.params)  # noqa: E731
    self._state = jnp.zeros((), jnp.int32), zeros(), zeros()
    self._step = jax.jit(fused, donate_argnums=(0, 1))

  def seconds(self) -> float:
    began = time.perf_counter()
    self.params, self._state = jax.block_until_ready(self._step(self.params, self._state, self._grads))
    return time.perf_counter() - began


def fused(params: Params, state: Any, grads: Params) -> tuple[Params, Any]:
  """One step of adamw (Loshchilov & Hutter 2019, algorithm 2) as one loop over each leaf."""
  count = state[0] + 1
  c1, c2 = 1 - B1 ** count.astype(jnp.float32), 1 - B2 ** count.astype(jnp.float32)

  def leaf(name: str, p: jax.Array, m: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
    m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
    decay = 0.0 if name.endswith(('bias', 'scale')) else DECAY
    return p - RATE * (m / c1 / (jnp.sqrt(v / c2) + EPS) + decay * p), m, v

  flat = trees.flatten(trees.map_named(leaf, params, *state[1:], grads))
  part = lambda i: trees.unflatten({n: x[i] for n, x in flat.items()})  # noqa: E731
  return part(0), (count, part(1), part(2))


def theory(name: str, info: Info) -> float | None:
  """Bytes of state that the paper's algorithm keeps, without scalars; None for optimizers from outside."""
  size = sum(i.size for i in info.values())
  matrices = {n: i.shape for n, i in info.items() if n.startswith('layers/') and n.endswith('kernel')}
  inside = sum(math.prod(s) for s in matrices.values())
  over = lambda number: sum(s[0] * number(min(s[1:]), max(s[1:])) for s in matrices.values())  # noqa: E731
  if name in NUMBERS:
    return 4.0 * NUMBERS[name] * size
  special: dict[str, Callable[[], float]] = {
    'muon': lambda: 4 * inside + 8 * (size - inside),
    'soap': lambda: 8 * size + 4 * over(lambda m, n: 2 * (m * m + n * n)),
    'galore': lambda: 4 * over(lambda m, n: 8 * (m + 2 * n)) + 8 * (size - inside),
    'adafactor': lambda: 4 * sum(_factored(i) for i in info.values()),
    'adam8bit': lambda: sum(_blocks(i) for i in info.values()),
  }
  return float(special[name]()) if name in special else None


def _factored(i: ParamInfo) -> int:
  stack = i.shape[0] if i.axes[0] == 'layers' else 1
  dims = i.shape[i.axes[0] == 'layers' :]
  return stack * sum(dims) if len(dims) == 2 and min(dims) >= 128 else i.size


def _blocks(i: ParamInfo) -> float:
  stack = i.shape[0] if i.axes[0] == 'layers' else 1
  one = i.size // stack
  return stack * 2 * (one + 4 * math.ceil(one / 256)) if one >= 4096 else 8 * i.size


def measured(name: str, info: Info, *, rounds: int, seconds: float) -> dict[str, Any]:
  """The row of an optimizer."""
  tx = optimizer(name, info).tx
  shapes = trees.unflatten({n: jax.ShapeDtypeStruct(i.shape, i.dtype) for n, i in info.items()})
  state, wanted = trees.nbytes(jax.eval_shape(tx.init, shapes)), theory(name, info)
  ratio, spent = alternated(Updates(tx, info), Fused(info), rounds=rounds, seconds=seconds)
  return {
    'optimizer': name,
    'parameters': trees.size(shapes),
    'seconds': round(spent, 5),
    'over_fused_adamw': round(ratio, 3),
    'state_bytes': state,
    'state_bytes_in_theory': wanted,
    'agrees': wanted is None or abs(state - wanted) <= 256,  # scalars: counts, estimates
  }


def said(row: dict[str, Any]) -> str:
  """A line for the terminal."""
  late = f'  (target {TARGET})' if row['optimizer'] == 'adamw' else ''
  agrees = '' if row['agrees'] else f'  NOT the {row["state_bytes_in_theory"]:.0f} bytes of theory'
  per = row['state_bytes'] / row['parameters']
  time_ = f'{row["seconds"]:.3f} s, {row["over_fused_adamw"]:.2f} x a hand-fused adamw'
  return f'{row["optimizer"]:20} {time_}; {per:.2f} bytes a parameter{agrees}{late}'


if __name__ == '__main__':
  main()
