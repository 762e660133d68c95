"""P-tuning (Liu et al. 2021, section 3): the vectors of a prompt come from an encoder of trained embeddings e.

'mlp' is PEFT's (Linear, ReLU, Linear, ReLU, Linear, each vector for itself); 'lstm' the paper's, MLP(LSTM(e)) over a
bidirectional LSTM of two layers; 'none' has no encoder, which is `prompt`, and what a file of PEFT holds. The slot is
that of `prompt`: vectors in front of the row, a 'cls' head reads the first. The paper also puts prompts amid the row;
neither PEFT nor this does. Random starts are PEFT's (embeddings normal, matrices uniform within 1 / sqrt(inputs)), but
biases start at zero. The adapted model does not start as the pretrained one.

Trainable, with D embed and h hidden: P D + (D + 1) h + (h + 1) h + (h + 1) D for 'mlp'; P D + 8 h (D + h + 2)
+ 8 h (3 h + 2) + (2 h + 1) 2 h + (2 h + 1) D for 'lstm'; P D for 'none'.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import ParamInfo
from ftlib.models.layers import Axis, Prompt
from ftlib.models.model import Model
from ftlib.peft.method import Method
from ftlib.peft.parts.prompt_encoder import Encoder
from ftlib.peft.parts.virtual_tokens import TENSOR, in_front, virtual_tokens, whole

PEFT_TYPE = 'P_TUNING'
SITE = 'embed/prompt/adapter'


@dataclasses.dataclass(frozen=True)
class Config:
  """`length` is P; `hidden` the encoder's width (0: that of the model); `also`: base parameters to train as well."""

  length: int = setting(20, low=1)
  encoder: str = setting('mlp', choices=('mlp', 'lstm', 'none'))
  hidden: int = setting(0, low=0)
  also: str = '^head/'


def build(config: Config, model: Model) -> Method:
  """An encoded prompt of `length` vectors."""
  return in_front(config, model, lambda site: Encoder(site, config, model.compute))


def peft_config(config: Config) -> dict[str, Any]:
  """PEFT's file holds the encoded vectors; for training on, PEFT would make a new encoder before them."""
  kind = 'LSTM' if config.encoder == 'lstm' else 'MLP'
  hidden = {'encoder_hidden_size': config.hidden} if config.hidden else {}
  return {'num_virtual_tokens': config.length, 'encoder_reparameterization_type': kind, **hidden}


def config_of_peft(values: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that follow from an adapter_config.json; whatever its encoder was, the file lacks it."""
  return {'length': virtual_tokens(values), 'encoder': 'none'}


def to_peft_whole(config: Config, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The one tensor of PEFT's file: the encoded vectors [P, D]."""
  embed = Axis('embed', flat[f'{SITE}/table'].shape[1])
  encoder = Encoder(Prompt(embed), config, jnp.float32)
  own = {n.removeprefix(f'{SITE}/'): x for n, x in flat.items() if n.startswith(f'{SITE}/')}
  with jax.default_matmul_precision('highest'):
    vectors = nnx.merge(nnx.graphdef(encoder), trees.unflatten(own))(None, None)
  return {TENSOR: np.asarray(vectors)}


def from_peft_whole(
  config: Config, tensors: Mapping[str, np.ndarray], info: Mapping[str, ParamInfo]
) -> dict[str, np.ndarray]:
  """The inverse of `to_peft_whole` where there is no encoder."""
  name = f'{SITE}/table'
  if config.encoder != 'none':
    raise InputError("PEFT's file holds encoded vectors, from which no encoder follows: set method.encoder='none'")
  return {name: whole(tensors, info[name].shape)}
