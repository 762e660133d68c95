"""P-tuning v2 (Liu et al. 2022): deep prompts, trained keys and values in every layer, for understanding tasks.

The equation is that of `prefix` without its reparametrisation; what the paper changes (section 3.3) are the defaults:
no MLP, a length by task (about 20 for simple classification, 100 for sequence labelling), and a linear head on the
first token, trained with the prefix, in place of a verbaliser. Trainable: layers * P * 2 * embed, and the head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.models.model import Model
from ftlib.peft import prefix
from ftlib.peft.method import Method

PEFT_TYPE = prefix.PEFT_TYPE


@dataclasses.dataclass(frozen=True)
class Config:
  """`length` is P; `std` that of the vectors at the start; `target`: pattern of the layers' memories; `also`: pattern
  of base parameters to train as well, here the paper's head."""

  length: int = setting(20, low=1)
  std: float = setting(0.02, above=0)
  target: str = r'attn/memory$'
  also: str = '^head/'


def build(config: Config, model: Model) -> Method:
  """A prefix of plain vectors in every layer that `target` matches."""
  return prefix.build(_as_prefix(config), model)


def _as_prefix(config: Config) -> prefix.Config:
  return prefix.Config(reparametrise=False, **dataclasses.asdict(config))


def peft_config(config: Config) -> dict[str, Any]:
  """That of a prefix."""
  return prefix.peft_config(_as_prefix(config))


def config_of_peft(values: Mapping[str, Any]) -> dict[str, Any]:
  """That of a prefix, which has no reparametrisation here."""
  return {'length': prefix.config_of_peft(values)['length']}


def to_peft_whole(config: Config, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The one tensor of PEFT's file: [P, layers * 2 * D]."""
  return prefix.to_peft_whole(_as_prefix(config), flat)


def from_peft_whole(
  config: Config, tensors: Mapping[str, np.ndarray], info: Mapping[str, ParamInfo]
) -> dict[str, np.ndarray]:
  """The inverse of `to_peft_whole`."""
  return prefix.from_peft_whole(_as_prefix(config), tensors, info)
