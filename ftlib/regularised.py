"""What mixout, adversarial training and privacy ask of a run: checks, objective, order of rows, the step's hooks.

The rules are in `train/mixout.py`, `objectives/adversarial.py` and `train/private.py`; `run.py` calls this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import Sums
from ftlib.data import batches, sampling
from ftlib.data.batches import Examples
from ftlib.objectives import adversarial
from ftlib.peft.method import added
from ftlib.recipe import Settings
from ftlib.tasks.task import Task
from ftlib.train import mixout, private

if TYPE_CHECKING:  # both import this file
  from ftlib.run import Run
  from ftlib.shapes import Shapes

_OPEN = ('value', 'value_fn', 'grad_fn', 'obj_fn')  # what an optimizer may be passed that holds no noise


def objective(s: Settings, task: Task, width: int | None) -> Callable[..., Sums]:
  """The objective of a run, wrapped where `adversarial.name` says so; `width` is that of what the first block reads."""
  plain = s.modules['objective'].build(s.objective, labels=task.labels, counts=task.counts)
  return adversarial.wrap(plain, s.adversarial, width=width)


def with_dropout(arch: Any, s: Settings) -> Any:
  """An architecture with the dropout that `model.dropout` and `model.attention_dropout` set.

  Raises `InputError` where it has none of that kind.
  """
  names = _dropouts(arch)
  kinds = {'attention_dropout': names & {'attention_dropout'}, 'dropout': names - {'attention_dropout'}}
  rates = {}
  for field, found in kinds.items():
    rate = getattr(s.model, field)
    if rate is not None and not found:
      raise InputError(f'model.{field}={rate}: the model has no such dropout; leave it out')
    rates |= {} if rate is None else dict.fromkeys(found, rate)
  return dataclasses.replace(arch, **rates)


def _dropouts(arch: Any) -> set[str]:
  """The fields of an architecture that are rates of dropout."""
  return {f.name for f in dataclasses.fields(arch) if f.name.endswith('dropout')}


def is_private(s: Settings) -> bool:
  """Whether a run trains with differential privacy."""
  return s.privacy.noise_multiplier > 0


def rows_at_once(s: Settings) -> int:
  """How many rows a step computes with at once. Raises `InputError` where settings do not go with privacy."""
  if not is_private(s):
    if s.train.accumulate > 1 and getattr(s.modules['objective'], 'COUPLED', False):
      raise InputError(
        f'train.accumulate={s.train.accumulate} with objective.name={s.names["objective"]}, which compares the rows of '
        'a batch with each other: in micro-batches each would be compared with fewer\n'
        '  leave it at 1; model.remat=full saves memory as well'
      )
    if s.train.batch_size % s.train.accumulate:
      raise InputError(
        f'train.batch_size={s.train.batch_size} is not a multiple of train.accumulate={s.train.accumulate}'
      )
    return s.train.batch_size // s.train.accumulate
  wrong = []
  if s.train.accumulate > 1:
    wrong.append(
      f'train.accumulate={s.train.accumulate}: privacy.microbatch={s.privacy.microbatch} is how many rows are computed '
      'at once; leave train.accumulate at 1'
    )
  if not getattr(s.modules['objective'], 'ROWWISE', False):
    wrong.append(
      f'objective.name={s.names["objective"]}, which may couple the rows of a batch; where the loss of a row follows '
      'from the row alone, say so in the file by ROWWISE = True'
    )
  weighing = [(f'objective.{n}', getattr(s.objective, n, '')) for n in ('class_weights', 'pos_weight')]
  weighing += [('task.weight', getattr(s.task, 'weight', '')), ('data.sampling', s.data.sampling)]
  for field, value in weighing:
    if value:
      wrong.append(
        f'{field}={value}: under privacy every row counts alike, and weights that follow from the labels would tell of '
        'them; leave it empty'
      )
  for field in ('augment', 'deduplicate'):
    if value := getattr(s.data, field):
      wrong.append(
        f'data.{field}={value}: under privacy a row of the data is one of the training, whatever the others are; leave '
        'it empty'
      )
  if not s.model.pretrained:
    wrong.append(
      f'model.family={s.model.family} and no model.pretrained: the vocabulary would be made of the words of the '
      'training rows, which the model tells as they are; start from a pretrained model'
    )
  if s.train.packing:
    wrong.append(
      'train.packing=true: a packed row holds several documents, and which ones follows from all; set it to false'
    )
  if wrong:
    raise InputError(f'privacy.noise_multiplier={s.privacy.noise_multiplier} with {wrong[0]}')
  return s.privacy.microbatch


def order(s: Settings, made: Mapping[str, Examples], task: Task) -> batches.Order:
  """Which rows stand in which batch. Raises `InputError` where `data.sampling` does not go with the task."""
  lengths = next(iter(made.values())).lengths
  if not is_private(s):
    rates = task.rates(made['train']) if 'train' in made and hasattr(task, 'rates') else None
    if s.data.sampling and 'train' in made:
      rates = sampling.rates(s.data.sampling, made['train'].extra.get('labels', np.zeros(0)), task.labels)
    return batches.Order(lengths, s.train.batch_size, s.seed, s.train.grouped and not s.train.packing, rates)
  return batches.Poisson(lengths, s.train.batch_size, s.seed, multiple=s.privacy.microbatch)


def checked(run: Run) -> Run:
  """The run. Raises `InputError` where its rows, method, model or optimizer do not go with what it asks for."""
  if is_private(run.settings) and 'train' in run.examples:
    s, rows = run.settings, len(run.examples['train'])
    if run.examples['train'].windows is not None or _repeated(run.dataset.splits['train']):
      raise InputError(
        f'privacy.noise_multiplier={s.privacy.noise_multiplier}: rows longer than {run.limit} tokens were made into '
        'several documents, each of which would count as a row of its own, and a row for as many; raise '
        'train.max_length, cut them by task.truncate=tail where the task has that, or cut the texts beforehand'
      )
    if s.train.batch_size > rows:
      raise InputError(
        f'train.batch_size={s.train.batch_size} with privacy.noise_multiplier: batches are drawn from {rows} training '
        'rows; lower it'
      )
    if s.privacy.delta >= 1 / rows:
      raise InputError(
        f'privacy.delta={s.privacy.delta:g}: publishing one of the {rows} training rows as it is would be as private; '
        f'set it well below {1 / rows:.1g}'
      )
  open_ = [n for n in _OPEN if n in run.optimizer.needs]
  if is_private(run.settings) and open_:
    raise InputError(
      f'privacy.noise_multiplier={run.settings.privacy.noise_multiplier} with optim.name='
      f'{run.settings.names["optim"]}, which looks at the loss of a batch ({", ".join(open_)}) as it is, '
      'without noise; take another'
    )
  if run.settings.train.mixout and not _matrices(run):
    raise InputError(
      f'train.mixout={run.settings.train.mixout} is for pretrained matrices that train, and method.name='
      f'{run.settings.names["method"]} trains none; take full or last_n, or set it to 0'
    )
  for part in run.optimizer.parts.values():
    if run.adjust and hasattr(part.module, 'averaged') and any(added(trees.canonical(n)) for n in part.labels):
      raise InputError(
        f'optim.name={part.optimizer} with method.name={run.settings.names["method"]}, which moves its parameters once '
        'more after each update: the optimizer keeps others beside them, that would not follow, and these are what is '
        'evaluated; take an optimizer without an average of its own (that of train.ema follows)'
      )
  return dataclasses.replace(run, notes=[*run.notes, *_changing(run), *_narrow(run)])


def _changing(run: Run) -> list[str]:
  """What is said of l-bfgs where no step has the loss of the one before."""
  if all(part.optimizer != 'lbfgs' for part in run.optimizer.parts.values()):
    return []
  size, rows, arch = run.settings.train.batch_size, len(run.examples.get('train', ())), run.method.model.config
  why = [f'these have other rows each time (train.batch_size={size} of {rows})'] if size < rows else []
  rates = [getattr(arch, name) for name in _dropouts(arch)]
  why += [f'the model drops up to {max(rates):g} of its numbers (model.dropout, model.attention_dropout)'] * any(rates)
  return [
    f'optim.name=lbfgs learns the curvature from how gradients change between steps, and {reason}: it is for a head '
    'alone (method.name=head), all rows in a batch and no dropout'
    for reason in why
  ]


def _narrow(run: Run) -> list[str]:
  """What is said of optimizers that keep nothing in bfloat16 although it is asked for."""
  asked = {
    label: p.optimizer
    for p in run.optimizer.parts.values()
    if p.config.moments == 'bfloat16'
    for label in p.labels.values()
  }
  if not asked:
    return []
  dtypes = {label: {x.dtype for x in jax.tree.leaves(run.abstract_state.opt[label])} for label in asked}
  kept = {name for label, name in asked.items() if jnp.dtype('bfloat16') in dtypes[label]}
  return [
    f'optim.moments=bfloat16 changes nothing of optim.name={name}: it keeps no first moment'
    for name in sorted({*asked.values()} - kept)
  ]


def hooks(run: Run | Shapes) -> dict[str, Any]:
  """Further arguments of `make_train_step`."""
  s, out = run.settings, {}
  if s.train.mixout:
    out['joined'] = mixout.mixing(s.train.mixout, trees.members)
  if is_private(s):
    out['gradient'] = private.private_gradient(s.privacy, expected=s.train.batch_size)
  return out


def anchored(run: Run, step: Any) -> Any:
  """The run's compiled step, with the pretrained values that mixout mixes in."""
  if not run.settings.train.mixout:
    return step
  flat = {}
  for name in _matrices(run):
    values = [run.method.model.from_hf(n, run.base.weights.read(run.match.pairs[n])) for n in trees.members(name)]
    value = np.stack(values) if len(values) > 1 else np.asarray(values[0])
    flat[name] = jax.device_put(value.astype(run.info[name].dtype), run.layout.param(run.info[name]))
  return mixout.Anchored(step, trees.unflatten(flat))


def refuse(s: Settings) -> None:
  """Raises `InputError` where a method asks for gradients of single rows that a private run may not look at."""
  if is_private(s):
    raise InputError(
      f'privacy.noise_multiplier={s.privacy.noise_multiplier} with method.name={s.names["method"]}, which chooses by '
      'gradients of training rows, and these have no noise; let it choose by something else (of sparse: '
      'method.choose=random or magnitude)'
    )


def spent(run: Run, steps: int) -> dict[str, Any]:
  """{'privacy': what `steps` steps have cost and what that assumes} for summary.json, or {}."""
  if not is_private(run.settings):
    return {}
  p, order = run.settings.privacy, run.order
  rows, most, rate = len(order.lengths), order.most, order.rate
  return {
    'privacy': {
      'epsilon': private.epsilon(p, rows=rows, rate=rate, most=most, steps=steps),
      'delta': p.delta,
      'noise_multiplier': p.noise_multiplier,
      'clip_norm': p.clip_norm,
      'steps': steps,
      'rows': rows,
      'sampling_rate': rate,
      'assumes': f'neighbours differ in one training row; a step has each row with probability {rate:.4g}, at most '
      f'{most} of them (truncated Poisson sampling); logs, metrics and what was chosen by them are not counted',
    }
  }


def told(spent: Mapping[str, Any]) -> list[str]:
  """What `spent` gives, as a line to print, or none."""
  return [
    f'privacy: epsilon {p["epsilon"]:.3g} at delta {p["delta"]:g} after {p["steps"]:,} steps (noise '
    f'{p["noise_multiplier"]:g} of norm {p["clip_norm"]:g}); {p["assumes"]}'
    for p in spent.values()
  ]


def _repeated(rows: Sequence[Mapping[str, Any]]) -> bool:
  """Whether a row stands there for several documents (a task that cuts texts into windows gives it to each)."""
  return len({id(row) for row in rows}) < len(rows)


def _matrices(run: Run) -> list[str]:
  """The trainable kernels all of which is pretrained, as they are stored."""
  pretrained = lambda name: all(n in run.match.pairs for n in trees.members(name))  # noqa: E731
  return [n for n in run.train_info if n.endswith('/kernel') and pretrained(n)]
