"""PEFT's `adapter_config.json` and a method's settings: the one from the other, both ways.

What follows from a method's Config alone is said by its own file (`peft_config`, `config_of_peft`, and where numbers go
by module `peft_patterns`, `patterns_of_peft`). Here is what is the same for all: the names of modules, which of them
are adapted and which are saved whole, and that nothing which changes the numbers is ignored.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from ftlib import peft_fused
from ftlib.base import lookup, trees
from ftlib.base.errors import InputError, listing
from ftlib.models.layers import Embed, Proj
from ftlib.models.model import Model
from ftlib.peft.method import added

VERSION = '0.21.2'  # of PEFT, whose format this is
TASKS = {  # by the model's head
  'classify': 'SEQ_CLS',
  'lm': 'CAUSAL_LM',
  'tag': 'TOKEN_CLS',
  'span': 'QUESTION_ANS',
  'embed': 'FEATURE_EXTRACTION',
}
_HEADS = {  # what PEFT saves of every model for a task besides `modules_to_save`
  'SEQ_CLS': ('classifier', 'score'),
  'TOKEN_CLS': ('classifier', 'score'),
  'QUESTION_ANS': ('qa_outputs',),
}
HEADS = tuple(dict.fromkeys(n for names in _HEADS.values() for n in names))
PROMPTS = ('PROMPT_TUNING', 'P_TUNING', 'PREFIX_TUNING')  # types that wrap no module of the model
INPUTS = {'IA3': ('feedforward_modules', 'feedforward', 'in_scale')}  # a second list of modules: key, field, leaf
_SITES = ('target_modules', 'exclude_modules', 'layers_to_transform', 'layers_pattern', 'modules_to_save')
_OFF = (None, False, '', 'none', [], {})  # how PEFT's own features stand that are not used
_HARMLESS = frozenset({  # keys that change no number of a trained adapter, or only beside one that is refused
  *('peft_type', 'auto_mapping', 'base_model_name_or_path', 'inference_mode', 'peft_version', 'revision', 'task_type'),
  *('ensure_weight_tying', 'megatron_core', 'qalora_group_size', 'runtime_config', 'eps', 'mini_r', 'mask_type'),
  *('random_seed', 'rank_dropout', 'rank_dropout_scale', 'module_dropout', 'use_effective_conv2d', 'prefix_projection'),
  *('encoder_reparameterization_type', 'encoder_hidden_size', 'encoder_num_layers', 'encoder_dropout'),
  *('prompt_tuning_init', 'prompt_tuning_init_text', 'tokenizer_name_or_path', 'tokenizer_kwargs'),
})  # fmt: skip
_OF_TYPE = {  # AdaLoRA's ranks are `init_r` and what its tensors have; the others are seen to where they matter
  'ADALORA': ('r', 'rank_pattern'),
  'OFT': ('num_cayley_neumann_terms',),
  'VERA': ('save_projection',),
}


@dataclasses.dataclass(frozen=True)
class Asked:
  """The settings of a method that an adapter_config.json stands for: plain `fields`, and `sites` {field: sites}."""

  fields: dict[str, Any]
  sites: dict[str, list[str]]

  def settings(self, model: Model) -> dict[str, Any]:
    """All as fields of the method's Config."""
    return self.fields | {field: pattern(names, len(model.blocks)) for field, names in self.sites.items() if names}


def task_of(model: Model) -> str:
  """PEFT's name of what a model is for."""
  return TASKS.get(getattr(model.trunk, 'kind', ''), TASKS['classify'])


def heads_of(values: Mapping[str, Any]) -> tuple[str, ...]:
  """What PEFT saves besides `modules_to_save` by an adapter_config.json."""
  return _HEADS.get(values.get('task_type'), ())


def torch_names(model: Model) -> dict[str, str]:
  """{parameter of the base: its name in the Hugging Face model}; without a head that is AutoModel, whose names lack the
  first part ('bert.')."""
  names = model.hf_names()
  if task_of(model) != TASKS['embed']:
    return names
  return {n: h.partition('.')[2] for n, h in names.items()}


def torch_modules(model: Model) -> dict[str, str]:
  """{our module: its name in the Hugging Face model}."""
  return {n.rpartition('/')[0]: h.rpartition('.')[0] for n, h in torch_names(model).items()}


def covered(model: Model, ends: Sequence[str]) -> tuple[str, ...]:
  """The base parameters of the modules that PEFT saves for `modules_to_save=ends`. It goes by the end of a name, so
  'classifier' is DistilBERT's pre_classifier as well, and all that is inside of RoBERTa's classifier."""

  def inside(name: str) -> bool:
    path = name.split('.')[:-1]
    return any('.'.join(path[:i]).endswith(tuple(ends)) for i in range(1, len(path) + 1))

  return tuple(n for n, h in torch_names(model).items() if inside(h))


def copied(module: ModuleType, config: Any, model: Model, save: Sequence[str]) -> tuple[str, ...]:
  """The base parameters of the modules that a method with a `COPY` trains, in PEFT a copy of each, but for those of
  modules that are saved whole; none for other methods."""
  if not hasattr(module, 'COPY'):
    return ()
  names = list(model.hf_names())
  chosen = {n.rpartition('/')[0] for n in trees.matching(config.target, names, field='method.target')}
  whole = covered(model, save) if save else ()
  return tuple(n for n in names if n.rpartition('/')[0] in chosen and n not in whole)


def of_run(module: ModuleType, config: Any, model: Model, *, base: str, save: Sequence[str]) -> dict[str, Any]:
  """The adapter_config.json of an adapted model."""
  kind, names = module.PEFT_TYPE, torch_modules(model)
  values = {
    'auto_mapping': None,
    'base_model_name_or_path': base,
    'inference_mode': True,
    'modules_to_save': [*save] or None,
    'peft_type': kind,
    'peft_version': VERSION,
    'revision': None,
    'task_type': task_of(model),
    **module.peft_config(config),
  }
  if kind in PROMPTS:
    values |= _sizes(model, kind)
  else:
    sites, copies = adapted(module, config, model), hasattr(module, 'COPY')
    at = {s: names[s.rpartition('/')[0] if copies else s] for of in sites.values() for s in of}
    bare = [s for s in at if not copies and not _module(model, s)]
    if bare:
      raise InputError(
        f'--format=peft: PEFT adapts modules, and transformers holds these as bare parameters:\n{listing(bare)}\n'
        '  export merged weights with --format=hf'
      )
    values['target_modules'] = [*dict.fromkeys(at.values())]
    if kind in INPUTS:
      values[INPUTS[kind][0]] = [*dict.fromkeys(at[s] for s in sites[INPUTS[kind][1]])]
    if hasattr(module, 'peft_patterns'):
      values |= module.peft_patterns(config, at)
    values |= peft_fused.wider(values, model, at)
    if 'fan_in_fan_out' in values or (model.straight and not copies):
      values['fan_in_fan_out'] = model.straight
  return dict(sorted(values.items()))


def _module(model: Model, site: str) -> bool:
  """Whether a site is a module in transformers."""
  names = model.hf_names()
  return (names.get(f'{site}/kernel') or names[f'{site}/table']).endswith('.weight')


def adapted(module: ModuleType, config: Any, model: Model) -> dict[str, list[str]]:
  """{field of the method's Config: the sites that it put adapters on}; of a method with a `COPY`, instead of sites, the
  names of the base parameters that it trains so."""
  if hasattr(module, 'COPY'):
    among = copied(module, config, model, heads_of({'task_type': task_of(model)}))
    return {'target': [n for n in among if re.search(config.target, n)]}
  info, modules = model.info(), model.modules()
  leaf = INPUTS.get(module.PEFT_TYPE, ('', '', ''))[2]
  out = _fields(module)
  for site in dict.fromkeys(n.split('/adapter/')[0] for n in info if added(n)):
    field = 'embeddings' if type(modules[site]) is Embed else 'target'
    out.setdefault(INPUTS[module.PEFT_TYPE][1] if leaf and f'{site}/adapter/{leaf}' in info else field, []).append(site)
  return out


def _fields(module: ModuleType) -> dict[str, list[str]]:
  """The fields of a method that hold patterns of sites with a module in PEFT, without sites."""
  if module.PEFT_TYPE in PROMPTS:
    return {}
  known = {f.name for f in dataclasses.fields(module.Config)}
  return {f: [] for f in ('target', 'embeddings', 'feedforward') if f in known}


def read(values: Mapping[str, Any], module: ModuleType, model: Model, *, where: str) -> Asked:
  """What `values`, an adapter_config.json at `where`, asks of a method on `model`, with or without adapters.

  Raises `InputError` with every setting that ftlib does not have and that changes the numbers.
  """
  plain = {k: v for k, v in values.items() if not (k == 'fan_in_fan_out' and model.straight)}  # PEFT sees to it itself
  seen = _Seen({k: v for k, v in plain.items() if k not in _SITES})
  try:
    fields = dict(module.config_of_peft(seen))
  except InputError as e:
    raise InputError(f'{where}: {str(e).removeprefix("adapter_config.json: ")}') from e
  except (KeyError, TypeError, ValueError, AttributeError) as e:
    raise InputError(f'{where} lacks a setting of {module.PEFT_TYPE}, or has one of a wrong kind: {e!r}') from e
  odd = []
  if values.get('task_type') not in (task_of(model), None):
    odd.append(f'task_type={values["task_type"]!r} (only {task_of(model)})')
  sizes = _sizes(model, module.PEFT_TYPE) if module.PEFT_TYPE in PROMPTS else {}
  odd += [f'{k}={values[k]!r} (the model has {v})' for k, v in sizes.items() if values.get(k) not in (None, v)]
  known = {*seen.seen, *sizes, *_HARMLESS, *_OF_TYPE.get(module.PEFT_TYPE, ()), INPUTS.get(module.PEFT_TYPE, ('',))[0]}
  odd += [f'{k}={v!r}' for k, v in seen.values.items() if k not in known and not _idle(k, v)]
  sites = _fields(module)
  if sites:
    for field, site in _targets(values, module, model):
      if field in sites:
        sites[field].append(site)
      else:
        odd.append(
          f'target_modules={values["target_modules"]!r}: an adapter on {site}, which {field} would have to name'
        )
    if not any(sites.values()):
      odd.append(f'target_modules={values.get("target_modules")!r} names no module of this model')
  if odd:
    raise InputError(
      f'{where}: settings that ftlib does not implement for {module.PEFT_TYPE}, and will not ignore:\n'
      f'{listing(odd, limit=len(odd))}\n  merge the adapter with peft (merge_and_unload), or train it anew'
    )
  if hasattr(module, 'patterns_of_peft'):
    names = torch_modules(model)
    fields |= module.patterns_of_peft(values, {s: names[s] for of in sites.values() for s in of})
  return Asked(fields, sites)


def _idle(key: str, value: Any) -> bool:
  """Whether a setting that the method's file does not look at is off, or says how values started that are here."""
  if value in _OFF or key in _HARMLESS:
    return True
  return key.startswith('init_') and (value is True or isinstance(value, int | float))


class _Seen(Mapping):
  """The values of an adapter_config.json; `seen` are those that somebody looked at."""

  def __init__(self, values: Mapping[str, Any]):
    self.values, self.seen = values, set()

  def __getitem__(self, key: str) -> Any:
    self.seen.add(key)
    return self.values[key]

  def __iter__(self) -> Iterator[str]:
    return iter(self.values)

  def __len__(self) -> int:
    return len(self.values)


def _targets(values: Mapping[str, Any], module: ModuleType, model: Model) -> Iterator[tuple[str, str]]:
  """(field, site) of the modules that PEFT would adapt, by its rules: lists match the ends of names, texts all of one;
  modules that are saved whole are left out."""
  second = INPUTS.get(module.PEFT_TYPE)
  save = [*(values.get('modules_to_save') or ()), *heads_of(values)]
  names, copies = torch_modules(model), hasattr(module, 'COPY')
  for site in [*model.hf_names()] if copies else [*model.sites(Proj), *model.sites(Embed)]:
    name = names[site.rpartition('/')[0] if copies else site]
    whole = any(re.match(rf'(^|.*\.){m}($|\..*)', name) for m in save)
    if whole or _matches(values.get('exclude_modules'), name) or not _matches(values.get('target_modules'), name):
      continue
    if not _in_layers(values.get('layers_to_transform'), values.get('layers_pattern'), name):
      continue
    inputs = second and _matches(values.get(second[0]), name)
    table = not copies and type(model.modules()[site]) is Embed
    yield second[1] if inputs else 'embeddings' if table else 'target', site


def _matches(wanted: Any, name: str) -> bool:
  if isinstance(wanted, str):
    return re.fullmatch(wanted, name) is not None
  return any(name == w or name.endswith(f'.{w}') for w in wanted or ())


def _in_layers(layers: Any, patterns: Any, name: str) -> bool:
  if layers is None or layers == []:
    return True
  patterns = [patterns] if isinstance(patterns, str) else patterns or [r'[^.]*']
  found = next((m for p in patterns if (m := re.match(rf'(?:^|.*?\.){p}\.(\d+)\.', name))), None)
  return found is not None and int(found[1]) in ([layers] if isinstance(layers, int) else layers)


def _sizes(model: Model, kind: str) -> dict[str, int]:
  """What a type of `PROMPTS` says of the model; a prefix is as wide as the keys. Raises `InputError` for models that
  PEFT cannot put it on."""
  c = model.config
  if kind == 'PREFIX_TUNING' and model.order:
    raise InputError('PEFT has no prefix for layers that share their parameters')
  if kind != 'PREFIX_TUNING' and (small := getattr(c, 'embedding', c.embed)) != c.embed:
    raise InputError(f'PEFT takes embeddings to be as large as hidden states, {c.embed}; those here are {small}')
  groups = getattr(c, 'kv_heads', c.heads) if kind == 'PREFIX_TUNING' else c.heads
  return {
    'token_dim': groups * getattr(c, 'head_dim', c.embed // c.heads) if kind == 'PREFIX_TUNING' else c.embed,
    'num_layers': c.layers,
    'num_attention_heads': groups,
    'num_transformer_submodules': 1,
  }


# For people.


def pattern(sites: Sequence[str], layers: int) -> str:
  """A pattern that is found in these sites alone, of a model with so many layers."""
  of: dict[str, list[int]] = {}
  rest = []
  for site in sites:
    first, _, inside = site.partition('/')
    if first == 'layers':
      number, _, inside = inside.partition('/')
      of.setdefault(inside, []).append(int(number))
    else:
      rest.append(site)
  groups: dict[str, list[str]] = {}
  for inside, numbers in of.items():
    which = r'\d+' if len(numbers) == layers else f'({"|".join(map(str, sorted(numbers)))})'
    groups.setdefault(which, []).append(inside)
  parts = [f'layers/{which}/({"|".join(names)})' for which, names in groups.items()] + rest
  return f'^({"|".join(parts)})$'


def flags(fields: Mapping[str, Any], defaults: Any = None) -> str:
  """Settings of a method as they are written on a command line, without those that stand at `defaults`."""
  shown = {k: v for k, v in fields.items() if v != getattr(defaults, k, ...)}
  return ' '.join(f'--config.method.{k}={shlex.quote(_text(v))}' for k, v in shown.items())


def _text(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value) if isinstance(value, bool) else str(value)


def candidates(
  values: Mapping[str, Any], model: Model, *, where: str, also: Mapping[str, ModuleType] | None = None
) -> dict[str, tuple[ModuleType, dict[str, Any]]]:
  """{method: (its file, settings)} of ftlib's methods, and `also`, that an adapter_config.json can be read by."""
  found = {}
  for name in dict.fromkeys([*(also or ()), *lookup.names('peft')]):
    try:
      module = (also or {}).get(name) or lookup.component('peft', name, field='method.name')
      if getattr(module, 'PEFT_TYPE', None) == values['peft_type']:
        found[name] = module, read(values, module, model, where=where).settings(model)
    except InputError:
      continue
  return found
