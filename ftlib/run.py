"""Everything a config means, resolved and checked before compute is spent: the file that knows every folder.

`build(config)` gives a `Run`; train.py, eval.py and the benchmarks take it from there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib import adapter, examples, generators, recipe, regularised, scratch, stored
from ftlib.adapter import Adapter
from ftlib.base import layout, lookup, trees
from ftlib.base.errors import Diverged, InputError, did_you_mean
from ftlib.base.layout import Layout
from ftlib.base.types import Batch, ParamInfo, Params
from ftlib.data import batches, preparation, tokens
from ftlib.data.batches import Examples
from ftlib.data.labels import Columns
from ftlib.evals import evaluate
from ftlib.io import gguf, hf
from ftlib.models import heads, hf_config, stack
from ftlib.objectives import constant
from ftlib.optim import chain
from ftlib.optim.chain import Optimizer
from ftlib.peft.method import Adjust, Method, added
from ftlib.recipe import ModelSettings, Settings
from ftlib.tasks.task import Task
from ftlib.train import averages
from ftlib.train import state as train_state
from ftlib.train.compiled import Compiled, Staged
from ftlib.train.gradient import mean_gradient
from ftlib.train.state import TrainState
from ftlib.train.step import make_eval_step, make_train_step

_BIAS = 'head/out/bias'
_TOKENIZER = ('tokenizer*.json', 'vocab.*', 'merges.txt', '*.model')  # the files that token ids follow from


@dataclasses.dataclass(frozen=True)
class Base:
  """A pretrained folder or GGUF file: `config.json`'s values, family, tensors, the fingerprint of all and tokenizer."""

  folder: pathlib.Path  # or the file
  values: dict[str, Any]
  family: Any
  weights: hf.Weights | gguf.Weights
  fingerprint: str

  @property
  def where(self) -> str:
    """The file that `values` are of."""
    return str(self.folder if self.folder.suffix == '.gguf' else self.folder / 'config.json')


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """A config resolved. `info` describes the parameters as they are kept (stacked where layers are scanned)."""

  settings: Settings
  layout: Layout
  base: Base
  dataset: preparation.Dataset
  task: Task
  tokenizer: Any
  limit: int
  examples: dict[str, Examples]
  edges: tuple[int, ...]
  method: Method
  match: hf.Match
  adapter: Adapter | None
  trains: Callable[[str], bool]
  adjust: Adjust | None
  runs: list[tuple[int, int]]
  info: dict[str, ParamInfo]
  objective: Callable
  optimizer: Optimizer
  order: batches.Order
  steps: int
  notes: list[str]

  @property
  def identity(self) -> dict[str, Any]:
    """What a resumed run must have in common with the run it goes on with."""
    own = {'data': self.dataset.fingerprint, 'weights': self.base.fingerprint, 'labels': list(self.task.labels)}
    return own | ({'adapter': self.adapter.digest} if self.adapter and self.adapter.digest else {})

  @functools.cached_property
  def train_info(self) -> dict[str, ParamInfo]:
    """The trainable parameters."""
    return {n: i for n, i in self.info.items() if self.trains(trees.canonical(n))}

  def owns(self, name: str) -> bool:
    """Whether a parameter is the run's own, in its checkpoints, and not of the frozen base."""
    return self.trains(name) or added(name)

  def load(self) -> tuple[Params, Params]:
    """(own, frozen) at the start, on the mesh: `model.adapter`, the pretrained weights, or else fresh values."""
    model, key = self.method.model, jax.random.key(self.settings.seed)
    frozen_dtype = jnp.dtype(self.settings.precision.frozen)
    fresh = trees.flatten(model.initial(key, [n for n in model.info() if n not in self.match.pairs]))
    fresh |= self.head_bias
    flat: dict[str, Any] = {}
    given = {} if self.adapter is None else self.adapter.values()
    for name in model.info():
      pair = self.match.pairs.get(name)
      if name in given:
        value = given[name]
      else:
        value = fresh[name] if pair is None else np.asarray(model.from_hf(name, self.base.weights.read(pair)))
      flat[name] = value if self.owns(name) else value.astype(frozen_dtype)
    own, frozen = trees.split(trees.unflatten(flat), self.owns)
    return self._stacked(own), self._stacked(frozen)

  @functools.cached_property
  def head_bias(self) -> dict[str, np.ndarray]:
    """{the bias of a new head: where it starts} by `objective.prior`, or {}: the training rows are not there (in
    evaluation), the model has no such bias, or the run is private, for it tells of the labels."""
    s, rows = self.settings, self.examples.get('train')
    asked = getattr(s.objective, 'prior', False) and not regularised.is_private(s)
    if not asked or rows is None or _BIAS not in self.match.fresh:
      return {}
    info = self.method.model.info()[_BIAS]
    return {_BIAS: constant.best(self.objective, rows.extra, info.size).reshape(info.shape)}

  def start(self, own: Params, frozen: Params) -> TrainState:
    """The state at step 0, each leaf where `state_shardings` says, after the method has prepared its parameters."""
    mine = trees.flatten(stack.unstack(own))
    given = self.adapter.sets if self.adapter else lambda name: False
    if self.method.prepare is not None and not all(map(given, filter(added, mine))):
      flat = trees.flatten(stack.unstack(trees.join(own, frozen)))
      flat |= adapter.moved(self.method.source, self.method.model, self.base, self.match)
      flat['text'] = tokens.ids_of(self.tokenizer, self.method.text)
      new = self.method.prepare(flat, functools.partial(self.gradient, own, frozen))
      own = self._stacked(trees.unflatten({**mine, **{n: x for n, x in new.items() if not given(n)}}))
    return jax.jit(self._create, out_shardings=self.state_shardings)(*trees.split(own, self.train_info.__contains__))

  def _create(self, trainable: Params, kept: Params) -> TrainState:
    tx, seed = self.optimizer.tx, self.settings.seed
    return train_state.create(trainable, kept, tx=tx, seed=seed, averages=self.averaging)

  @functools.cached_property
  def averaging(self) -> dict[str, averages.Rule]:
    """The averages of the trainable parameters that the state holds, 'ema' and 'swa' or fewer."""
    train = self.settings.train
    return averages.rules(ema=train.ema, swa_start=train.swa_start, steps=self.steps)

  def evaluated(self, state: TrainState, weights: str = '') -> Params:
    """All own parameters to evaluate, predict and export with: `weights`, or what checkpoint.weights says."""
    return state.evaluated(weights or self.settings.checkpoint.weights, self._averaged)

  @functools.cached_property
  def _averaged(self) -> Callable[[Any, Params], Params] | None:
    own = any(hasattr(part.module, 'averaged') for part in self.optimizer.parts.values())
    return jax.jit(self.optimizer.averaged) if own else None

  def gradient(
    self, own: Params, frozen: Params, names: Sequence[str], *, rows: int, squared: bool = False
  ) -> dict[str, jax.Array]:
    """{name: mean gradient} of parameters of whatever kind over the first training rows (`ftlib/train/gradient.py`)."""
    regularised.refuse(self.settings)
    rows, size = min(rows, len(self.examples['train'])), 1 if squared else self.settings.train.batch_size
    parts = [np.arange(i, min(i + size, rows)) for i in range(0, rows, size)]
    parts = (self._collated(self.examples['train'], numbers, size) for numbers in parts)
    params = stack.unstack(trees.join(own, frozen))
    return mean_gradient(self.method.model.apply, self.objective, params, names, parts, squared=squared)

  def _stacked(self, params: Params) -> Params:
    place = lambda name, x: jax.device_put(x, self.layout.param(self.info[name]))  # noqa: E731
    return trees.map_named(place, stack.stack(params, self.runs))

  @functools.cached_property
  def abstract_state(self) -> TrainState:
    """The state's shapes, dtypes and shardings."""
    info = {n: i for n, i in self.info.items() if self.owns(trees.canonical(n))}
    shapes = trees.unflatten({n: jax.ShapeDtypeStruct(i.shape, i.dtype) for n, i in info.items()})
    state = jax.eval_shape(self._create, *trees.split(shapes, self.train_info.__contains__))
    places = train_state.shardings(state, info, self.layout)
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), state, places)

  @property
  def state_shardings(self) -> TrainState:
    return jax.tree.map(lambda s: s.sharding, self.abstract_state)

  @functools.cached_property
  def train_step(self) -> Compiled | Staged:
    """`(state, frozen, batch) -> (state, sums)`, the state donated; compiled for each stage of the method's."""
    train, every, parts = self.settings.train, self.settings.train.log_every, []
    thins = any(part.config.l1 for part in self.optimizer.parts.values())  # then the share of zeros is logged
    for k, tx in enumerate(self.optimizer.staged):
      step = make_train_step(
        self.method.model.apply,
        self.objective,
        tx,
        micro=train.accumulate,
        penalty=self.method.penalty,
        adjust=self.adjust,
        project=self.method.project,
        active=lambda name, k=k: self.method.stage(trees.canonical(name)) <= k,
        needs=self.optimizer.needs,
        averaging=self.averaging,
        stacked=lambda name: len(trees.members(name)) > 1,
        groups=self.optimizer.members if train.diagnostics != 'none' or thins else None,
        **regularised.hooks(self),
        shown=lambda step: (step % every == 0) | (step == self.steps),
      )
      parts.append(Compiled(step, donate_argnums=0, out_shardings=(self.state_shardings, self.layout.replicated)))
    step = parts[0] if len(parts) == 1 else Staged(parts, self.method.stages.steps(self.steps))
    return regularised.anchored(self, step)

  @functools.cached_property
  def eval_step(self) -> Compiled:
    """`(own, frozen, batch) -> (sums, predictions)`."""
    step = make_eval_step(self.method.model.apply, self.objective, self.task.predict)
    return Compiled(step, out_shardings=self.layout.replicated)

  def batch(self, step: int) -> tuple[np.ndarray, Batch, int]:
    """(row numbers, Batch on the mesh, counted tokens) of a training step."""
    return self._placed(self.examples['train'], self.order.rows(step), self.order.most)

  def eval_batches(self, split: str) -> Iterator[tuple[np.ndarray, Batch]]:
    """(row numbers, Batch) over a split, rows of like length together, each row once."""
    size = self.settings.train.eval_batch_size
    examples = self.examples[split].unpacked
    order = np.argsort(examples.lengths, kind='stable')
    parts = [order[i : i + size] for i in range(0, len(order), size)]
    for rows, batch, _ in batches.feed(lambda i: self._placed(examples, parts[i], size), 0, len(parts)):
      yield rows, batch

  def evaluate(self, own: Params, frozen: Params, split: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(the objective's means and the metrics, predictions) of a split. Raises `Diverged` where these are not finite."""
    examples = self.examples[split].unpacked
    step = functools.partial(self.eval_step, own, frozen)
    means, predictions = evaluate.evaluate(step, self.eval_batches(split), rows=len(examples))
    finite = [np.isfinite(p).reshape(len(p), -1).all(1) for p in predictions.values()]
    faulty = np.flatnonzero(~np.all(finite, axis=0))
    if len(faulty) or not np.isfinite(means['loss']):
      row = int(faulty[0] if examples.windows is None else examples.windows[faulty[0]]) if len(faulty) else 0
      first = f', the first {self.dataset.splits[split].where(row)}' if len(faulty) else ''
      raise Diverged(f'{split} loss {means["loss"]}, {len(faulty)} of {len(examples)} predictions not finite{first}')
    if examples.windows is not None:
      predictions = self.task.combined(examples, predictions)
    if split == 'validation' and hasattr(self.task, 'tuned'):
      predictions = self.task.tuned(examples, predictions)
    metrics = {**means, **self.task.metrics(examples, predictions)}
    if hasattr(self.task, 'judged'):  # a task whose answers are generated
      scores, predictions['prediction'] = generators.answers(self, own, frozen, split)
      metrics |= scores
    return metrics, predictions

  def _placed(self, examples: Examples, rows: np.ndarray, size: int) -> tuple[np.ndarray, Batch, int]:
    batch = self._collated(examples, rows, size)
    return rows, jax.device_put(batch, self.layout.batch), int((batch['segments'] > 0).sum())

  def _collated(self, examples: Examples, rows: np.ndarray, size: int) -> Batch:
    pad = self.tokenizer.pad_token_id
    return batches.collate(examples, rows, size=size, edges=self.edges, pad_id=pad)


def build(config: Mapping[str, Any], *, labels: list | None = None, split: Any = None, data: bool = True) -> Run:
  """The Run of a config. `labels` is a stored run's label list; `split` restricts tokenising to one, or to a list of
  some. Without `data` nothing of it is read, and the examples are rows of drawn ids: a stored run, to ask or to export.

  Raises `InputError` for whatever is wrong, cheapest checks first.
  """
  s = recipe.read(config)
  mesh = layout.build(s.mesh.shape, batch=regularised.rows_at_once(s))
  eval_size = -(-s.train.eval_batch_size // mesh.shards) * mesh.shards
  s = dataclasses.replace(s, train=dataclasses.replace(s.train, eval_batch_size=eval_size))
  columns = Columns(*s.modules['task'].columns(s.task))
  read = functools.cache(lambda: preparation.load(s.data, **columns._asdict()))
  base = open_base(scratch.chosen(s, read))
  arch = regularised.with_dropout(base.family.from_hf(base.values, where=base.where, allow=s.model.allow_config), s)
  s = recipe.pooled(s, heads.pooling(base.family, arch), hf.read_pooling(base.folder, base.values))
  dataset = read() if data else preparation.Dataset({'train': []}, {}, '', [])
  train = dataset.splits['train']
  task = s.modules['task'].build(s.task, train=train, known=labels or dataset.labels.get(columns.label))
  options = {
    'compute': jnp.dtype(s.precision.compute),
    'remat': s.model.remat,
    'dropout_bits': s.train.dropout_bits,
  }
  model = base.family.build(arch, head=task.head, **options)
  method = s.modules['method'].build(s.method, model)
  match = scratch.match(base, model)
  notes = [*scratch.notes(base), *dataset.notes, *_match_notes(match, method)]
  fresh = set(match.fresh)
  trains = lambda name: method.trains(name) or name in fresh  # noqa: E731
  if method.stages is not None:
    method = dataclasses.replace(method, stages=method.stages.with_first(fresh))
  objective = regularised.objective(s, task, getattr(arch, 'embed', None))
  start = None
  if s.model.adapter:
    start = adapter.find(
      s.model.adapter, model=method.model, trains=trains, base=base, match=match, labels=[*task.labels], settings=s
    )
    notes += start.notes
  tokenizer = tokens.load(base.folder)
  limit = examples.limit(s, tokenizer, positions=arch.max_length, virtual=method.tokens)
  made, more = examples.drawn(arch.vocab, limit), []
  if data:
    made, more = examples.make(s, task, dataset, tokenizer, split, limit=limit, arch=arch, method=method)
  notes += more
  lengths = np.concatenate([e.unpacked.lengths for e in made.values()])
  marks = chain.marks(s.modules['optim'], s.optim)
  info, runs = stored.info_of(method, trains, scan=s.model.layers == 'scan', marks=marks)
  order = regularised.order(s, made, task)
  rows = len(made.get('train', train)) if data else 10**6  # enough for any schedule; none is followed
  steps = s.train.steps or max(1, round(s.train.epochs * -(-rows // s.train.batch_size)))
  train_info = {n: i for n, i in info.items() if trains(trees.canonical(n))}
  stage = lambda name: method.stage(trees.canonical(name))  # noqa: E731
  rates = lambda name: [method.rates(n) if method.rates else 1.0 for n in trees.members(name)]  # noqa: E731
  optimizer = chain.build(s.modules['optim'], s.optim, train_info, steps=steps, stage=stage, rates=rates, seed=s.seed)
  notes += [] if method.stages is None else [f'stages begin at steps {", ".join(map(str, method.stages.steps(steps)))}']
  run = Run(
    settings=s,
    layout=mesh,
    base=base,
    dataset=dataset,
    task=task,
    tokenizer=tokenizer,
    limit=limit,
    examples=made,
    edges=batches.buckets(lengths, count=s.train.buckets),
    method=method,
    match=match,
    adapter=start,
    trains=trains,
    adjust=method.adjust and method.adjust(steps),
    runs=runs,
    info=info,
    objective=objective,
    optimizer=optimizer,
    order=order,
    steps=steps,
    notes=notes,
  )
  return regularised.checked(run)


def open_base(model: ModelSettings) -> Base:
  """What `model.pretrained` names, nothing of its tensors read yet. Raises `InputError`."""
  folder = hf.resolve(model.pretrained)
  reader = gguf if folder.suffix == '.gguf' else hf
  values = reader.read_config(folder)
  families = {
    kind: module
    for module in (lookup.component('models', n, field='model') for n in lookup.names('models'))
    for kind in module.MODEL_TYPES
  }
  kind = values['model_type']
  if model.family:
    families = {kind: lookup.component('models', model.family, field='model.family')}
  if kind not in families:
    file = folder if folder.suffix == '.gguf' else folder / 'config.json'
    raise InputError(
      f'{file}: model_type={kind!r} is no family that ftlib has{did_you_mean(kind, families)}\n'
      f'  known: {", ".join(sorted(families))}'
    )
  weights = reader.Weights(folder)
  return Base(folder, values, families[kind], weights, _fingerprint(folder, values, weights))


def _fingerprint(folder: pathlib.Path, values: Mapping[str, Any], weights: hf.Weights | gguf.Weights) -> str:
  """SHA-256 of what a model computes from a text, wherever the folder lies."""
  h = hashlib.sha256(hf_config.identity(values, weights.fingerprint()))
  for path in sorted(p for pattern in _TOKENIZER for p in folder.glob(pattern)):
    h.update(path.name.encode() + path.read_bytes())
  return h.hexdigest()


def _match_notes(match: hf.Match, method: Method) -> list[str]:
  notes = []
  if match.fresh:
    extra = [n for n in match.fresh if not method.trains(n)]
    also = f' ({", ".join(trees.folded(extra))} train although the method does not name them)' if extra else ''
    notes.append(f'new, not in the checkpoint: {", ".join(trees.folded(match.fresh))}{also}')
  if match.unused:
    notes.append(f'not used of the checkpoint: {len(match.unused)} tensors of other heads ({match.unused[0]}, ...)')
  return notes
