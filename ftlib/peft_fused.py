"""Adapters on matrices that Hugging Face keeps in one tensor and ftlib apart: GPT-2's query, key and value (`c_attn`).

PEFT has one adapter there. Read, its A serves each of ours and its B is cut in their parts. Written, ours become one of
rank n R, [A_q; A_k; A_v] and a B of blocks on the diagonal: the same function, of n times the rank and alpha.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ftlib.base.errors import InputError
from ftlib.models.model import Model

Tensors = dict[str, np.ndarray]


def part_of(tensors: Tensors, model: Model, site: str) -> Tensors:
  """A site's share of its module's tensors {suffix: tensor}: what is by outputs is cut, what is by inputs is whole."""
  part, of = model.hf_parts.get(site, (0, 1))
  cut = lambda x: x[len(x) // of * part : len(x) // of * (part + 1)]  # noqa: E731
  return {n: x if _of_inputs(n, x) else cut(x) for n, x in tensors.items()}


def joined(
  parts: dict[str, Tensors], model: Model, names: Mapping[str, str], kind: str, *, reading: bool
) -> dict[str, Tensors]:
  """{site: {key of a PEFT file: tensor}}, modules of one tensor with theirs joined; to read, each has them all.

  Raises `InputError` for types that have no joined form, and where some of the sites alone have an adapter that
  all must have.
  """
  fused, out = model.hf_parts, dict(parts)
  groups: dict[str, list[str]] = {}
  for site in parts:
    if site in fused:
      groups.setdefault(names[site], []).append(site)
  for module, sites in groups.items():
    of = fused[sites[0]][1]
    if kind not in ('LORA', 'IA3'):
      raise InputError(f'PEFT adapts {module} as one matrix, ftlib {", ".join(sites)}; {kind} has no form of both')
    by_part = {fused[s][0]: parts[s] for s in sites}
    whole = _shared(by_part, of, module) if reading else _blocks(by_part, of, module)
    out |= dict.fromkeys(sites if reading else sites[:1], whole)
    out |= {} if reading else {s: {} for s in sites[1:]}
  return out


def wider(values: Mapping[str, Any], model: Model, names: Mapping[str, str]) -> dict[str, Any]:
  """The settings of adapter_config.json that joined modules change; `names` {site: module} of the adapted ones."""
  fused = model.hf_parts
  counts = {m: sum(names[s] == m for s in names if s in fused) for m in dict.fromkeys(names.values())}
  if values['peft_type'] != 'LORA' or not any(counts.values()):
    return {}
  if values.get('rank_pattern') or values.get('alpha_pattern'):
    raise InputError(
      'PEFT adapts query, key and value of this model as one matrix: method.rank_pattern and method.alpha_pattern '
      'have no form there; --format=hf merges the adapter'
    )
  rank, alpha = values['r'], values['lora_alpha']
  scale = lambda n: n**0.5 if values.get('use_rslora') else n  # noqa: E731
  times = {n or 1 for n in counts.values()}
  if len(times) == 1:
    n = times.pop()
    return {'r': n * rank, 'lora_alpha': scale(n) * alpha}
  more = {m: n for m, n in counts.items() if n > 1}
  return {
    'rank_pattern': {m: n * rank for m, n in more.items()},
    'alpha_pattern': {m: scale(n) * alpha for m, n in more.items()},
  }


def _of_inputs(suffix: str, x: np.ndarray) -> bool:
  """Whether a tensor is about a module's inputs, which its parts share."""
  return suffix.endswith('lora_A.weight') or (suffix.endswith('ia3_l') and x.shape[0] == 1)


def _shared(by_part: dict[int, Tensors], of: int, module: str) -> Tensors:
  """The shapes of what PEFT has, from parts that each have the whole rank."""
  _check_all(by_part, of, module)
  return {k: x if _of_inputs(k, x) else np.concatenate([x] * of) for k, x in by_part[0].items()}


def _blocks(by_part: dict[int, Tensors], of: int, module: str) -> Tensors:
  first = next(iter(by_part.values()))
  if not any(k.endswith('lora_A.weight') for k in first) or len(first) > 2:  # a vector of the outputs
    _check_all(by_part, of, module)
  out: Tensors = {}
  for key, x in first.items():
    found = [by_part[p][key] for p in sorted(by_part)]
    if key.endswith('ia3_l') and _of_inputs(key, x):
      if any(not np.array_equal(x, y) for y in found):
        raise InputError(f'PEFT scales the inputs of {module} once, and query, key and value have different scales')
      out[key] = x
    elif key.endswith('lora_B.weight'):
      rows, rank = x.shape
      out[key] = np.zeros((of * rows, len(found) * rank), x.dtype)
      for i, part in enumerate(sorted(by_part)):
        out[key][part * rows : (part + 1) * rows, i * rank : (i + 1) * rank] = found[i]
    else:
      out[key] = np.concatenate(found)
  return out


def _check_all(by_part: dict[int, Tensors], of: int, module: str) -> None:
  if len(by_part) != of:
    raise InputError(
      f'PEFT adapts {module} as one matrix, and {len(by_part)} of its {of} parts have an adapter here; '
      "all must: method.target='attn/(q|k|v)$'"
    )
