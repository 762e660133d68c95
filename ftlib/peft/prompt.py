"""Prompt tuning (Lester et al. 2021, section 2): P trained vectors e stand in front of the embedded tokens, [e; x].

The vectors are of the row's first segment at the positions 0 to P - 1, and a 'cls' head reads the first of them, all as
in PEFT; rows are cut to what the positions then leave. In a packed row the first document alone sees them. They start
at random, or as rows of the token table: those of a `text` (an instruction, the names of the classes; repeated or cut
to P), or drawn from the `vocab` (the paper's sampled vocabulary). The adapted model does not start as the pretrained
one. Trainable: P * embed.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from typing import Any

import jax
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.rng import Stream
from ftlib.base.settings import setting
from ftlib.base.types import Flat
from ftlib.models.layers import Axis, Prompt, normal, param
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method
from ftlib.peft.parts.prompt_exchange import (  # noqa: F401  # noqa: F401
  NAME,
  PEFT_TYPE,
  config_of_peft,
  from_peft_whole,
  peft_config,
  to_peft_whole,
)
from ftlib.peft.parts.virtual_tokens import ids_range, in_front

TABLE = 'embed/token/table'


@dataclasses.dataclass(frozen=True)
class Config:
  """`length` is P. `init_text`: for init='text', without special tokens; `init_vocab`: the ids 'first:stop' to draw
  from for init='vocab', by default all; `std` is that of init='random'; `also`: base parameters to train too."""

  length: int = setting(20, low=1)
  init: str = setting('random', choices=('random', 'text', 'vocab'))
  init_text: str = ''
  init_vocab: str = ''
  std: float = setting(0.02, above=0)
  also: str = '^head/'


class Vectors(Adapter):
  """`vectors` [P, D]."""

  def __init__(self, site: Prompt, length: int, std: float):
    self.vectors = param((Axis('prompt', length), site.axis), normal(std))

  def __call__(self, site: Prompt, stream: Stream | None) -> jax.Array:
    return self.vectors[...]


def build(config: Config, model: Model) -> Method:
  """A prompt of `length` vectors."""
  for field, kind in (('init_text', 'text'), ('init_vocab', 'vocab')):
    if getattr(config, field) and config.init != kind:
      raise InputError(f"method.{field} is of use with method.init='{kind}' alone; init is {config.init!r}")
  if config.init == 'text' and not config.init_text.strip():
    raise InputError("method.init='text' wants method.init_text: an instruction, or the names of the classes")
  first, stop = ids_range(config.init_vocab, model.config.vocab) if config.init_vocab else (0, model.config.vocab)

  def prepare(flat: Flat, gradient: Any) -> Flat:
    if config.init == 'text':
      ids = list(itertools.islice(itertools.cycle(flat['text'].tolist()), config.length))
    else:
      rng = np.random.default_rng(zlib.crc32(np.asarray(flat[NAME], np.float32).tobytes()))  # goes by the run's seed
      ids = rng.choice(np.arange(first, stop), config.length, replace=config.length > stop - first)
    return {NAME: flat[TABLE][np.array(ids)].astype(np.float32)}

  options = {'prepare': None if config.init == 'random' else prepare, 'text': config.init_text}
  return in_front(config, model, lambda site: Vectors(site, config.length, config.std), **options)
