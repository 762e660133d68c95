"""One training step and one evaluation step, as pure functions to be jitted.

The objective gives sums, and the mean is taken once, over everything that was counted: so a batch computed in
micro-batches, on several devices or with more padding gives the same update. Only `trainable` is differentiated, so
neither weight gradients of frozen parameters nor the backward pass below the lowest trainable layer is computed.

A step whose loss or gradient is not finite changes nothing but its counts; nor does one whose optimizer takes a second
gradient that is not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ftlib.base import trees
from ftlib.base.types import Batch, Outputs, Params, Sums
from ftlib.train import diagnostics
from ftlib.train.averages import Rule
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
  project: Callable[[Params, Params], Params] | None = None,
  active: Callable[[str], bool] = lambda name: True,
  needs: Collection[str] = (),
  averaging: Mapping[str, Rule] | None = None,
  stacked: Callable[[str], bool] = lambda name: False,
  groups: Mapping[str, Sequence[str]] | None = None,
  shown: Callable[[jax.Array], jax.Array] = lambda step: step > 0,
  joined: Callable[[Params, Params, jax.Array], Params] = lambda trainable, frozen, key: trees.join(trainable, frozen),
  gradient: Callable | None = None,
):
  """`(state, frozen, batch) -> (state, sums)`; `micro` divides the batch and only bounds memory.

  `sums` holds the objective's {name: (sum, weight)}; `grad_norm`, the global norm before clipping; the state's
  `skipped` and `streak`; and `squares` (`diagnostics.squares`, zeros where the step was not skipped; `stacked` says
  which names hold several layers). `penalty`, `adjust` and `project` are the method's (`ftlib/peft/method.py`): a term
  of the mean loss, what follows the update, and what follows that of an average. What of the trainable parameters is
  not `active` is as if frozen; `tx` is then one that leaves its state alone.

  `needs` names what is passed to `tx.update`: `value`, the mean loss float32 []; `grad`, the gradient before
  clipping; `value_fn(params)` and `obj_fn`, the mean loss of this batch with this step's dropout at other parameters,
  and `grad_fn(params, i)` its gradient; and the state's `rate_scale`. `averaging` are the rules of `state.averages`.
  With `groups` ({group: names}), `sums['groups']` is `diagnostics.table` where `shown(number of the step)`, else zeros.

  `joined(trainable, frozen, key)` are the parameters that the model is computed with (`ftlib/train/mixout.py`), and
  `gradient` stands in for `accumulate` where the update's gradient is taken (`ftlib/train/private.py`).
  """

  def loss(trainable: Params, frozen: Params, batch: Batch, key: jax.Array):
    sums = objective(functools.partial(apply, joined(trainable, frozen, key)), batch, key)
    total, weight = sums['loss']
    return (total if penalty is None else total + weight * penalty(trainable)), sums

  grad = jax.grad(loss, has_aux=True)

  def train_step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
    key = jax.random.fold_in(state.key, state.step)
    trainable, waiting = trees.split(state.trainable, active)
    rest = trees.join(frozen, state.kept, waiting)
    total, sums = (gradient or accumulate)(grad, trainable, rest, batch, key, micro=micro)
    weight = jnp.maximum(sums['loss'][1], jnp.finfo(jnp.float32).tiny)
    grads = jax.tree.map(lambda g: g / weight, total)
    zeros = jax.tree.map(jnp.zeros_like, waiting)
    whole = trees.join(grads, zeros)
    norm = optax.tree.norm(grads)
    fine = jnp.isfinite(norm) & jnp.isfinite(sums['loss'][0]) & jnp.isfinite(sums['loss'][1])
    besides: list[bool] = []  # filled while the update is traced

    def value_fn(params: Params) -> jax.Array:
      fn = loss if micro == 1 else jax.checkpoint(loss)  # differentiated, it holds one micro-batch at a time as well
      return accumulate(fn, trees.split(params, active)[0], rest, batch, key, micro=micro)[0] / weight

    def obj_fn(params: Params) -> jax.Array:
      besides.append(True)
      return value_fn(params)

    def grad_fn(params: Params, _: Any = None) -> Params:
      besides.append(True)
      found, _ = accumulate(grad, trees.split(params, active)[0], rest, batch, key, micro=micro)
      return trees.join(jax.tree.map(lambda g: g / weight, found), zeros)

    def value() -> jax.Array:
      return sums['loss'][0] / weight + (0 if penalty is None else penalty(trainable))

    given = {
      'grad': whole,
      'value_fn': value_fn,
      'grad_fn': grad_fn,
      'obj_fn': obj_fn,
      'rate_scale': state.rate_scale,
    }
    extra = {n: value() if n == 'value' else given[n] for n in needs}
    updates, opt = tx.update(whole, state.opt, state.trainable, **extra)
    if besides:  # what the update differentiated besides can fail where this gradient is fine
      fine &= _still_finite((updates, opt), (state.trainable, state.opt))
    updates = trees.split(updates, active)[0]
    new = optax.apply_updates(trainable, updates)
    kept = state.kept
    if adjust is not None:
      new, kept = adjust(new, kept, grads, state.step)
    new = trees.join(new, waiting)
    made = state.step + 1 - state.skipped  # updates, with this one
    averages = {n: rule(state.averages[n], new, made) for n, rule in (averaging or {}).items()}
    if project is not None:
      averages = {n: project(mean, kept) for n, mean in averages.items()}
    choose = functools.partial(jax.tree.map, functools.partial(jnp.where, fine))
    after = TrainState(
      state.step + 1,
      choose(new, state.trainable),
      choose(opt, state.opt),
      state.key,
      choose(kept, state.kept),
      state.rate_scale,
      state.skipped + ~fine,
      jnp.where(fine, 0, state.streak + 1),
      choose(averages, state.averages),
    )
    count = diagnostics.width(state.trainable, stacked)
    squares = lambda t: diagnostics.squares(t, waiting, stacked) / jnp.square(weight)  # noqa: E731
    # Of the sums and only where they are looked at, so that neither the mean is written out nor anything read again.
    out = jax.lax.cond(fine, lambda t: jnp.zeros(count, jnp.float32), squares, total)
    told = {**sums, 'grad_norm': norm, 'skipped': after.skipped, 'streak': after.streak, 'squares': out}
    if groups is not None:
      told['groups'] = jax.lax.cond(
        shown(after.step),
        lambda *given: diagnostics.table(*given, groups),
        lambda *given: jnp.zeros((len(groups), 7), jnp.float32),
        *(whole, trees.join(updates, zeros), after.trainable),
      )
    return after, told

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


def _still_finite(after: Any, before: Any) -> jax.Array:
  """Whether every number that was finite is."""
  same = lambda a, b: (jnp.isfinite(a) | ~jnp.isfinite(b)).all()  # noqa: E731
  pairs = zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)
  kept = [same(a, b) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.inexact)]
  return jnp.stack(kept).all()


def make_eval_step(apply: Apply, objective: Callable[..., Sums], predict: Callable[[Outputs, Batch], dict]):
  """`(own, frozen, batch) -> (sums, predictions)`, without dropout; predictions are arrays [B, ...]."""

  def eval_step(own: Params, frozen: Params, batch: Batch):
    params = trees.join(own, frozen)
    outputs = apply(params, batch, None)
    return objective(lambda *_: outputs, batch, None), predict(outputs, batch)

  return eval_step
