"""One LoRA of several: python -m ftlib.merge --adapters=A,B --weights=0.5,0.5 --how=ties --density=0.2 --output=D

Each adapter is a folder of PEFT or a run folder; D is a folder of PEFT, for `model.adapter=D` and for peft. With w_i
the weights, s_i the scales alpha / rank (or alpha / sqrt(rank)) and A_i, B_i the factors at one module, `--how` is

  linear       A = sum sqrt(|w_i s_i|) sign(w_i) A_i,  B = sum sqrt(|w_i s_i|) B_i: cheap, and no sum of the updates
  cat          A = [w_i s_i A_i], B = [B_i]: exactly sum w_i s_i B_i A_i, of the ranks' sum
  svd          the same sum cut to the largest of the ranks, by its singular values: U S and V
  ties         of each factor's entries the `density` of largest magnitude are kept, the sign of their sum is elected,
               and those of that sign are weighted as in `linear` and averaged (Yadav et al. 2023, algorithm 1)
  dare_linear  of each factor's entries a random `density` is kept and divided by it (Yu et al. 2024, equations 3-5),
               then `linear`
  dare_ties    the same, then the signs and the mean of `ties`

These are the formulas of peft's `add_weighted_adapter`. The factors carry the scale, so D has alpha = rank. An adapter
that lacks a module has no part in it. Heads, which have no common start, are averaged by the weights over their sum, or
taken from one adapter (`--head=B`).
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from ftlib import cli

import numpy as np  # isort: skip - cli sets the environment first

from ftlib import export, folder, peft_config, peft_folder, recipe
from ftlib.base.errors import InputError, did_you_mean, listing
from ftlib.io import hf
from ftlib.io import workdir as files

DENSITY = 0.2  # Yadav et al. 2023 keep a fifth
_LORA = re.compile(r'base_model\.model\.(.+)\.(?:lora_(A|B)\.weight|lora_embedding_(A|B))')


@dataclasses.dataclass(frozen=True)
class Lora:
  """A LoRA in memory: `factors` {module: (A [R, inputs], B [outputs, R])}, `scales` {module: number}, other tensors by
  key (`saved`, the head), and its folder. A table's module has A [R, rows] and B [size, R]."""

  name: str
  source: peft_folder.Folder
  factors: dict[str, tuple[np.ndarray, np.ndarray]]
  scales: dict[str, float]
  saved: dict[str, np.ndarray]
  tables: frozenset[str]


def merge(
  adapters: Sequence[str],
  output: pathlib.Path,
  *,
  how: str = 'linear',
  weights: Sequence[float] | None = None,
  density: float | None = None,
  seed: int = 0,
  head: str = 'mean',
) -> list[str]:
  """Writes the folder of the merged adapter; gives notes. `weights` are equal and sum to 1 by default.

  Raises `InputError` where `output` is not empty; for an unknown `how`; for weights of another number or not finite; a
  density outside (0, 1] or where none is used; adapters that are no LoRA, of different bases, of different ranks where
  factors are added up, and of heads that cannot be averaged.
  """
  _check(adapters, how, weights, density, head)
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise InputError(f'--output={output} is not empty; nothing is overwritten')
  weights = [1 / len(adapters)] * len(adapters) if weights is None else list(weights)
  with tempfile.TemporaryDirectory() as scratch:
    loras = [read(path, pathlib.Path(scratch) / str(i)) for i, path in enumerate(adapters)]
  notes = _check_bases(loras)
  _check_factors(loras, how)
  saved, labels = _heads(loras, weights, head)
  density = DENSITY if density is None else density
  factors = {}
  for module in dict.fromkeys(m for l in loras for m in l.factors):
    mine = [
      (l.factors[module], w * l.scales[module], i)
      for i, (l, w) in enumerate(zip(loras, weights))
      if module in l.factors
    ]
    rngs = [np.random.default_rng([seed, i, zlib.crc32(module.encode())]) for _, _, i in mine]
    factors[module] = combined([f for f, _, _ in mine], [w for _, w, _ in mine], how=how, density=density, rngs=rngs)
  record = {'adapters': list(adapters), 'weights': weights, 'how': how, 'seed': seed, 'density': density}
  _write(output, loras, factors, saved, labels, record)
  if wide := [m for m, (a, b) in factors.items() if len(a) > min(a.shape[1], len(b))]:
    notes.append(f'{wide[0]} has more ranks than rows or columns, which ftlib does not read back; --how=svd has fewer')
  return notes


def combined(
  factors: Sequence[tuple[np.ndarray, np.ndarray]],
  weights: Sequence[float],
  *,
  how: str,
  density: float = 1.0,
  rngs: Sequence[np.random.Generator] = (),
) -> tuple[np.ndarray, np.ndarray]:
  """(A, B) of one module from those of several adapters; `weights` have the scales in them, one generator each."""
  a, b = ([f[k] for f in factors] for k in (0, 1))
  if how == 'cat':
    return np.concatenate([w * x for w, x in zip(weights, a, strict=True)], 0), np.concatenate(b, 1)
  if how == 'svd':
    return _cut(a, b, weights, rank=max(map(len, a)))
  roots = [math.sqrt(abs(w)) for w in weights]
  signed = [math.copysign(r, w) for r, w in zip(roots, weights, strict=True)]
  return _HOW[how](a, signed, density, rngs), _HOW[how](b, roots, density, rngs)


def _cut(
  a: Sequence[np.ndarray], b: Sequence[np.ndarray], weights: Sequence[float], *, rank: int
) -> tuple[np.ndarray, np.ndarray]:
  """(V, U S) of the first `rank` singular values of sum w B A, by those of a matrix of the ranks' sum alone."""
  right = np.concatenate([w * x.astype(np.float64) for w, x in zip(weights, a, strict=True)], 0)
  (q_b, r_b), (q_a, r_a) = np.linalg.qr(np.concatenate(b, 1).astype(np.float64)), np.linalg.qr(right.T)
  u, sizes, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
  return vt[:rank] @ q_a.T, q_b @ (u[:, :rank] * sizes[:rank])


def trimmed(x: np.ndarray, density: float) -> np.ndarray:
  """The floor(density * size) entries of largest magnitude, the others 0."""
  count = int(density * x.size)
  out = np.zeros(x.size, x.dtype)
  kept = np.argsort(-np.abs(x), axis=None, kind='stable')[:count]
  out[kept] = x.reshape(-1)[kept]
  return out.reshape(x.shape)


def dropped(x: np.ndarray, density: float, rng: np.random.Generator) -> np.ndarray:
  """Each entry kept with the probability `density` and divided by it, so that the expectation is `x`."""
  return np.where(rng.random(x.shape) < density, x / density, 0).astype(x.dtype)


def elected(parts: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
  """The mean over the entries that have the sign of their sum (+ where it is 0), each weighted; 0 where none has."""
  stacked = np.stack(parts)
  agrees = np.sign(stacked) == np.where(stacked.sum(0) >= 0, 1, -1)
  return _sum(stacked * agrees, weights) / np.maximum(agrees.sum(0), 1)


def _sum(parts: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
  return sum(w * x for w, x in zip(weights, parts, strict=True))


_HOW: dict[str, Callable[..., np.ndarray]] = {  # of one kind of factor: (parts, weights, density, generators)
  'linear': lambda parts, weights, density, rngs: _sum(parts, weights),
  'ties': lambda parts, weights, density, rngs: elected([trimmed(x, density) for x in parts], weights),
  'dare_linear': lambda parts, weights, density, rngs: _sum(map(dropped, parts, [density] * len(parts), rngs), weights),
  'dare_ties': lambda parts, weights, density, rngs: elected(
    list(map(dropped, parts, [density] * len(parts), rngs)), weights
  ),
}
HOW = ('linear', 'cat', 'ties', 'dare_linear', 'dare_ties', 'svd')


# Reading.


def read(path: str, scratch: pathlib.Path) -> Lora:
  """A folder of PEFT, or a run folder, which is exported to `scratch`. Raises `InputError` for what is no LoRA."""
  where, field = pathlib.Path(path).expanduser(), f'--adapters={path}'
  if not peft_folder.is_one(where):
    name = folder.read(where, field=field)[0]['method']['name']
    if getattr(recipe.component('method', name), 'PEFT_TYPE', None) != 'LORA':
      raise InputError(f'{field} was trained with method.name={name}; only LoRA can be merged with others')
    export.export(where, scratch, format='peft')
    where = scratch
  source = peft_folder.opened(where, field=field)
  values, weights = source.values, source.weights
  if values['peft_type'] != 'LORA':
    raise InputError(f'{field} is an adapter of PEFT type {values["peft_type"]}; only LoRA can be merged with others')
  odd = [k for k in ('use_dora', 'lora_bias', 'use_qalora', 'fan_in_fan_out', 'layer_replication') if values.get(k)]
  odd += ['bias'] if values.get('bias', 'none') != 'none' else []
  odd += ['init_lora_weights'] if str(values.get('init_lora_weights')).partition('_')[0] in ('pissa', 'olora') else []
  if odd:
    raise InputError(
      f'{field}: what it computes is no plain sum of the weights and a LoRA, so that it cannot be merged with others:\n'
      + listing(f'{k} = {values[k]!r}' for k in odd)
    )
  halves: dict[str, dict[str, np.ndarray]] = {}
  saved, tables = {}, set()
  for key in weights.where:
    if found := _LORA.fullmatch(key):
      halves.setdefault(found[1], {})[found[2] or found[3]] = weights.read(key)
      tables |= {found[1]} if found[3] else set()
    elif '.lora_' in key:
      raise InputError(f'{field}: {key} is no factor of a LoRA')
    else:
      saved[key] = weights.read(key)
  lone = [m for m, h in halves.items() if len(h) < 2 or len(h['A']) != h['B'].shape[1]]
  if lone or not halves:
    raise InputError(f'{field} lacks A or B, of one rank, of {lone[0] if lone else "any module"}')
  factors = {m: (h['A'], h['B']) for m, h in halves.items()}
  scales = {m: _scale(values, m, len(a), field) for m, (a, _) in factors.items()}
  return Lora(path, source, factors, scales, saved, frozenset(tables))


def _scale(values: dict[str, Any], module: str, rank: int, field: str) -> float:
  def of(patterns: str, default: Any) -> Any:
    patterns = values.get(patterns) or {}
    key = next((k for k in patterns if re.match(rf'(.*\.)?({k})$', module)), None)
    return default if key is None else patterns[key]

  wanted = of('rank_pattern', values.get('r', 8))
  if wanted != rank:
    raise InputError(f'{field}: {module} has rank {rank} in {peft_folder.TENSORS}, {wanted} in {peft_folder.CONFIG}')
  alpha = of('alpha_pattern', values.get('lora_alpha', 8))
  return alpha / (math.sqrt(rank) if values.get('use_rslora') else rank)


# Checks.


def _check(
  adapters: Sequence[str], how: str, weights: Sequence[float] | None, density: float | None, head: str
) -> None:
  if how not in HOW:
    raise InputError(f'--how={how} is none of {", ".join(HOW)}{did_you_mean(how, HOW)}')
  if len(adapters) < 2:
    raise InputError(f'--adapters names {len(adapters)}; give two or more folders with commas between')
  if weights is not None and len(weights) != len(adapters):
    raise InputError(f'--weights has {len(weights)} numbers for {len(adapters)} adapters; give one for each')
  if weights is not None and not all(map(math.isfinite, weights)):
    raise InputError(f'--weights={",".join(map(str, weights))} are not all finite numbers')
  sparse = how.startswith(('ties', 'dare'))
  if density is not None and not sparse:
    raise InputError(f'--density={density} has no meaning for --how={how}; leave it out')
  if density is not None and not 0 < density <= 1:
    raise InputError(f'--density={density}: the share of entries that is kept is above 0 and at most 1')
  if head != 'mean' and head not in adapters:
    known = ('mean', *adapters)
    raise InputError(f'--head={head} is none of {", ".join(known)}{did_you_mean(head, known)}')


def _check_bases(loras: Sequence[Lora]) -> list[str]:
  """Notes. Raises `InputError` where two were trained on different bases."""
  first, notes = loras[0], []
  there = lambda l: str(l.source.values.get('base_model_name_or_path') or '')  # noqa: E731
  for other in loras[1:]:
    prints = [l.source.ours.get('weights') for l in (first, other)]
    names = [os.path.basename(there(l).rstrip('/')) for l in (first, other)]
    if None not in prints and prints[0] != prints[1]:
      how = f'{there(first)} ({prints[0][:12]}) and {there(other)} ({prints[1][:12]})'
    elif None in prints and all(names) and names[0] != names[1]:
      how = f'{there(first)} and {there(other)}'
    else:
      if None in prints:
        notes.append(f'{first.name} and {other.name}: that their bases are the same is known by their names alone')
      continue
    raise InputError(f'--adapters: {first.name} and {other.name} were trained on different base models:\n  {how}')
  return notes


def _check_factors(loras: Sequence[Lora], how: str) -> None:
  """Raises `InputError` where modules differ in shape, or in rank where factors are added up."""
  for module in dict.fromkeys(m for l in loras for m in l.factors):
    mine = [(l.name, *l.factors[module]) for l in loras if module in l.factors]
    shapes = {name: f'{a.shape[1]} inputs and {b.shape[0]} outputs' for name, a, b in mine}
    if len({*shapes.values()}) > 1:
      raise InputError(
        f'--adapters: {module} has another shape in each:\n{listing(f"{k}: {v}" for k, v in shapes.items())}'
      )
    ranks = {name: len(a) for name, a, _ in mine}
    if len({*ranks.values()}) > 1 and how not in ('cat', 'svd'):
      lines = listing(f'{name}: rank {rank}' for name, rank in ranks.items())
      raise InputError(
        f'--how={how} adds factors up, which needs equal ranks; at {module} they are\n{lines}\n'
        '  take --how=svd or --how=cat'
      )


def _heads(loras: Sequence[Lora], weights: Sequence[float], head: str) -> tuple[dict[str, np.ndarray], list | None]:
  """(tensors saved whole, the labels if they are known)."""
  if head != 'mean':
    chosen = next(l for l in loras if l.name == head)
    return chosen.saved, chosen.source.ours.get('labels')
  labels = {str(l.source.ours['labels']): l.source.ours['labels'] for l in loras if 'labels' in l.source.ours}
  shapes = {str(sorted((k, x.shape) for k, x in l.saved.items())) for l in loras}
  total, hint = sum(weights), f'take one of them: --head={loras[0].name}'
  if len(labels) > 1:
    raise InputError(f'--head=mean: the labels differ:\n{listing(labels)}\n  {hint}')
  if len(shapes) > 1:
    raise InputError(f'--head=mean: what they save whole (heads, modules_to_save) differs in names or shapes; {hint}')
  if total <= 0 and loras[0].saved:
    raise InputError(f'--head=mean: the weights sum to {total:g}, by which heads cannot be averaged; {hint}')
  saved = {k: sum(w / total * l.saved[k] for w, l in zip(weights, loras, strict=True)) for k in loras[0].saved}
  return saved, next(iter(labels.values()), None)


def _write(
  output: pathlib.Path,
  loras: Sequence[Lora],
  factors: dict[str, tuple[np.ndarray, np.ndarray]],
  saved: dict[str, np.ndarray],
  labels: list | None,
  record: dict[str, Any],
) -> None:
  """The folder, with alpha = rank at every module: the scales are in the factors."""
  tables = {m for l in loras for m in l.tables}
  tensors = dict(saved)
  for module, pair in factors.items():
    kinds = ('lora_embedding_A', 'lora_embedding_B') if module in tables else ('lora_A.weight', 'lora_B.weight')
    for kind, x in zip(kinds, pair, strict=True):
      tensors[f'base_model.model.{module}.{kind}'] = np.asarray(x, np.float32)
  ranks = {m: len(a) for m, (a, _) in factors.items()}
  rank = max(ranks.values())
  other = {m: r for m, r in ranks.items() if r != rank}
  save = dict.fromkeys(s for l in loras for s in l.source.values.get('modules_to_save') or ())
  first = loras[0].source.values
  values = {
    **{k: first.get(k) for k in ('auto_mapping', 'base_model_name_or_path', 'revision', 'task_type')},
    'alpha_pattern': other,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
    'init_lora_weights': True,
    'lora_alpha': rank,
    'lora_dropout': first.get('lora_dropout', 0.0),
    'modules_to_save': [*save] or None,
    'peft_type': 'LORA',
    'peft_version': peft_config.VERSION,
    'r': rank,
    'rank_pattern': other,
    'target_modules': sorted(ranks),
    'use_dora': False,
    'use_rslora': False,
  }
  hf.save(output, dict(sorted(tensors.items())), dict(sorted(values.items())))  # under the names of a model
  os.replace(output / 'model.safetensors', output / peft_folder.TENSORS)
  os.replace(output / 'config.json', output / peft_folder.CONFIG)
  prints = [l.source.ours['weights'] for l in loras if 'weights' in l.source.ours]
  ours = {'method': 'lora', 'merged': record}
  ours |= {'weights': prints[0]} if len(prints) == len(loras) else {}
  files.write_json(output / peft_folder.OURS, ours | ({} if labels is None else {'labels': labels}))


def main() -> None:
  """Merges as the flags say."""
  from absl import flags

  given = flags.FLAGS
  if not given.adapters or not given.output:
    raise InputError('give --adapters=FOLDER,FOLDER and --output=NEW_FOLDER')
  try:
    weights = [float(w) for w in given.weights.split(',')] if given.weights else None
  except ValueError as e:
    raise InputError(f'--weights={given.weights} is no list of numbers with commas between') from e
  adapters = [p.strip() for p in given.adapters.split(',') if p.strip()]
  options = {'how': given.how, 'weights': weights, 'density': given.density, 'seed': given.seed, 'head': given.head}
  for note in merge(adapters, pathlib.Path(given.output).expanduser(), **options):
    print(f'note: {note}')
  print(
    f'{given.output}: {given.how} of {len(adapters)} adapters; to start from it: --config.model.adapter={given.output}'
  )


if __name__ == '__main__':
  from absl import flags

  flags.DEFINE_string('adapters', None, 'folders of PEFT or run folders, with commas between')
  flags.DEFINE_string('output', None, 'the folder to make')
  flags.DEFINE_string('weights', None, 'a number for each adapter, with commas between; by default equal shares')
  flags.DEFINE_string('how', 'linear', ', '.join(HOW))
  flags.DEFINE_float('density', None, f'ties and dare: the share of entries that is kept, {DENSITY} by default')
  flags.DEFINE_integer('seed', 0, 'dare: of the entries that are kept')
  flags.DEFINE_string('head', 'mean', 'mean: by the weights; or the adapter whose head is taken')
  sys.exit(cli.run(main))
