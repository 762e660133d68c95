"""Short real runs: a config, three steps with dropout, decay and clipping on, and what came of each."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
from typing import Any

import jax
import numpy as np

from ftlib import run
from ftlib.base import lookup, trees
from ftlib.base.types import Flat, Params
from ftlib.models import stack
from ftlib.run import Run
from ftlib.train.state import TrainState
from tests import tiny

OUTSIDE = 'tests.outside.odd_lora'
METHODS = (*lookup.names('peft'), OUTSIDE)
MESH = 'data=4,fsdp=2'
STEPS = 3
BRISK = {'gradual': {'method__layers': 2, 'method__steps': 1}}  # methods that would wait longer than `STEPS` by default


@dataclasses.dataclass(frozen=True, repr=False)
class Short:
  """`run` after `STEPS` steps: `start`, `kept`, `frozen` on the host, and after each step trainable, moments and loss.

  `last` is the state on the mesh.
  """

  run: Run
  start: Flat
  kept: Params
  frozen: Params
  trainable: list[Flat]
  moments: list[Flat]
  losses: list[float]
  last: TrainState
  frozen_after: Params

  def params(self, step: int) -> Params:
    """All parameters after `step` steps (0: none yet), layers unstacked; `kept` as they were at first."""
    chosen = self.start if step == 0 else self.trainable[step - 1]
    return stack.unstack(trees.join(trees.unflatten(chosen), self.kept, self.frozen))


def shapes(built: Run) -> tuple[TrainState, Params]:
  """The abstract (state, frozen) of a run."""
  frozen = {
    n: jax.ShapeDtypeStruct(i.shape, i.dtype) for n, i in built.info.items() if not built.owns(trees.canonical(n))
  }
  return built.abstract_state, trees.unflatten(frozen)


def config(model: pathlib.Path, data: pathlib.Path, **values: Any):
  """Decay 0.1, clipping at 1, no warmup. A large epsilon: gradients that are zero but for rounding (those of a key's
  bias, to which softmax is blind) must not become steps of the learning rate in a random direction."""
  strict = {'optim__weight_decay': 0.1, 'optim__clip_norm': 1.0, 'optim__warmup': 0.0, 'optim__eps': 1e-3}
  brisk = BRISK.get(values.get('method', ''), {})
  return tiny.config(model, data, **{**strict, **brisk, **values})


def take(model: pathlib.Path, data: pathlib.Path, **values: Any) -> Short:
  """Builds a run and takes `STEPS` steps."""
  built = run.build(config(model, data, **values))
  chosen, frozen = built.load()
  host = jax.device_get(frozen)
  state = built.start(chosen, frozen)
  start, kept = flat_copy(state.trainable), jax.device_get(state.kept)
  trainable, moments, losses = [], [], []
  for i in range(STEPS):
    _, batch, _ = built.batch(i)
    state, sums = built.train_step(state, frozen, batch)
    trainable.append(flat_copy(state.trainable))
    moments.append(first_moments(state))
    losses.append(float(sums['loss'][0] / sums['loss'][1]))
  return Short(built, start, kept, host, trainable, moments, losses, state, jax.device_get(frozen))


def flat_copy(tree: Params) -> Flat:
  """{name: array on the host}."""
  return {n: np.array(x) for n, x in trees.flatten(jax.device_get(tree)).items()}


def unstacked(flat: Flat) -> Flat:
  """{name: array}, every layer under its own name."""
  return trees.flatten(stack.unstack(trees.unflatten(flat)))


def first_moments(state: TrainState) -> Flat:
  """{name: Adam's first moment}: zero exactly where every gradient so far was."""
  out = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt):
    name = trees.path_name(path)
    if '/mu/' in name:
      out[name.partition('/mu/')[2]] = np.array(leaf)
  return out


def uneven_rows(count: int, seed: int) -> list[dict]:
  """1 to 20 words a row, most of them short, two thirds of them 'good'."""
  r = random.Random(seed)
  out = []
  for i in range(count):
    label = 'bad' if i % 3 == 0 else 'good'
    words = r.choices(tiny.NEUTRAL, k=int(19 * r.random() ** 3)) + [
      r.choice(tiny.GOOD if label == 'good' else tiny.BAD)
    ]
    out.append({'text': ' '.join(words), 'label': label})
  return out


def uneven_folder(folder: pathlib.Path) -> pathlib.Path:
  """train and validation of such rows."""
  for seed, (name, count) in enumerate((('train', 96), ('validation', 32))):
    (folder / f'{name}.jsonl').write_text('\n'.join(json.dumps(row) for row in uneven_rows(count, seed)) + '\n')
  return folder
