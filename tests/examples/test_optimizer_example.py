"""examples/optimizer: the README's blocks run; the last is the file, which is the paper's formula and trains."""

from __future__ import annotations

import pathlib
import re
import types

import jax.numpy as jnp
import numpy as np
import pytest

from examples.optimizer import cautious
from ftlib import optimizer_contract, run
from ftlib.base import trees
from ftlib.base.types import ParamInfo
from ftlib.optim import chain
from ftlib.optimizer_trial import Subject

FOLDER = pathlib.Path(cautious.__file__).parent
README = (FOLDER / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'```python\n(.*?)```', README, re.S)
INFO = {
  'layers/0:2/up/kernel': ParamInfo((2, 3, 4), jnp.float32, ('layers', 'embed', 'mlp')),
  'head/bias': ParamInfo((3,), jnp.float32, ('classes',)),
}


def module(text: str, name: str = 'my_lab.step') -> types.ModuleType:
  out = types.ModuleType(name)
  out.__file__ = 'my_lab/step.py'
  exec(compile(text, out.__file__, 'exec', dont_inherit=True), vars(out))
  return out


def drawn(seed: int) -> dict[str, np.ndarray]:
  return {n: np.random.default_rng(seed).normal(size=i.shape).astype(np.float32) for n, i in INFO.items()}


def directions(file: types.ModuleType, gradients, **values):
  """{name: direction} of each step."""
  config = chain.config_of(file)(**values)
  tx = file.build(config, INFO)
  params = trees.unflatten(drawn(9))
  state, out = tx.init(params), []
  for gradient in gradients:
    direction, state = tx.update(trees.unflatten(gradient), state, params)
    out.append(trees.flatten(direction))
  return out, state


def by_hand(gradients, *, b1: float, b2: float, caution: bool):
  """The same in NumPy, matrix by matrix."""
  out, mu = [], {n: np.zeros(i.shape) for n, i in INFO.items()}
  for gradient in gradients:
    step = {}
    for n, g in gradient.items():
      u = np.sign(b1 * mu[n] + (1 - b1) * g)
      mu[n] = b2 * mu[n] + (1 - b2) * g
      for one, gs in zip(*((x if n.startswith('layers') else x[None]) for x in (u, g)), strict=True):
        phi = (one * gs > 0).astype(float)
        one[...] *= phi * phi.size / (phi.sum() + 1) if caution else 1
      step[n] = u
    out.append(step)
  return out


def test_the_last_block_is_the_file():
  assert len(BLOCKS) == 3
  assert BLOCKS[-1] == (FOLDER / 'cautious.py').read_text(encoding='utf-8')


@pytest.mark.parametrize('step', [0, 1, 2])
def test_every_block_is_a_whole_file_and_right(step):
  gradients = [drawn(0), {n: -0.05 * g + 0.02 * drawn(1)[n] for n, g in drawn(0).items()}, drawn(2)]
  got, _ = directions(module(BLOCKS[step]), gradients, **({} if step == 0 else {'b1': 0.8, 'b2': 0.9}))
  wanted = gradients if step == 0 else by_hand(gradients, b1=0.8, b2=0.9, caution=step == 2)
  for ours, theirs in zip(got, wanted, strict=True):
    for n in INFO:
      np.testing.assert_allclose(ours[n], theirs[n], rtol=1e-6, err_msg=n)
  if step == 2:  # the second gradient points back, so that momentum and gradient disagree in places
    assert 0 < np.mean([(x == 0).mean() for x in got[1].values()]) < 1


def test_its_moment_is_stored_as_asked():
  _, state = directions(cautious, [drawn(0)], moments='bfloat16')
  assert {x.dtype for x in trees.flatten(state.mu).values()} == {jnp.dtype('bfloat16')}


def test_the_readme_tells_what_the_check_prints():
  """The table's lines, but for the time; and what it says of the two faults that the README puts in."""
  subject = Subject(cautious)
  for name in optimizer_contract.CHECKS:
    if name != 'time':
      finding = optimizer_contract.found(name, subject)
      assert not finding.mend, finding
      assert f'{name:<20} ok      {finding.what}\n' in README
  text = BLOCKS[-1]
  faults = [
    (text.replace('.astype(m.dtype)', '.astype(jnp.float32)'), {'moments': 'bfloat16'}),
    (text.replace('* size /', '* -size /'), {}),
  ]
  for broken, values in faults:
    assert broken != text
    finding = optimizer_contract.found('jit', Subject(module(broken), values))
    assert f'FAILED  {finding.what[:90]}' in ' '.join(README.split()).replace('FAILED ', 'FAILED  ')
    assert finding.mend in ' '.join(README.split())


def test_it_trains_a_model(config):
  """By its dotted name, on rows of one batch again and again."""
  built = run.build(config(optim='examples.optimizer.cautious', optim__warmup=0.0))
  own, frozen = built.load()
  state, losses = built.start(own, frozen), []
  assert trees.nbytes(state.opt) == pytest.approx(4 * trees.size(state.trainable), abs=64)
  batch = built.batch(0)[1]
  for _ in range(8):
    state, sums = built.train_step(state, frozen, batch)
    losses.append(float(sums['loss'][0] / sums['loss'][1]))
  assert losses[-1] < losses[0]
