"""What every optimizer keeps, as functions: `python -m ftlib.optim.check NAME` and the tests call the same ones.

A check takes a `Subject` and gives a line that says what was seen, or raises `Broken` with what to change. The runs are
real training steps (`ftlib/optimizer_trial.py`), so an optimizer is tried in the place where it will work.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftlib.base import layout, lookup, trees
from ftlib.base.errors import fault
from ftlib.base.types import ParamInfo, Params
from ftlib.io.checkpoint import Checkpoints
from ftlib.optimizer_trial import (
  FROZEN,
  INFO,
  QUICK,
  ROWS,
  STEPS,
  Subject,
  Updates,
  alternated,
  apart,
  batch,
  extras,
  filled,
  gradient,
  moved,
  start,
  stepper,
  walk,
)
from ftlib.train import state as train_state

MESH = 'data=4,fsdp=2'
CLOSE = 1e-2  # of the distance moved; signs and quantised moments turn single roundings into steps
ABOUT = 5e-2  # of an update: a rule of a few operations in bfloat16, each of which is off by up to 0.4%
_IN_HEAD = lambda name: name.startswith('head/')  # noqa: E731


class Broken(AssertionError):
  """A promise that an optimizer does not keep: `what` was seen, and what to change, `mend`."""

  def __init__(self, what: str, mend: str):
    super().__init__(f'{what}; {mend}')
    self.what, self.mend = what, mend


@dataclasses.dataclass(frozen=True)
class Finding:
  """A line of the table. `mend` is empty where the check passed."""

  check: str
  what: str
  mend: str = ''


def same(before: Any, after: Any, *, what: str, mend: str) -> None:
  """Raises `Broken` unless two trees agree in structure, shapes and dtypes."""
  if jax.tree.structure(before) != jax.tree.structure(after):
    raise Broken(f'{what}: the tree has another structure', mend)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
    if (a.shape, a.dtype) != (b.shape, b.dtype):
      raise Broken(f'{what}: {trees.path_name(path)} was {a.dtype}{[*a.shape]}, is {b.dtype}{[*b.shape]}', mend)


# The checks, in the order of the table.


def jitted(subject: Subject) -> str:
  """Runs under jit, is pure, keeps the shapes and dtypes of its state, stays finite, and goes downhill."""
  frozen, state = filled(FROZEN), start(subject.whole)
  programs = [stepper(subject.whole).lower(state, frozen, batch(0)).as_text() for _ in range(2)]
  if programs[0] != programs[1]:
    raise Broken(
      'traced twice, the update gives two programs', 'keep counters and random numbers in the state, not in Python'
    )
  after = jax.eval_shape(subject.step, state, frozen, batch(0))[0]
  same(state.opt, after.opt, what='the state after a step', mend='update must give back what init gave')
  bad = [trees.path_name(p) for p, x in jax.tree_util.tree_leaves_with_path(subject.path[-1]) if not _finite(x)]
  if bad:
    raise Broken(f'not finite after {STEPS} steps: {bad[0]}', 'look for a division by a moment or a count that is 0')
  change = moved(subject.path[0], subject.path[-1])
  still = [n for n, x in change.items() if not x.any()]
  if still:
    raise Broken(f'{still[0]} does not move in {STEPS} steps', 'the update of every leaf must depend on its gradient')
  if sum((change[n] * g).sum() for n, g in gradient().items()) >= 0:
    raise Broken(
      'the parameters go uphill', 'build gives the direction of the gradient; chain.py negates it (unless RATED is set)'
    )
  return f'{STEPS} steps, one program, finite, downhill'


def _finite(x: jax.Array) -> bool:
  return not jnp.issubdtype(x.dtype, jnp.inexact) or bool(np.isfinite(np.asarray(x, np.float32)).all())


def sharded(subject: Subject) -> str:
  """On 8 devices, cut in `MESH`: state lies as its parameter, and the steps are those of one device."""
  mesh = layout.build(MESH, batch=ROWS)
  create = functools.partial(train_state.create, kept={}, tx=subject.whole.tx, seed=0)
  shapes = jax.eval_shape(create, filled(INFO))
  places = train_state.shardings(shapes, INFO, mesh)
  cut, lone = 0, 0
  for (path, leaf), place in zip(
    jax.tree_util.tree_leaves_with_path(shapes.opt), jax.tree.leaves(places.opt), strict=True
  ):
    name, whole = trees.path_name(path), place.is_equivalent_to(mesh.replicated, leaf.ndim)
    twin = [n for n, i in INFO.items() if i.shape == leaf.shape and not name.endswith(n)]
    if whole and leaf.ndim > 1 and twin and not mesh.param(INFO[twin[0]]).is_equivalent_to(mesh.replicated, leaf.ndim):
      raise Broken(
        f'state {name} has the shape of {twin[0]}, but lies whole on every device',
        "keep it in a tree of the parameters' structure, whose paths end in their names",
      )
    cut, lone = cut + (not whole), lone + (leaf.size if whole and leaf.size > 1 else 0)
  made = jax.jit(create, out_shardings=places, compiler_options=QUICK)(filled(INFO))
  step = stepper(subject.whole, places=(places, mesh.replicated))
  last = walk(lambda s, f, b: step(s, f, jax.device_put(b, mesh.batch)), made)[-1]
  same(shapes.opt, last.opt, what='the state after steps on 8 devices', mend='update must give back what init gave')
  worst, ratio = apart(moved(subject.path[0], subject.path[-1]), moved(subject.path[0], last))
  if not ratio <= CLOSE:
    raise Broken(
      f'{worst} is {ratio:.1%} off the steps of one device', 'write the rule on whole arrays, without device numbers'
    )
  return f'{cut} leaves of state cut, {lone} numbers on every device, same steps'


def bfloat16(subject: Subject) -> str:
  """bfloat16 parameters stay so, the state keeps its dtypes, and the update is about that of float32."""
  params = filled(INFO, dtype=jnp.bfloat16)
  grads = jax.tree.map(lambda x: (2 * x).astype(x.dtype), params)
  tx, seen = optax.with_extra_args_support(subject.whole.tx), set()

  def update(grads: Params, opt: Any, params: Params) -> tuple[Params, Params, Any]:
    updates, opt = tx.update(grads, opt, params, **extras(grads, params))
    return updates, optax.apply_updates(params, updates), opt

  def second(dtype: Any) -> dict[str, np.ndarray]:
    """{name: the update after the first, whose rate is 0}: of the same numbers whatever the dtype."""
    own, slope = optax.tree.cast((params, grads), dtype)
    opt = init(own)
    for _ in range(2):
      updates, own, opt = step(slope, opt, own)
    return {n: np.asarray(x, np.float64) for n, x in trees.flatten(updates).items()}

  init, step = (jax.jit(fn, compiler_options=QUICK) for fn in (tx.init, update))
  opt = jax.eval_shape(tx.init, params)
  updates, after, new = jax.eval_shape(update, grads, opt, params)
  same(params, after, what='bfloat16 parameters after a step', mend='the update must not change their dtype')
  same(opt, new, what='the state of bfloat16 parameters after a step', mend='cast what you keep to the dtype it had')
  for name, x in trees.flatten(updates).items():
    seen.add(str(x.dtype))
    if x.dtype not in (jnp.bfloat16, jnp.float32):
      raise Broken(f'the update of {name} is {x.dtype}', 'give it in float32 or in the dtype of the parameter')
  narrow, mend = second(jnp.bfloat16), 'compute in float32: in bfloat16 a decay of 0.999 is 1'
  bad = [n for n, x in narrow.items() if not np.isfinite(x).all()]
  if bad:
    raise Broken(f'the update of {bad[0]} is not finite with bfloat16 parameters', mend)
  worst, ratio = apart(second(jnp.float32), narrow)
  if not ratio <= ABOUT:
    raise Broken(f'with bfloat16 parameters the update of {worst} is {ratio:.1%} off', mend)
  return f'updates {", ".join(sorted(seen))}, about those of float32; parameters and state keep their dtypes'


def groups(subject: Subject) -> str:
  """Of two groups one waits for its stage; the other moves as if it were alone."""
  late = subject.optimizer(stage=lambda name: int(_IN_HEAD(name)))
  state = start(late)
  step = stepper(late, late.staged[0], active=lambda n: not _IN_HEAD(n))
  states = walk(step, state, steps=3)
  change = moved(states[0], states[-1])
  own = {n: i for n, i in INFO.items() if not _IN_HEAD(n)}
  alone = subject.optimizer(own)
  head, mine = trees.split(filled(INFO), _IN_HEAD)
  lone = walk(stepper(alone), start(alone, mine), steps=3, rest=head)
  worst, ratio = apart(moved(lone[0], lone[-1]), {n: change[n] for n in own})
  if not ratio <= CLOSE:
    raise Broken(
      f'beside a group that waits {worst} is {ratio:.1%} off its steps alone',
      'a group may know nothing of the others: keep nothing outside of build',
    )
  return 'beside a group that waits as if alone'


def accumulation(subject: Subject) -> str:
  """A step in 4 micro-batches is the step in one."""
  steps = walk(stepper(subject.whole, micro=4), subject.path[0])
  worst, ratio = apart(moved(subject.path[0], subject.path[-1]), moved(steps[0], steps[-1]))
  if not ratio <= CLOSE:
    raise Broken(
      f'{worst} is {ratio:.1%} off the steps in one batch', 'count and change state in update alone, once a step'
    )
  return '4 micro-batches as one'


def resume(subject: Subject) -> str:
  """Saved in the middle, restored and run on, it ends with the same bits."""
  middle = STEPS // 2
  with tempfile.TemporaryDirectory() as folder, Checkpoints(pathlib.Path(folder) / 'c') as checkpoints:
    saved = train_state.storable(subject.path[middle])
    checkpoints.save(middle, saved, {})
    checkpoints.wait()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
    restored = train_state.restored(checkpoints.restore(shapes).state)
  mend = 'keep everything that update needs in arrays of its state'
  same(saved.opt, restored.opt, what='the restored state', mend=mend)
  last = walk(subject.step, restored, begin=middle, steps=STEPS - middle)[-1]
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(train_state.storable(subject.path[-1])),
    jax.tree.leaves(train_state.storable(last)),
    strict=True,
  ):
    if not np.array_equal(a, b):
      raise Broken(f'{trees.path_name(path)} differs after resuming at step {middle}', mend)
  return f'the same bits after resuming at step {middle}'


def counting(subject: Subject) -> str:
  """Nothing moves at step 0, whose rate is 0; every counter of the state equals the steps taken."""
  change = moved(subject.path[0], subject.path[1])
  early = [n for n, x in change.items() if x.any()]
  if early:
    raise Broken(
      f'{early[0]} moves at a rate of 0', 'multiply the whole update by the rate of the step, from step 0 on'
    )
  mine, counters = subject.path[-1].opt, 0
  for path, x in jax.tree_util.tree_leaves_with_path(mine):
    name = trees.path_name(path)
    if name.rpartition('/')[2] in ('count', 'step') and x.ndim == 0:
      counters += 1
      if int(x) != STEPS:
        raise Broken(f'{name} is {int(x)} after {STEPS} steps', 'count with optax.safe_increment, once an update')
  return f'rate 0 moves nothing; {counters} counter{"s" * (counters != 1)} at {STEPS} after {STEPS} steps'


def scaling(subject: Subject) -> str:
  """How the second step changes where all gradients are 1000 times as large. Nothing here can fail."""
  first = moved(subject.path[1], subject.path[2])
  large = walk(subject.step, subject.path[0], steps=2, scale=1000.0)
  # both begin at the same parameters: the rate of step 0 is 0
  second = moved(large[1], large[2])
  size = lambda change: float(np.sqrt(sum(np.square(x).sum() for x in change.values())))  # noqa: E731
  ratio = size(second) / max(size(first), 1e-30)
  kind = 'invariant' if 0.9 < ratio < 1.1 else 'linear' if 900 < ratio < 1100 else 'other'
  return f'{kind}: gradients x 1000 change the update x {ratio:.3g}'


def memory(subject: Subject) -> str:
  """Bytes of state a trainable parameter, by shapes alone. Nothing here can fail."""
  info = _large()
  shapes = trees.unflatten({n: jax.ShapeDtypeStruct(i.shape, i.dtype) for n, i in info.items()})
  state = jax.eval_shape(subject.optimizer(info).tx.init, shapes)
  return f'{trees.nbytes(state) / trees.size(shapes):.2f} bytes of state a parameter (adamw: 8)'


def duration(subject: Subject, *, rounds: int = 30, seconds: float = 6.0) -> str:
  """Time of an update over adamw's, on a million parameters, in turns. Nothing here can fail."""
  adamw = Subject(lookup.component('optim', 'adamw', field='optim.name'))
  pair = [Updates(s.optimizer(_large()).tx, _large()) for s in (subject, adamw)]
  ratio, spent = alternated(*pair, rounds=rounds, seconds=seconds)
  return f'{ratio:.2f} x adamw ({1e3 * spent:.2f} ms for {trees.size(pair[0].params) / 1e6:.1f}M parameters, CPU)'


def _large() -> dict[str, ParamInfo]:
  """A million parameters: `INFO` with wider layers."""
  grow = lambda i: tuple(  # noqa: E731
    d * 20 if a in ('embed', 'mlp') else d for d, a in zip(i.shape, i.axes, strict=True)
  )
  return {n: dataclasses.replace(i, shape=grow(i)) for n, i in INFO.items()}


CHECKS: dict[str, Callable[[Subject], str]] = {
  'jit': jitted,
  'sharded, 8 devices': sharded,
  'bf16 parameters': bfloat16,
  'masked groups': groups,
  'accumulation': accumulation,
  'checkpoint, resume': resume,
  'step count': counting,
  'gradient scale': scaling,
  'memory': memory,
  'time': duration,
}


def found(check: str, subject: Subject) -> Finding:
  """What a check finds; an exception of the optimizer's own code is a finding too."""
  try:
    return Finding(check, CHECKS[check](subject))
  except Broken as e:
    return Finding(check, e.what, e.mend)
  except Exception as e:  # code of the user's: anything
    file = pathlib.Path(getattr(subject.module, '__file__', None) or '').name
    return Finding(check, 'it raised an error', fault(e, file=file))
