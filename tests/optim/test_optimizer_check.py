"""The checks of `python -m ftlib.optim.check`: each sees the fault that it is for, and the command says so."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftlib import optimizer_contract, optimizer_trial
from ftlib.base import lookup, trees
from ftlib.optim import check
from ftlib.optimizer_contract import Broken, Finding
from ftlib.optimizer_trial import Subject

DEVICES = """import dataclasses, os
import jax
from ftlib.base.errors import InputError

@dataclasses.dataclass(frozen=True)
class Config: ...

def build(config, info):
  raise InputError(f'{jax.device_count()} {jax.default_backend()} {os.environ["XLA_FLAGS"]}')
"""


@dataclasses.dataclass(frozen=True)
class Config:
  """No field of its own."""


def rule(update, init=lambda params: (), **more) -> Subject:
  """An optimizer whose `update(grads, state, params)` is given."""
  build = lambda config, info: optax.GradientTransformation(init, update)  # noqa: E731
  return Subject(module(Config=Config, **{'build': build, **more}))


def module(**attributes) -> types.ModuleType:
  out = types.ModuleType('my_lab.faulty')
  vars(out).update(attributes, __file__='my_lab/faulty.py')
  return out


def plain(update, **more) -> Subject:
  """One without state: `update(grads)`."""
  return rule(lambda grads, state, params=None: (update(grads), state), **more)


def times(factor):
  return lambda grads: jax.tree.map(lambda g: g * factor, grads)


def unbiased(decay) -> Subject:
  """It corrects a bias in the dtype of the gradients."""
  return plain(lambda grads: jax.tree.map(lambda g: g / (1 - jnp.asarray(decay, g.dtype)), grads))


def impure() -> Subject:
  calls = []

  def update(grads):
    calls.append(1)
    return times(len(calls))(grads)

  return plain(update)


def forgetful() -> Subject:
  """Its state lies in Python, behind a callback."""
  calls = []

  def read(_):
    calls.append(1)
    return np.float32(1 + 0.1 * len(calls))

  shape = jax.ShapeDtypeStruct((), jnp.float32)
  return plain(lambda grads: times(jax.pure_callback(read, shape, jax.tree.leaves(grads)[0].ravel()[0]))(grads))


def counter(step: int, dtype=jnp.int32) -> Subject:
  update = lambda grads, state, params=None: (grads, {'count': (state['count'] + step).astype(dtype)})  # noqa: E731
  return rule(update, lambda params: {'count': jnp.zeros((), jnp.int32)})


def crossed() -> Subject:
  """What one group builds changes the others."""
  last = {}

  def build(config, info):
    last['names'] = last.get('names', 0) + len(info)
    return optax.stateless(lambda grads, _: times(1 / last['names'])(grads))

  return rule(None, build=build)


def deaf() -> Subject:
  """It has the rate inside and does not heed it."""
  build = lambda config, info, rate, decay, decays: optax.scale(-1e-3)  # noqa: E731
  return rule(None, build=build, RATED=True)


def momentum(keys, dtype=lambda x: x.dtype) -> Subject:
  """Its state is kept under `keys(name)`."""
  init = lambda params: {keys(n): jnp.zeros_like(x) for n, x in trees.flatten(params).items()}  # noqa: E731

  def update(grads, state, params=None):
    flat = trees.flatten(grads)
    new = {keys(n): (0.9 * state[keys(n)] + g).astype(dtype(g)) for n, g in flat.items()}
    return trees.unflatten({n: new[keys(n)].astype(g.dtype) for n, g in flat.items()}), new

  return rule(update, init)


FAULTS = {
  'uphill': ('jit', plain(times(-1.0)), 'go uphill'),
  'still': ('jit', plain(times(0.0)), 'does not move'),
  'impure': ('jit', impure(), 'two programs'),
  'not finite': ('jit', plain(lambda g: jax.tree.map(lambda x: jnp.log(-jnp.abs(x)), g)), 'not finite'),
  'state of another dtype': ('jit', counter(1, jnp.float32), 'was int32[], is float32[]'),
  'state without names': ('sharded, 8 devices', momentum(lambda n: n.replace('/', '.')), 'lies whole on every device'),
  'another program on 8 devices': ('sharded, 8 devices', impure(), 'off the steps of one device'),
  'update in float16': (
    'bf16 parameters',
    plain(lambda g: jax.tree.map(lambda x: x.astype(jnp.float16), g)),
    'is float16',
  ),
  'state promoted': ('bf16 parameters', momentum(lambda n: n, lambda x: jnp.float32), 'was bfloat16'),
  'decay that is 1 in bfloat16': ('bf16 parameters', unbiased(0.999), 'not finite with bfloat16'),
  'decay that is another in bfloat16': ('bf16 parameters', unbiased(0.99), '% off'),
  'groups share something': ('masked groups', crossed(), 'off its steps alone'),
  'an error of its own': ('masked groups', plain(lambda g: g['no such']), 'it raised an error'),
  'state in Python': ('checkpoint, resume', forgetful(), 'differs after resuming at step 2'),
  'moves at a rate of 0': ('step count', deaf(), 'moves at a rate of 0'),
  'counter that stays': ('step count', counter(0), 'count is 0 after 4 steps'),
  'counter that runs': ('step count', counter(2), 'count is 8 after 4 steps'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_each_fault_is_seen(fault):
  name, subject, words = FAULTS[fault]
  finding = optimizer_contract.found(name, subject)
  assert words in finding.what
  assert finding.mend


def test_micro_batches_that_are_not_summed_are_seen(monkeypatch):
  subject = plain(times(1.0))
  assert subject.path
  real = optimizer_trial.make_train_step
  monkeypatch.setattr(
    optimizer_trial,
    'make_train_step',
    lambda *args, micro, **k: lambda s, f, b: real(*args, **k)(s, f, jax.tree.map(lambda x: x[:: micro // 2], b)),
  )
  with pytest.raises(Broken, match='off the steps in one batch'):
    optimizer_contract.accumulation(subject)


@pytest.mark.parametrize(
  ('update', 'kind'),
  [
    (times(1.0), 'linear'),
    (lambda g: jax.tree.map(jnp.sign, g), 'invariant'),
    (lambda g: jax.tree.map(lambda x: jnp.sign(x) * jnp.sqrt(jnp.abs(x)), g), 'other'),
  ],
)
def test_what_a_larger_gradient_does_is_told(update, kind):
  assert optimizer_contract.scaling(plain(update)).startswith(f'{kind}: ')


def test_bytes_are_those_of_the_state():
  assert optimizer_contract.memory(plain(times(1.0))).startswith('0.00 bytes')
  assert optimizer_contract.memory(momentum(lambda n: n)).startswith('4.00 bytes')


def test_times_are_taken_in_turns():
  calls = []

  class Clock:
    def __init__(self, name, seconds):
      self.name, self.times = name, iter(seconds)

    def seconds(self):
      calls.append(self.name)
      return next(self.times)

  first, second = Clock('a', [9, 9, 2, 2, 11]), Clock('b', [9, 9, 1, 1, 3])
  assert optimizer_trial.alternated(first, second, rounds=3, seconds=100.0) == (3, 5)  # one step in three is dearer
  assert calls == ['a', 'b'] * 5


def test_an_update_is_timed_over_adamws():
  sines = lambda grads: jax.tree.map(lambda g: jax.lax.fori_loop(0, 20, lambda _, x: jnp.sin(x), g), grads)  # noqa: E731
  told = optimizer_contract.duration(plain(sines), rounds=1, seconds=0.0)
  ratio = re.fullmatch(r'([\d.]+) x adamw \([\d.]+ ms for 1\.2M parameters, CPU\)', told)[1]
  assert float(ratio) > 1


def test_a_sound_optimizer_passes_all(monkeypatch, capsys):
  """One from outside, by the command itself; its times are not taken."""
  monkeypatch.setitem(optimizer_contract.CHECKS, 'time', lambda subject: '1.00 x adamw')
  assert check.main(['tests.outside.odd_optim', 'momentum=0.5']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == 'tests.outside.odd_optim: learning rate 0.001, momentum 0.5'
  assert [line[:20].strip() for line in lines[1:-1]] == list(optimizer_contract.CHECKS)
  assert all(line[21:23] == 'ok' for line in lines[1:-1])
  assert lines[-1] == 'all checks passed'


def test_a_failure_says_what_to_change():
  lines = []
  assert not check.table([Finding('jit', 'fine'), Finding('memory', 'seen', 'do ' + 'this ' * 40)], write=lines.append)
  text = '\n'.join(lines)
  assert 'jit                  ok      fine' in text
  assert 'memory               FAILED  seen' in text
  assert 'what to change: do this' in text
  assert max(map(len, text.splitlines())) <= check.WIDTH


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    ([], 'name an optimizer'),
    (['adafactr'], 'did you mean "adafactor"'),
    (['my_lab/opt.py'], 'did you mean "my_lab.opt"'),
    (['tests.outside.no_such'], 'cannot be imported'),
    (['tests.tiny'], 'lacks Config and build'),
    (['adamw', 'b1'], 'is no FIELD=VALUE'),
    (['adamw', 'bb1=0.5'], 'did you mean'),
    (['adamw', 'learning_rate=-1'], 'learning_rate'),
  ],
)
def test_wrong_input_ends_with_2(words, said, capsys):
  assert check.main(words) == 2
  assert said in capsys.readouterr().err


def test_a_misspelt_build_is_named(tmp_path, monkeypatch, capsys):
  (tmp_path / 'odd_lab').mkdir()
  text = 'import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Config: ...\ndef biuld(config, info): ...\n'
  (tmp_path / 'odd_lab' / 'odd_build.py').write_text(text)
  monkeypatch.syspath_prepend(tmp_path)
  assert check.main(['odd_lab.odd_build']) == 2
  assert 'lacks build; did you mean "biuld"?' in capsys.readouterr().err


def test_the_command_has_eight_cpu_devices(tmp_path):
  """Whatever is set for other programs; other flags stay."""
  (tmp_path / 'odd_lab').mkdir()
  (tmp_path / 'odd_lab' / 'devices.py').write_text(DEVICES)
  flags = '--xla_force_host_platform_device_count=2 --xla_cpu_enable_fast_math=false'
  ended = subprocess.run(
    [sys.executable, '-m', 'ftlib.optim.check', 'odd_lab.devices'],
    env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cuda', 'PYTHONPATH': str(tmp_path)},
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 2
  assert '8 cpu ' in ended.stderr
  assert ended.stderr.count('device_count') == 1
  assert '--xla_cpu_enable_fast_math=false' in ended.stderr


def test_the_command_is_no_optimizer():
  assert not {'check', 'chain', 'schedules'} & {*lookup.names('optim')}


def test_the_tiny_model_has_a_gradient_everywhere_and_stacks():
  assert all(np.abs(g).min() > 0 for g in optimizer_trial.gradient().values())
  assert any(i.axes[0] == 'layers' for i in optimizer_trial.INFO.values())
