"""Learning from pairs of answers, the better and the worse one: DPO, its variants, and ORPO.

With `c` and `r` for the log-probabilities of the chosen and the rejected answer, each a sum over its tokens, and
`m = (c - c_ref) - (r - r_ref)` for how much the model has moved them apart since the start (the reference):

* `sigmoid`: DPO, -log sigmoid(beta m) (Rafailov et al. 2023, equation 7); with `label_smoothing` s, the share of pairs
  that may be the wrong way round, -(1 - s) log sigmoid(beta m) - s log sigmoid(-beta m) (Mitchell 2023);
* `hinge`: max(0, 1 - beta m) (SLiC's loss on it: Zhao et al. 2023, Liu et al. 2024);
* `ipo`: (m - 1 / (2 beta))^2 (Azar et al. 2024, equation 17; TRL takes means over tokens instead of sums);
* `orpo`: no reference. With means over tokens in place of sums, -c + beta * -log sigmoid(odds(c) - odds(r)), in which
  odds(x) = x - log(1 - exp(x)) (Hong et al. 2024, equations 6 and 7; beta is the paper's lambda).

A row holds both answers, each behind the prompt, as the documents 1 (chosen) and 2 (rejected), which do not see one
another. What the reference gives is part of the batch, so no second model is in memory (`ftlib/reference.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Outputs, Sums
from ftlib.objectives.vocabulary import token_nll

LOSSES = ('sigmoid', 'hinge', 'ipo', 'orpo')
ROWWISE = True  # the loss of a pair, which is a row, follows from the pair alone


@dataclasses.dataclass(frozen=True)
class Config:
  """`loss`: one of `LOSSES`. `beta`: how strongly a pair pulls against the reference (of `orpo`, against the likelihood
  of the chosen answer). `label_smoothing`: of `sigmoid` alone. `chunk`: positions whose logits are held at once."""

  loss: str = setting('sigmoid', choices=LOSSES)
  beta: float = setting(0.1, above=0)
  label_smoothing: float = setting(0.0, low=0, below=0.5)
  chunk: int = setting(1024, low=1)

  def __post_init__(self):
    if self.label_smoothing and self.loss != 'sigmoid':
      raise ValueError(f'label_smoothing={self.label_smoothing} is for loss=sigmoid, and loss={self.loss}')


def needs_reference(config: Config) -> bool:
  """Whether batches must hold the log-probabilities of the starting model, `reference` float [B, 2]."""
  return config.loss != 'orpo'


def build(config: Config, *, labels: list, counts: np.ndarray) -> Callable[..., Sums]:
  """The objective; raises `InputError` for a task with labels."""
  if labels:
    raise InputError('objective.name=preference is for pairs of answers (task.name=preference); this task has labels')
  return _objective(config, losses)


def without_reference(config: Config) -> Callable[..., Sums]:
  """What is said of a model that is compared with no other, whatever the loss: by means over an answer's tokens.

  `loss`: -c, nats a token; `margin`: c - r; `accuracy`: the share of pairs in which it is above 0. No rewards.
  """
  objective = _objective(config, _means)
  return lambda *given: {n: x for n, x in objective(*given).items() if not n.endswith('_reward')}


def _means(config: Config, logp_B2: jax.Array, tokens_B2: jax.Array, reference_B2: None) -> tuple[jax.Array, jax.Array]:
  mean_B2 = logp_B2 / jnp.maximum(tokens_B2, 1)
  return -mean_B2[:, 0], mean_B2


def _objective(config: Config, scored: Callable[..., tuple[jax.Array, jax.Array]]) -> Callable[..., Sums]:
  """The objective whose losses and rewards are those of `scored`, called as `losses`."""

  def objective(apply, batch: Batch, key: jax.Array | None) -> Sums:
    """Sums over the pairs of a batch with `targets, weights, segments` [B, L] and `pairs` float [B] (0: padding)."""
    if 'pairs' not in batch:
      raise InputError('objective.name=preference is for pairs of answers: task.name=preference makes them')
    logp_B2, tokens_B2 = log_probs(apply(batch, key), batch, chunk=config.chunk)
    loss_B, rewards_B2 = scored(config, logp_B2, tokens_B2, batch.get('reference'))
    real_B = batch['pairs']
    total = real_B.sum()
    margin_B = rewards_B2[:, 0] - rewards_B2[:, 1]
    of_row = {
      'loss': loss_B,
      'accuracy': (margin_B > 0).astype(jnp.float32),
      'margin': margin_B,
      'chosen_reward': rewards_B2[:, 0],
      'rejected_reward': rewards_B2[:, 1],
      'chosen_logp': logp_B2[:, 0],
      'rejected_logp': logp_B2[:, 1],
    }
    return {n: (jnp.where(real_B > 0, x, 0).sum(), total) for n, x in of_row.items()}

  return objective


def log_probs(outputs: Outputs, batch: Batch, *, documents: int = 2, chunk: int = 1024) -> tuple[jax.Array, jax.Array]:
  """(sum of the supervised tokens' log-probabilities, their number), float32 [B, S], of each row's S documents."""
  logp_BL = -token_nll(outputs.unembed, outputs.hidden, batch['targets'], chunk=chunk)
  weights_BL = batch['weights'].astype(jnp.float32)
  logp_BL = jnp.where(weights_BL > 0, logp_BL * weights_BL, 0)
  own_BLS = batch['segments'][..., None] == jnp.arange(1, documents + 1)
  return (logp_BL[..., None] * own_BLS).sum(1), (weights_BL[..., None] * own_BLS).sum(1)


def losses(
  config: Config, logp_B2: jax.Array, tokens_B2: jax.Array, reference_B2: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """(loss [B], rewards [B, 2]) of pairs. A reward is beta times what a log-probability has gained on the reference's,
  or, of `orpo`, beta times the mean over its tokens."""
  beta, smoothing = config.beta, config.label_smoothing
  if config.loss == 'orpo':
    mean_B2 = jnp.minimum(logp_B2 / jnp.maximum(tokens_B2, 1), -1e-6)  # at 0, the odds are infinite
    odds_B2 = mean_B2 - _log1mexp(mean_B2)
    return -mean_B2[:, 0] - beta * jax.nn.log_sigmoid(odds_B2[:, 0] - odds_B2[:, 1]), beta * mean_B2
  if reference_B2 is None:
    raise InputError(
      f"objective.loss={config.loss} compares with the starting model, whose log-probabilities aren't here"
    )
  gain_B2 = logp_B2 - reference_B2
  margin_B = gain_B2[:, 0] - gain_B2[:, 1]
  if config.loss == 'sigmoid':
    right_B, wrong_B = jax.nn.log_sigmoid(beta * margin_B), jax.nn.log_sigmoid(-beta * margin_B)
    loss_B = -(1 - smoothing) * right_B - smoothing * wrong_B
  elif config.loss == 'hinge':
    loss_B = jax.nn.relu(1 - beta * margin_B)
  else:
    loss_B = (margin_B - 1 / (2 * beta)) ** 2
  return loss_B, beta * gain_B2


def _log1mexp(x: jax.Array) -> jax.Array:
  """log(1 - exp(x)) of x < 0, exact near 0 and far from it (Maechler 2012)."""
  near = x > -np.log(2)
  return jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, x, -1))), jnp.log1p(-jnp.exp(jnp.where(near, -1, x))))
