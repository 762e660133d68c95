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
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.rng import Stream
from ftlib.base.settings import setting
from ftlib.base.types import Flat, ParamInfo
from ftlib.models.layers import Axis, Prompt, normal, param
from ftlib.models.model import Model
from ftlib.peft.method import Adapter, Method, adapt
from ftlib.peft.virtual_tokens import TENSOR, check_length, virtual_tokens, whole

NAME = 'embed/prompt/adapter/vectors'
TABLE = 'embed/token/table'
PEFT_TYPE = 'PROMPT_TUNING'


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
  check_length(config.length, model)
  for field, kind in (('init_text', 'text'), ('init_vocab', 'vocab')):
    if getattr(config, field) and config.init != kind:
      raise InputError(f"method.{field} is of use with method.init='{kind}' alone; init is {config.init!r}")
  if config.init == 'text' and not config.init_text.strip():
    raise InputError("method.init='text' wants method.init_text: an instruction, or the names of the classes")
  first, stop = _range(config.init_vocab, model.config.vocab) if config.init_vocab else (0, model.config.vocab)

  def prepare(flat: Flat, gradient: Any) -> Flat:
    if config.init == 'text':
      ids = list(itertools.islice(itertools.cycle(flat['text'].tolist()), config.length))
    else:
      rng = np.random.default_rng(zlib.crc32(np.asarray(flat[NAME], np.float32).tobytes()))  # goes by the run's seed
      ids = rng.choice(np.arange(first, stop), config.length, replace=config.length > stop - first)
    return {NAME: flat[TABLE][np.array(ids)].astype(np.float32)}

  return adapt(
    model,
    '^embed/prompt$',
    lambda site, name, salt: Vectors(site, config.length, config.std),
    kind=Prompt,
    also=config.also,
    tokens=config.length,
    packs=False,
    identity=False,
    prepare=None if config.init == 'random' else prepare,
    text=config.init_text,
  )


def _range(text: str, vocab: int) -> tuple[int, int]:
  first, _, stop = text.partition(':')
  if not (first.isdecimal() and stop.isdecimal() and int(first) < int(stop) <= vocab):
    raise InputError(f"method.init_vocab={text!r} is not a range 'first:stop' of the token ids 0 to {vocab}")
  return int(first), int(stop)


def peft_config(config: Config) -> dict[str, Any]:
  """Where the vectors started is no matter of a trained adapter."""
  return {'num_virtual_tokens': config.length, 'prompt_tuning_init': 'RANDOM'}


def config_of_peft(values: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that follow from an adapter_config.json."""
  return {'length': virtual_tokens(values)}


def to_peft_whole(config: Config, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The one tensor of PEFT's file, [P, D]."""
  return {TENSOR: np.asarray(flat[NAME], np.float32)}


def from_peft_whole(
  config: Config, tensors: Mapping[str, np.ndarray], info: Mapping[str, ParamInfo]
) -> dict[str, np.ndarray]:
  """The inverse of `to_peft_whole`."""
  return {NAME: whole(tensors, info[NAME].shape)}
