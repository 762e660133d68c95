"""The Generator of a run, or of a pretrained model as it is: parameters laid as they decode fastest.

Adapters are folded into the base where the method can, and matrices kept in the dtype that is computed in. On a CPU the
layers are unstacked and on one device: a scan copies every layer's matrices at every token, and several devices of one
CPU read the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base import trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head, Params
from ftlib.data import tokens
from ftlib.generation.generator import Generator
from ftlib.generation.settings import Settings
from ftlib.io import hf
from ftlib.models import stack
from ftlib.models.model import Model

if TYPE_CHECKING:
  from ftlib.run import Base, Run  # which imports this file


def of_run(run: Run, own: Params, frozen: Params, settings: Settings, *, field: str = '--') -> Generator:
  """The Generator of a run with some parameters. Raises `InputError` where its task is not of language."""
  kind = run.task.head.kind
  if kind != 'lm':
    raise InputError(
      f'task.name={run.settings.names["task"]} has a model with the head {kind}, which writes no text; train with a '
      'task of language: lm, sft or generate'
    )
  model, params = _merged(run, own, frozen)
  return Generator(
    model,
    _placed(params, model.compute, run.runs if model is run.method.model else None),
    run.tokenizer,
    settings,
    configs=configs(run.base),
    virtual=run.method.tokens,
    field=field,
  )


def renewed(generator: Generator, run: Run, own: Params, frozen: Params) -> Generator:
  """A Generator of a run with other parameters of it; what is compiled is used again."""
  model, params = _merged(run, own, frozen)
  return generator.using(_placed(params, model.compute, run.runs if model is run.method.model else None))


def of_base(base: Base, tokenizer: Any, settings: Settings, *, compute: str, where: str) -> Generator:
  """The Generator of a pretrained model as it is. Raises `InputError` where it has no head for language."""
  arch = base.family.from_hf(base.values, where=base.where, allow='')
  if 'lm' not in base.family.MODEL_TYPES.get(base.values['model_type'], {'lm': ''}):
    raise InputError(f'{where}: model_type={base.values["model_type"]!r} is an encoder, which writes no text')
  tokens.check_vocabulary(tokenizer, vocab=arch.vocab, where=where)
  model = base.family.build(arch, head=Head('lm'), compute=jnp.dtype(compute))
  match = hf.match(base.weights, model.hf_names(), model.hf_shapes(), prefix=base.family.PREFIX, tied=model.tied)
  if match.fresh:
    raise InputError(f'{where} lacks {match.fresh[0]}, without which it writes no text: its head is another one')
  flat = {n: jnp.asarray(np.asarray(model.from_hf(n, base.weights.read(k)))) for n, k in match.pairs.items()}
  params = _placed(trees.unflatten(flat), model.compute, None)
  return Generator(model, params, tokenizer, settings, configs=configs(base))


def answers(run: Run, own: Params, frozen: Params, split: str) -> tuple[dict[str, float], np.ndarray]:
  """(the scores of a split's answers, the answer to each of its rows, None where it was not asked)."""
  rows = run.dataset.splits[split]
  asked = [rows[i] for i in range(run.task.asked(len(rows)))]
  cached = run.__dict__.get('_generator')  # of an evaluation before: what it compiled is used again
  if cached is None:
    cached = of_run(run, own, frozen, run.task.generation, field='task.')
    run.__dict__['_generator'] = cached
  else:
    cached = renewed(cached, run, own, frozen)
  prompts = run.task.prompts(asked, run.tokenizer)
  texts = [found[0].text for found in cached.generate([cut(p, cached) for p in prompts])]
  out = np.full(len(rows), None, object)
  out[: len(texts)] = texts
  scores, shortened = run.task.judged(asked, texts), sum(len(p) > cached.room for p in prompts)
  return {**scores, **({'prompts_cut': shortened} if shortened else {})}, out


def check(run: Run) -> None:
  """Raises `InputError` where the task of a run asks for answers that its model cannot give; costs nothing."""
  if hasattr(run.task, 'judged'):
    settings, options = run.task.generation, {'virtual': run.method.tokens, 'field': 'task.'}
    Generator(run.method.model, {}, run.tokenizer, settings, configs=configs(run.base), **options)


def configs(base: Base) -> list[Mapping[str, Any]]:
  """`generation_config.json`, where there is one, and `config.json`: both name the tokens that end a text."""
  return [hf.read_generation_config(base.folder), base.values]


def cut(prompt: list[int], generator: Generator) -> list[int]:
  """A prompt without its beginning, where it is longer than the model has positions for; what the tokenizer puts in
  front of a text stays, as in training."""
  front = tokens.frame(generator.tokenizer)[0]
  keep = len(front) if prompt[: len(front)] == front and len(front) < generator.room else 0
  return [*prompt[:keep], *prompt[keep - generator.room :]] if len(prompt) > generator.room else prompt


def _merged(run: Run, own: Params, frozen: Params) -> tuple[Model, Params]:
  """The model that computes the same as the run's with its adapters folded in, and its parameters, layer by layer."""
  model = run.method.model
  params = stack.unstack(_gathered(trees.join(own, frozen)))
  if run.method.merge is None:
    return model, params
  wide = lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
  plain = run.base.family.build(model.config, head=run.task.head, compute=model.compute)
  return plain, run.method.merge(jax.tree.map(wide, params))  # in bfloat16 an adapter would be rounded away


def _gathered(params: Params) -> Params:
  """On a CPU all on one device; elsewhere where they are."""
  return jax.device_put(params, jax.devices()[0]) if jax.default_backend() == 'cpu' else params


def _placed(params: Params, compute: Any, runs: list[tuple[int, int]] | None) -> Params:
  """Matrices in the dtype of compute; layers apart on a CPU, else in stacks: `runs`, or all in one."""
  if compute != jnp.float32:
    cast = lambda n, x: x.astype(compute) if n.endswith(('/kernel', '/table')) and 'adapter' not in n else x  # noqa: E731
    params = trees.map_named(cast, params)
  if jax.default_backend() == 'cpu':
    return _gathered(params)
  return stack.stack(params, runs or [(0, len(params['layers']))])
