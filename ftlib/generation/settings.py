"""What is asked of a generator, checked."""

from __future__ import annotations

import dataclasses

from ftlib.base.errors import InputError
from ftlib.generation import sampling
from ftlib.generation.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Settings(Sampling):
  """`max_new_tokens`: the most that a row gets. `num_beams`: more than 1 for beam search, ended beams being compared by
  log-probability over length ** `length_penalty`; `early_stopping`: True, False or 'never' (`beam.py` here). `stop`:
  texts at which a row ends, themselves left out, or names of special tokens. `num`: texts of each prompt (samples, or
  the best beams). `batch_size`: rows that are decoded together (beams not counted). `eos`: more ids that end a row."""

  max_new_tokens: int = 128
  num_beams: int = 1
  length_penalty: float = 1.0
  early_stopping: bool | str = False
  stop: tuple[str, ...] = ()
  num: int = 1
  seed: int = 0
  batch_size: int = 8
  eos: tuple[int, ...] = ()


def check(s: Settings, *, field: str = '--') -> None:
  """Raises `InputError` for numbers out of range and for those that exclude each other; `field` stands before names."""
  sampling.check(Sampling(**{f.name: getattr(s, f.name) for f in dataclasses.fields(Sampling)}), field=field)
  for name in ('max_new_tokens', 'num_beams', 'num', 'batch_size'):
    if getattr(s, name) < 1:
      raise InputError(f'{field}{name}={getattr(s, name)}: wanted 1 or more')
  if not 0 <= s.seed < 2**31:
    raise InputError(f'{field}seed={s.seed}: wanted a whole number from 0 to 2147483647')
  if s.early_stopping not in (True, False, 'never'):
    raise InputError(f'{field}early_stopping={s.early_stopping!r} is none of true, false, never')
  if '' in s.stop:
    raise InputError(f'{field}stop holds an empty text, at which every row would end before it began')
  beams = s.num_beams > 1
  if beams and s.sample:
    raise InputError(
      f'{field}num_beams={s.num_beams} with {field}sample=true: beams are searched, not drawn; leave one'
    )
  if beams and s.stop:
    raise InputError(
      f'{field}stop with {field}num_beams={s.num_beams}: beams end at tokens, of which a stop text may take several; '
      'leave one'
    )
  idle = [n for n in ('length_penalty', 'early_stopping') if getattr(s, n) != getattr(Settings, n)]
  if not beams and idle:
    raise InputError(f'{field}{idle[0]}={getattr(s, idle[0])} is of beam search; give {field}num_beams')
  if s.num > 1 and not s.sample and s.num > s.num_beams:
    more = f'{field}num_beams={s.num}' if not beams else f'at most {s.num_beams}'
    raise InputError(f'{field}num={s.num}: without sampling all texts are the same; give {field}sample=true, or {more}')
