"""An objective as the training step calls it: of one pass over a batch or, with R-Drop, of two.

R-Drop (Liang et al. 2021) lets two passes with different dropout agree: the mean of both losses and, times `r_drop`,
the mean of the divergences of each from the other, KL(p||q) and KL(q||p) where they are distributions, the squared
difference where they are scores. (The paper's equation 4 is twice that, with an alpha of twice `r_drop`.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ftlib.base import rng
from ftlib.base.types import Batch, Outputs, Sums

Apply = Callable[[Batch, jax.Array | None], Outputs]


@dataclasses.dataclass(frozen=True)
class Objective:
  """`sums(outputs, batch)` is what a forward pass gives, {'loss': (sum, weight), ...}.

  `divergence(outputs, others, batch)` float32 []: the sum of how far two passes over a batch are apart, 0 where they
  are equal, in which a row or token counts as it does in the loss; None where there is no such thing.
  """

  sums: Callable[[Outputs, Batch], Sums]
  divergence: Callable[[Outputs, Outputs, Batch], jax.Array] | None = None
  r_drop: float = 0.0

  def __call__(self, apply: Apply, batch: Batch, key: jax.Array | None) -> Sums:
    """The sums over a batch. Without a key there is no dropout, so that a second pass would be the first."""
    ours = apply(batch, key)
    sums = self.sums(ours, batch)
    if key is None or not self.r_drop:
      return sums
    theirs = apply(batch, rng.key_for(key, 'r_drop'))
    total, weight = sums['loss']
    total = (total + self.sums(theirs, batch)['loss'][0]) / 2
    apart = self.divergence(ours, theirs, batch)
    return {**sums, 'loss': (total + self.r_drop * apart, weight), 'divergence': (apart, weight)}


def symmetric_kl(logits: jax.Array, others: jax.Array) -> jax.Array:
  """(KL(p||q) + KL(q||p)) / 2 of two distributions given by logits [..., C], float32 [...]."""
  p, q = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (logits, others))
  return ((jnp.exp(p) - jnp.exp(q)) * (p - q)).sum(-1) / 2
