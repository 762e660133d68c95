"""Times ftlib's own training steps on demand, under the protocol of `torch_speed.py`.

  python benchmarks/peers/ftlib_speed.py --config configs/classify.py:data=DIR,method=lora --set train.max_length=128

A run is built from a config like any other: its own tokens, order, buckets and compiled step. Before `ready` one step
of each length is compiled. `go N` times N steps with their batches made beforehand, as the peer's are; `checkpoint`
times saving and restoring the state.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time

from ftlib import cli  # noqa: F401 - sets the environment before JAX is imported

import jax  # isort: skip

from ftlib import config_file
from ftlib import run as runs
from ftlib.io.checkpoint import Checkpoints
from ftlib.train.state import TrainState, storable


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', required=True)
  parser.add_argument('--set', nargs='*', default=[], metavar='FIELD=VALUE')
  args = parser.parse_args()
  with contextlib.redirect_stdout(sys.stderr):
    began = time.perf_counter()
    run = runs.build(config_file.load(args.config, [tuple(s.split('=', 1)) for s in args.set]))
    built = time.perf_counter()
    trainable, frozen = run.load()
    state = jax.block_until_ready(run.start(trainable, frozen))
    loaded = time.perf_counter()
    seen: set[int] = set()
    done = 0
    while len(seen) < len(run.edges) and done < 400:  # one step of each length: nothing is compiled while timed
      _, batch, _ = run.batch(done)
      if batch['tokens'].shape[1] not in seen:
        seen.add(batch['tokens'].shape[1])
        state, sums = run.train_step(state, frozen, batch)
      done += 1
    jax.block_until_ready(state.trainable)
  compiling = run.train_step.seconds
  parts = {'data': built - began, 'load': loaded - built, 'compile': compiling}
  parts['step'] = time.perf_counter() - loaded - compiling
  print('ready', json.dumps({'compile_seconds': compiling, 'lengths': sorted(seen), 'seconds': parts}), flush=True)
  done = 0
  for line in sys.stdin:
    words = line.split()
    if words[:1] == ['quit']:
      return
    if words[:1] == ['checkpoint']:
      print(json.dumps(checkpoint_cost(run, state)), flush=True)
      continue
    steps = int(words[1])
    chosen = [run.batch(done + i) for i in range(steps)]
    jax.block_until_ready([b for _, b, _ in chosen])
    start = time.perf_counter()
    for _, batch, _ in chosen:
      state, sums = run.train_step(state, frozen, batch)
    jax.block_until_ready(state.trainable)
    seconds = time.perf_counter() - start
    done += steps
    loss = float(sums['loss'][0] / sums['loss'][1])
    tokens = sum(t for _, _, t in chosen)
    print(json.dumps({'seconds': seconds, 'steps': steps, 'tokens': tokens, 'loss': loss}), flush=True)


def checkpoint_cost(run: runs.Run, state: TrainState) -> dict[str, float]:
  """Seconds until `save` returns, until it is committed, and of a verified restore; bytes on disk."""
  with tempfile.TemporaryDirectory() as folder, Checkpoints(f'{folder}/checkpoints') as checkpoints:
    began = time.perf_counter()
    checkpoints.save(1, storable(state), {})
    returned = time.perf_counter() - began
    checkpoints.wait()
    committed = time.perf_counter() - began
    began = time.perf_counter()
    jax.block_until_ready(checkpoints.restore(storable(run.abstract_state)).state)
    restored = time.perf_counter() - began
    return {'returned': returned, 'committed': committed, 'restored': restored, 'bytes': checkpoints.size(1)}


if __name__ == '__main__':
  main()
