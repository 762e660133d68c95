"""One training step and one evaluation step, as pure functions to be jitted.

The objective gives sums, and the mean is taken once, over everything that was counted: so a batch computed in
micro-batches, on several devices or with more padding gives the same update. Only `trainable` is differentiated, so
neither weight gradients of frozen parameters nor the backward pass below the lowest trainable layer is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ftlib.base import trees
from ftlib.base.types import Batch, Outputs, Params, Sums
from ftlib.train.state import TrainState

Apply = Callable[[Params, Batch, jax.Array | None], Outputs]


def make_train_step(
  apply: Apply,
  objective: Callable[..., Sums],
  tx: optax.GradientTransformation,
  *,
  micro: int = 1,
  penalty: Callable[[Params], jax.Array] | None = None,
  adjust: Callable[..., tuple[Params, Params]] | None = None,
  active: Callable[[str], bool] = lambda name: True,
):
  """`(state, frozen, batch) -> (state, sums)`; `micro` divides the batch and only bounds memory.

  `sums` holds the objective's {name: (sum, weight)} and `grad_norm`, the global norm before clipping. `penalty` and
  `adjust` are the method's (`ftlib/peft/method.py`): a term of the mean loss, and what follows the update. What of the
  trainable parameters is not `active` is as if frozen; `tx` is then one that leaves its state alone.
  """

  def loss(trainable: Params, frozen: Params, batch: Batch, key: jax.Array):
    sums = objective(functools.partial(apply, trees.join(trainable, frozen)), batch, key)
    total, weight = sums['loss']
    return (total if penalty is None else total + weight * penalty(trainable)), sums

  grad = jax.grad(loss, has_aux=True)

  def train_step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
    key = jax.random.fold_in(state.key, state.step)
    trainable, waiting = trees.split(state.trainable, active)
    grads, sums = accumulate(grad, trainable, trees.join(frozen, state.kept, waiting), batch, key, micro=micro)
    weight = sums['loss'][1]
    weight = jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
    grads = jax.tree.map(lambda g: g / weight, grads)
    whole = trees.join(grads, jax.tree.map(jnp.zeros_like, waiting))
    updates, opt = tx.update(whole, state.opt, state.trainable)
    trainable = optax.apply_updates(trainable, trees.split(updates, active)[0])
    kept = state.kept
    if adjust is not None:
      trainable, kept = adjust(trainable, kept, grads, state.step)
    state = TrainState(state.step + 1, trees.join(trainable, waiting), opt, state.key, kept)
    return state, {**sums, 'grad_norm': optax.tree.norm(grads)}

  return train_step


def accumulate(grad: Callable, trainable: Params, frozen: Params, batch: Batch, key: jax.Array, *, micro: int):
  """(gradient, sums) of the loss's sum, added up over `micro` micro-batches one after the other.

  Micro-batch m takes rows m, m + micro, ...: every device goes on holding an equal share. Dropout follows each row's
  number in the whole batch (`batch['rows']`), so it does not depend on `micro`.
  """
  if micro == 1:
    return grad(trainable, frozen, batch, key)
  pieces = jax.tree.map(lambda x: x.reshape(-1, micro, *x.shape[1:]).swapaxes(0, 1), batch)

  def body(total, piece):
    return jax.tree.map(jnp.add, total, grad(trainable, frozen, piece, key)), None

  shapes = jax.eval_shape(grad, trainable, frozen, jax.tree.map(lambda x: x[0], pieces), key)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  return jax.lax.scan(body, zeros, pieces)[0]


def make_eval_step(apply: Apply, objective: Callable[..., Sums], predict: Callable[[Outputs, Batch], dict]):
  """`(own, frozen, batch) -> (sums, predictions)`, without dropout; predictions are arrays [B, ...]."""

  def eval_step(own: Params, frozen: Params, batch: Batch):
    params = trees.join(own, frozen)
    outputs = apply(params, batch, None)
    return objective(lambda *_: outputs, batch, None), predict(outputs, batch)

  return eval_step
