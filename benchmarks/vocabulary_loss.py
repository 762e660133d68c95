"""The loss over a vocabulary in chunks beside the plain one: python benchmarks/vocabulary_loss.py [--vocabulary=49152]

Value and gradients of the mean cross-entropy of hidden states and a tied table (`--frozen`: of hidden states alone, as
LoRA wants them), float32, one after the other in turns in one process: the plain loss, which holds the logits of all
positions, and `ftlib/objectives/vocabulary.py: nll_sum` with the chunk that training takes. The targets: at most a
tenth of the memory, by the compiler's own analysis, and 1.05 of the time. By default the sizes are those of SmolLM2 on
4 x 512 tokens. Results are kept in benchmarks/results/vocabulary_loss.json, a row a setting. On a quiet machine only.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from ftlib import cli  # noqa: E402, F401, I001 - sets the environment before JAX is imported

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from ftlib.io import workdir  # noqa: E402
from ftlib.objectives import language  # noqa: E402
from ftlib.objectives.vocabulary import nll_sum  # noqa: E402
from ftlib.optimizer_trial import alternated  # noqa: E402

ROWS, LENGTH = 4, 512


class Loss:
  """Compiled value and gradients of one of the two."""

  def __init__(self, chunked: bool, args: argparse.Namespace):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (ROWS, LENGTH, args.width))
    table = 0.02 * jax.random.normal(keys[1], (args.vocabulary, args.width))
    targets = jax.random.randint(keys[2], (ROWS, LENGTH), 0, args.vocabulary)
    weights = jnp.ones((ROWS, LENGTH))

    def plain(hidden: jax.Array, table: jax.Array) -> jax.Array:
      logits = hidden @ table.T
      own = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
      return (jax.nn.logsumexp(logits, -1) - own).mean()

    def pieces(hidden: jax.Array, table: jax.Array) -> jax.Array:
      return nll_sum(lambda h: h @ table.T, hidden, targets, weights, chunk=args.chunk)[0] / weights.size

    own = (0,) if args.frozen else (0, 1)
    fn = jax.jit(jax.value_and_grad(pieces if chunked else plain, argnums=own))
    self._args, self._fn = (hidden, table), fn.lower(hidden, table).compile()
    self.bytes = self._fn.memory_analysis().temp_size_in_bytes
    self.value = float(self._fn(*self._args)[0])

  def seconds(self) -> float:
    began = time.perf_counter()
    jax.block_until_ready(self._fn(*self._args))
    return time.perf_counter() - began


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--vocabulary', type=int, default=49_152)
  parser.add_argument('--width', type=int, default=576)
  parser.add_argument('--chunk', type=int, default=language.Config.chunk, help='positions with logits at once')
  parser.add_argument('--frozen', action='store_true', help='the table does not train')
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--output', type=pathlib.Path, default=HERE / 'results' / 'vocabulary_loss.json')
  args = parser.parse_args()
  ours, plain = Loss(True, args), Loss(False, args)
  ratio, spent = alternated(ours, plain, rounds=args.rounds, seconds=600.0)
  setting = {'vocabulary': args.vocabulary, 'width': args.width, 'chunk': args.chunk, 'frozen': args.frozen}
  row = {
    **setting,
    'time': round(ratio, 3),
    'seconds': round(spent, 3),
    'memory': round(ours.bytes / plain.bytes, 4),
    'bytes': ours.bytes,
    'apart': abs(ours.value - plain.value) / plain.value,
  }
  print(
    f'vocabulary {args.vocabulary:,}, table {"frozen" if args.frozen else "trains"}, chunk {args.chunk}: '
    f'{row["time"]:.2f} of the time ({spent:.2f} s), {row["memory"]:.1%} of the memory, values {row["apart"]:.1e} apart'
  )
  kept = json.loads(args.output.read_text())['rows'] if args.output.exists() else []
  kept = [r for r in kept if any(r[k] != v for k, v in setting.items())]
  workdir.write_json(args.output, {'rows': [*kept, row], 'environment': workdir.measured_on()})


if __name__ == '__main__':
  main()
