"""The encoder of P-tuning (`p_tuning.py`): a table of embeddings and a network that makes vectors of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ftlib.base.rng import Stream
from ftlib.models.bilstm import Direction
from ftlib.models.layers import Axis, Proj, Prompt, normal, param, uniform
from ftlib.peft.method import Adapter


class Encoder(Adapter):
  """`table` [P, D] and what makes the prompt of it."""

  def __init__(self, site: Prompt, config: Any, dtype: Any):
    embed = Axis('embed', site.axis.size)
    self.kind, self.dtype = config.encoder, dtype
    self.table = param((Axis('prompt', config.length), embed), normal(1.0))
    h = config.hidden or embed.size
    linear = lambda ins, outs: Proj((ins,), (outs,), init=uniform(ins.size))  # noqa: E731
    hidden, both = Axis('hidden', h), Axis('hidden', 2 * h)
    if self.kind == 'mlp':
      self.first, self.second = linear(embed, hidden), linear(hidden, Axis('hidden_out', h))
      self.out = linear(hidden, Axis('embed_out', embed.size))
    elif self.kind == 'lstm':
      self.forward_0, self.backward_0 = (Direction(h, embed, reverse=back) for back in (False, True))
      self.forward_1, self.backward_1 = (Direction(h, both, reverse=back) for back in (False, True))
      self.first = linear(both, Axis('hidden_out', 2 * h))
      self.out = linear(both, Axis('embed_out', embed.size))

  def __call__(self, site: Prompt, stream: Stream | None) -> jax.Array:
    x = self.table[...].astype(self.dtype)
    if self.kind == 'none':
      return x
    if self.kind == 'mlp':
      return self.out(jax.nn.relu(self.second(jax.nn.relu(self.first(x)))))
    one = jnp.ones((1, x.shape[0]), jnp.int32)
    for layer in ((self.forward_0, self.backward_0), (self.forward_1, self.backward_1)):
      x = jnp.concatenate([direction(x[None], one, None)[0] for direction in layer], -1)
    return self.out(jax.nn.relu(self.first(x)))
