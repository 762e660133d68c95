"""The config of a run: its sections, what a recipe in configs/ writes, and what is read back from it.

A recipe is a file with `get_config(arg)`; it takes the component names from the argument string by `arguments` and
fills the sections by `recipe`. Flags then change single values: `--config.method.rank=16`.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ml_collections import config_dict

from ftlib import scratch
from ftlib.base import lookup, rng, settings
from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.settings import setting
from ftlib.data import preparation
from ftlib.models import stack
from ftlib.objectives import adversarial
from ftlib.optim import chain
from ftlib.peft import together
from ftlib.train import diagnostics, private

DTYPES = ('float32', 'bfloat16')
PARTS = ('all', 'encoder', 'head', 'adapter')
_SWITCH = ('yes', 'no')


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """`pretrained`: hub id, folder or `package:import_name/path`. `family`: a file of ftlib/models or a dotted module;
  '' goes by `config.json`'s model_type. `adapter`: run folder, or folder of PEFT, to start from; `adapter_parts`: which
  of its parameters, some of `PARTS` with commas between. `layers`: 'scan' (alike layers are compiled once) or 'unroll'.
  `remat`: what the backward pass computes again. `allow_config`: pattern of unknown `config.json` keys that are
  harmless. `dropout`: of layers, embeddings and head, and `attention_dropout`; None is what `config.json` says.
  `scratch`: of a model that starts from nothing, where `pretrained` is empty (`ftlib/scratch.py`)."""

  pretrained: str = ''
  family: str = ''
  adapter: str = ''
  adapter_parts: str = 'all'
  layers: str = setting('scan', choices=('scan', 'unroll'))
  remat: str = setting('none', choices=tuple(stack.REMAT))
  allow_config: str = ''
  dropout: float | None = setting(None, low=0, below=1)
  attention_dropout: float | None = setting(None, low=0, below=1)
  scratch: scratch.Config = dataclasses.field(default_factory=scratch.Config)

  def __post_init__(self):
    parts_of(self.adapter_parts)
    if self.adapter_parts != 'all' and not self.adapter:
      raise ValueError(f'adapter_parts={self.adapter_parts!r} says what is taken of model.adapter, which is not given')


@dataclasses.dataclass(frozen=True)
class PrecisionSettings:
  """`compute`: of activations and products. `frozen`: in which frozen parameters are kept. `trainable`: masters."""

  compute: str = setting('float32', choices=DTYPES)
  frozen: str = setting('float32', choices=DTYPES)
  trainable: str = setting('float32', choices=DTYPES)


@dataclasses.dataclass(frozen=True)
class TrainSettings:
  """Length, batches and evaluation of a run. `steps` overrides `epochs`; `eval_every` none: once an epoch;
  `eval_start`: before the first step too.

  `max_length`: tokens a row is cut to, 0 for as many as the model has positions. `accumulate`: micro-batches a step.
  `buckets`: the most lengths that batches are padded to, each one compile. `grouped`: rows of like length together.
  `packing`: several documents in each training row of `max_length` tokens, for tasks that predict tokens.
  `patience`: evaluations without a better metric (by more than `min_delta`) after which the run ends.

  `mixout`: share of the entries of trained matrices that a step computes with at their pretrained values.
  `max_nonfinite`: a step whose loss or gradient is not finite makes no update; so many in a row end the run.
  `plateau_factor`: the rates of `optim.schedule=plateau` are multiplied by it after each `plateau_patience` evaluations
  in a row without a better metric, down to the share `plateau_min` of what they were. `ema`: decay of an exponential
  average of the trainable parameters, 0 for none; `swa_start`: the share of the run after which their equal mean
  begins, none for none. Both are evaluated beside the parameters; `checkpoint.weights` says which count. `diagnostics`:
  'norms' logs norms by group of the optimizer, 'all' also the curvature at evaluations and the loss along the last
  update.
  """

  steps: int | None = setting(None, low=1, high=2**31 - 1)
  epochs: float = setting(1.0, above=0, high=1e6)
  batch_size: int = setting(32, low=1)
  accumulate: int = setting(1, low=1)
  eval_batch_size: int = setting(64, low=1)
  max_length: int = setting(128, low=0)
  buckets: int = setting(4, low=1)
  grouped: bool = True
  packing: bool = False
  eval_every: int | None = setting(None, low=1)
  eval_start: bool = False
  log_every: int = setting(10, low=1)
  patience: int | None = setting(None, low=1)
  min_delta: float = setting(0.0, low=0)
  mixout: float = setting(0.0, low=0, below=1)
  max_nonfinite: int = setting(3, low=1)
  plateau_factor: float = setting(0.5, above=0, below=1)
  plateau_patience: int = setting(2, low=1)
  plateau_min: float = setting(0.0, low=0, high=1)
  ema: float = setting(0.0, low=0, below=1)
  swa_start: float | None = setting(None, low=0, below=1)
  diagnostics: str = setting('none', choices=diagnostics.KINDS)
  dropout_bits: str = setting('hash', choices=rng.KINDS)


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
  """`every`: steps between saves, none for each evaluation. `keep_last`: two, so that there is
  one before a newest that is damaged. `metric`: what "best" means, '' for the task's own. `weights`: which parameters
  it is of, and are predicted and exported with: 'raw', as they are trained (of a schedule-free optimizer, those that it
  evaluates with), or the average of `train.ema` or `train.swa_start`."""

  every: int | None = setting(None, low=1)
  keep_last: int = setting(2, low=1)
  keep_best: int = setting(1, low=1)
  metric: str = ''
  weights: str = setting('raw', choices=('raw', 'ema', 'swa'))


@dataclasses.dataclass(frozen=True)
class MeshSettings:
  """`shape`: such as 'data=4,fsdp=2'; '' for all devices that divide the batch on `data`."""

  shape: str = ''


def parts_of(text: str) -> set[str]:
  """The parts that `model.adapter_parts` names, without 'all'. Raises `ValueError` for others than `PARTS`."""
  parts = {p.strip() for p in text.split(',')}
  for odd in sorted(parts - {*PARTS}):
    raise ValueError(f'adapter_parts={text!r}: {odd!r} is none of {", ".join(PARTS)}{did_you_mean(odd, PARTS)}')
  return {*PARTS[1:]} if 'all' in parts else parts


PLAIN = {
  'model': ModelSettings,
  'data': preparation.Config,
  'precision': PrecisionSettings,
  'train': TrainSettings,
  'adversarial': adversarial.Config,
  'privacy': private.Config,
  'checkpoint': CheckpointSettings,
  'mesh': MeshSettings,
}
COMPONENTS = {'task': 'tasks', 'method': 'peft', 'objective': 'objectives', 'optim': 'optim'}  # section -> folder


@dataclasses.dataclass(frozen=True)
class Settings:
  """A config read back and checked. `names` and `modules` hold the component of each section of `COMPONENTS`."""

  seed: int
  model: ModelSettings
  data: preparation.Config
  precision: PrecisionSettings
  train: TrainSettings
  adversarial: adversarial.Config
  privacy: private.Config
  checkpoint: CheckpointSettings
  mesh: MeshSettings
  task: Any
  method: Any
  objective: Any
  optim: Any
  names: Mapping[str, str]
  modules: Mapping[str, ModuleType]


def arguments(text: str, **defaults: str) -> types.SimpleNamespace:
  """The argument string of a recipe (`data=DIR,method=lora`) over its defaults; an unknown name is an `InputError`, and
  so is another value than yes or no where the default is one of these."""
  got = dict(defaults)
  for part in filter(None, (p.strip() for p in (text or '').split(','))):
    name, equals, value = part.partition('=')
    if name not in defaults or not equals:
      raise InputError(
        f'--config=...:{text}: {part!r} is no argument of this recipe{did_you_mean(name, defaults)}\n'
        f'  arguments: {", ".join(f"{k}={v}" for k, v in defaults.items())}'
      )
    if defaults[name] in _SWITCH and value not in _SWITCH:
      raise InputError(f'--config=...:{text}: {name} is yes or no, not {value!r}{did_you_mean(value, _SWITCH)}')
    got[name] = value
  return types.SimpleNamespace(**got)


def recipe(*, task: str, method: str, optim: str, objective: str = '', seed: int = 0) -> config_dict.ConfigDict:
  """A config with every section at its defaults, for a recipe to fill."""
  config = config_dict.ConfigDict({'seed': seed})
  for name, dataclass in PLAIN.items():
    config[name] = settings.section(dataclass)
  task_module = lookup.component('tasks', task, field='task.name')
  names = {'task': task, 'method': method, 'objective': objective or task_module.OBJECTIVE, 'optim': optim}
  for name, component in names.items():
    config[name] = component_section(name, component)
  return config


def component_section(section: str, name: str, **values: Any) -> config_dict.ConfigDict:
  """A component's section, `name` first, with its defaults where `values` has nothing."""
  out = config_dict.ConfigDict({'name': name})
  out.update(settings.section(dataclass_of(section, name), **values))
  return out


def set_rate(config: config_dict.ConfigDict, rate: float) -> None:
  """Sets `optim.learning_rate` to what is right with AdamW; an optimizer whose usual rate is higher (sgd) gets as many
  times more, and one that finds its rate by itself (`FINDS_RATE`) keeps its own."""
  module = component('optim', config.optim.name)
  more = max(1.0, chain.config_of(module)().learning_rate / chain.Common().learning_rate)
  if not getattr(module, 'FINDS_RATE', False):
    config.optim.learning_rate = float(f'{rate * more:.6g}')


def component(section: str, name: str) -> ModuleType:
  """The module of a section's component; of a method 'lora+bitfit', what stands for one."""
  find = lambda n: lookup.component(COMPONENTS[section], n, field=f'{section}.name')  # noqa: E731
  if section == 'method' and isinstance(name, str) and '+' in name:
    parts = name.split('+')
    if len({*parts}) < len(parts):
      raise InputError(f'method.name={name!r} names a method twice')
    return together.component({n: find(n) for n in parts})
  return find(name)


def dataclass_of(section: str, name: str = '') -> type:
  """The dataclass that a section is read through; `name` is the component's, in the sections of `COMPONENTS`."""
  if section in PLAIN:
    return PLAIN[section]
  module = component(section, name)
  return chain.config_of(module) if section == 'optim' else module.Config


def read(config: Mapping[str, Any]) -> Settings:
  """The checked settings of a config. Raises `InputError` for unknown sections, keys, components, types and ranges."""
  known = ['seed', *PLAIN, *COMPONENTS]
  config = {'adversarial': {}, 'privacy': {}, **config}  # which configs of older runs do not have
  for key in config:
    if key not in known:
      raise InputError(f'unknown config key {key}{did_you_mean(key, known)}\n  known: {", ".join(known)}')
  missing = [k for k in known if k not in config]
  if missing:
    raise InputError(f'the config lacks the section {missing[0]}; build it with ftlib.recipe.recipe(...)')
  flat = [n for n in known[1:] if not isinstance(config[n], Mapping | config_dict.ConfigDict)]
  if flat:
    raise InputError(f'{flat[0]}={config[flat[0]]!r} is a section of the config; set {flat[0]}.FIELD')
  got: dict[str, Any] = {n: settings.read(d, config[n], where=n) for n, d in PLAIN.items()}
  names, modules = {}, {}
  for section in COMPONENTS:
    values = dict(config[section])
    names[section] = values.pop('name', '')
    modules[section] = component(section, names[section])
    got[section] = settings.read(dataclass_of(section, names[section]), values, where=section)
  usual = getattr(modules['task'], 'OBJECTIVE', names['objective'])
  if '.' not in names['objective'] and '.' not in usual and names['objective'] != usual:
    raise InputError(
      f'objective.name={names["objective"]} does not fit task.name={names["task"]}, whose batches are for {usual}; '
      'take that, or an objective of your own by its dotted name'
    )
  seed = config['seed']
  if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
    raise InputError(f'seed={seed!r}: wanted a whole number from 0 to 2147483647')
  if got['precision'].trainable != 'float32':
    raise InputError(
      'precision.trainable=bfloat16: trainable parameters are kept in float32, because a bfloat16 parameter of 1 does '
      'not change by an update below 0.004; precision.compute=bfloat16 has the speed, and precision.frozen=bfloat16 '
      'halves the memory of the frozen ones'
    )
  average = {'ema': 'train.ema=0.999', 'swa': 'train.swa_start=0.75'}.get(got['checkpoint'].weights)
  if average and not {'ema': got['train'].ema, 'swa': got['train'].swa_start is not None}[got['checkpoint'].weights]:
    raise InputError(f'checkpoint.weights={got["checkpoint"].weights}: there is no such average; set {average}')
  return Settings(seed=seed, names=names, modules=modules, **got)


def pooled(s: Settings, usual: str, said: str = '') -> Settings:
  """The settings with what the head reads, where `task.pooling` leaves it open: what the model's folder says of itself,
  else what is usual in the family, where the task takes that, else the first token."""
  if getattr(s.task, 'pooling', None) != '':
    return s
  pooling = next(p for p in (said, usual, 'cls') if p and p in settings.choices(s.task, 'pooling'))
  return dataclasses.replace(s, task=dataclasses.replace(s.task, pooling=pooling))


def expanded(config: Mapping[str, Any]) -> config_dict.ConfigDict:
  """A config with every field of every section, in the order of their dataclasses. Raises what `read` raises."""
  s = read(config)
  out = config_dict.ConfigDict({'seed': s.seed})
  for name in PLAIN:
    out[name] = settings.section(PLAIN[name], **dataclasses.asdict(getattr(s, name)))
  for name in COMPONENTS:
    out[name] = component_section(name, s.names[name], **dataclasses.asdict(getattr(s, name)))
  return out
