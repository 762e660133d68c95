"""How a token is chosen: the most likely one, or one drawn from what temperature, top-k, top-p and min-p leave.

The definitions, and their order, are those of Hugging Face's processors: repetition penalty (Keskar et al. 2019),
temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024).

Shape letters: B rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from ftlib.base.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sampling:
  """`sample`: draw, or else take the most likely token. `temperature` divides the logits. `top_k`: the tokens that are
  left, 0 for all. `top_p`: the least probability that what is left sums to. `min_p`: the least probability of a token,
  as a share of the greatest. `repetition_penalty`: what the logit of a token that the row holds is divided by (or
  multiplied, if it is negative)."""

  sample: bool = False
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0


def check(s: Sampling, *, field: str = '--') -> None:
  """Raises `InputError` for numbers out of range, and for those of sampling where nothing is sampled.

  `field` stands before a setting's name in messages.
  """
  if not math.isfinite(s.temperature) or s.temperature <= 0:
    raise InputError(
      f'{field}temperature={s.temperature}: wanted above 0; {field}sample=false takes the most likely token'
    )
  if not 0 < s.top_p <= 1:
    raise InputError(f'{field}top_p={s.top_p}: wanted above 0 and at most 1, which keeps every token')
  if not 0 <= s.min_p < 1:
    raise InputError(f'{field}min_p={s.min_p}: wanted from 0, which keeps every token, to below 1')
  if s.top_k < 0:
    raise InputError(f'{field}top_k={s.top_k}: wanted 0, which keeps every token, or more')
  if not math.isfinite(s.repetition_penalty) or s.repetition_penalty <= 0:
    raise InputError(f'{field}repetition_penalty={s.repetition_penalty}: wanted above 0; 1 changes nothing')
  plain = Sampling(repetition_penalty=s.repetition_penalty)
  idle = [n for n, v in dataclasses.asdict(s).items() if v != getattr(plain, n)]
  if not s.sample and idle:
    raise InputError(f'{field}{idle[0]}={getattr(s, idle[0])} has no effect without sampling; give {field}sample=true')


def penalised(logits_BV: jax.Array, seen_BV: jax.Array, penalty: float) -> jax.Array:
  """Logits, or log-probabilities, with those of the tokens `seen_BV` (bool) made less."""
  return jnp.where(seen_BV, jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)


def filtered(logits_BV: jax.Array, s: Sampling) -> jax.Array:
  """Logits over the temperature, -inf where top-k, top-p or min-p leave a token out.

  A token as likely as the least likely one that is kept is kept too.
  """
  x_BV = logits_BV.astype(jnp.float32) / s.temperature
  keep = min(s.top_k or x_BV.shape[-1], x_BV.shape[-1])
  if s.top_p < 1:
    sorted_BK = jax.lax.top_k(x_BV, keep)[0]
    p_BK = jax.nn.softmax(sorted_BK, axis=-1)
    inside_BK = jnp.cumsum(p_BK, axis=-1) - p_BK < s.top_p  # what is more likely does not suffice
    least_B1 = jnp.where(inside_BK, sorted_BK, jnp.inf).min(-1, keepdims=True)
    x_BV = jnp.where(x_BV < least_B1, -jnp.inf, x_BV)
  elif keep < x_BV.shape[-1]:
    x_BV = jnp.where(x_BV < jax.lax.top_k(x_BV, keep)[0][:, -1:], -jnp.inf, x_BV)
  if s.min_p > 0:
    x_BV = jnp.where(x_BV < x_BV.max(-1, keepdims=True) + math.log(s.min_p), -jnp.inf, x_BV)
  return x_BV


def choose(logits_BV: jax.Array, s: Sampling, key: jax.Array, rows_B: jax.Array, step: jax.Array) -> jax.Array:
  """A token for each row, int32 [B]. The draw follows from the key, the row's number and the step, and from no other
  row (Gumbel-max)."""
  if not s.sample:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  fold = jax.random.fold_in
  noise = lambda row: jax.random.gumbel(fold(fold(key, row), step), logits_BV.shape[-1:])  # noqa: E731
  return jnp.argmax(filtered(logits_BV, s) + jax.vmap(noise)(rows_B), axis=-1).astype(jnp.int32)
