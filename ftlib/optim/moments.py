"""How a rule's state is kept: it computes in float32, and first moments may lie in bfloat16 (`optim.moments`).

Second moments stay float32: bfloat16 numbers are 1/128 apart, and with b2 0.999 a step moves a second moment by less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax


def kept(
  tx: optax.GradientTransformation, fields: Sequence[str] = (), dtype: str = 'float32'
) -> optax.GradientTransformationExtraArgs:
  """`tx` on float32 copies of gradients and parameters, with `fields` of its state (a named tuple) in `dtype`.

  No leaf of the state is the buffer of another or of a parameter: the training step is given them all to overwrite.
  """
  tx = optax.with_extra_args_support(tx)
  wide = lambda tree: optax.tree.cast(tree, jnp.float32)  # noqa: E731
  lay = lambda state, dtype: state._replace(**{f: optax.tree.cast(getattr(state, f), dtype) for f in fields})  # noqa: E731

  def init(params: Any) -> Any:
    return jax.tree.map(jnp.copy, lay(tx.init(wide(params)), dtype))

  def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
    params = None if params is None else wide(params)
    updates, state = tx.update(wide(updates), lay(state, jnp.float32), params, **extra)
    return updates, lay(state, dtype)

  return optax.GradientTransformationExtraArgs(init, update)
