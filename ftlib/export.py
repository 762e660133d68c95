"""A trained run as a Hugging Face folder: python -m ftlib.export --workdir=runs/quickstart --output=DIR

Adapters are merged into the base; the folder (weights, `config.json` with the label list, tokenizer) is what
transformers loads with no missing and no unexpected key. With --format=peft the adapter and what else was trained are
written alone, as PEFT loads them onto the base. Either is read back and its logits compared with the run's before the
export is called done.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import sys
from typing import Any

from ftlib import cli

import jax  # isort: skip - cli sets the environment first
import jax.numpy as jnp  # isort: skip
import numpy as np  # isort: skip

from ftlib import folder, judge, peft_config, peft_folder
from ftlib import run as runs
from ftlib.base import settings, trees
from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.types import Params
from ftlib.io import hf
from ftlib.models import stack
from ftlib.models.model import Model
from ftlib.peft.method import added
from ftlib.run import Run

_TOKENIZER = ('tokenizer*', 'vocab*', 'merges.txt', 'special_tokens_map.json', 'added_tokens.json', '*.model')
_TOLERANCE = 1e-4
FORMATS = ('hf', 'peft')


def export(workdir: pathlib.Path, output: pathlib.Path, *, checkpoint: str = 'best', format: str = 'hf') -> float:
  """Writes the folder, 'hf' (merged) or 'peft'; gives the largest difference of its logits to the run's on some rows.

  Everything is in float32, whatever the run computed in. Raises `InputError` where `output` is not empty, and
  `RuntimeError` where the logits differ by more than 1e-4.
  """
  if format not in FORMATS:
    raise InputError(f'--format={format} is none of {", ".join(FORMATS)}{did_you_mean(format, FORMATS)}')
  if output.exists() and any(output.iterdir()):
    raise InputError(f'--output={output} is not empty; nothing is overwritten')
  config, labels = folder.stored(workdir)
  run = runs.build(config, labels=labels, split='validation')
  own, frozen, _ = judge.restored(run, workdir, checkpoint)
  params = stack.unstack(trees.join(own, frozen))
  params = jax.tree.map(_float32, params)  # a bfloat16 kernel would round the adapter away
  if format == 'peft':
    return _checked(_write_peft(params, run, output), run, output)
  if run.method.merge is None:
    raise InputError(f'method.name={run.settings.names["method"]} cannot be merged into the weights of its base')
  merged = run.method.merge(params)
  plain = run.base.family.build(run.method.model.config, head=run.task.head)
  write(plain, merged, run, output)
  return _checked(_difference(run, params, plain, output), run, output)


def _checked(difference: float, run: Run, output: pathlib.Path) -> float:
  if difference > _TOLERANCE:
    raise RuntimeError(f'{output}: logits differ from the run by {difference:.1e}, more than {_TOLERANCE:.0e}')
  if run.task.head.pooling != 'cls':
    print(f"note: the run's head reads the {run.task.head.pooling} of the tokens, transformers' reads the first token")
  return difference


def write(model: Model, params: Params, run: Run, output: pathlib.Path) -> None:
  """Weights, config and tokenizer of a merged model."""
  flat = trees.flatten(params)
  tensors = {hf_name: np.asarray(model.to_hf(n, jax.device_get(flat[n]))) for n, hf_name in model.hf_names().items()}
  hf.save(output, tensors, {**run.base.values, **_head_config(run)})
  for pattern in _TOKENIZER:
    for path in run.base.folder.glob(pattern):
      shutil.copy(path, output / path.name)


def _float32(x: jax.Array) -> jax.Array:
  return x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _head_config(run: Run) -> dict[str, Any]:
  names = {str(i): str(l) for i, l in enumerate(run.task.labels)}
  return {
    'architectures': [run.base.family.MODEL_TYPES[run.base.values['model_type']]],
    'id2label': names,
    'label2id': {v: int(k) for k, v in names.items()},
    'num_labels': len(names),
    'problem_type': 'single_label_classification',
    'ftlib_pooling': run.task.head.pooling,
    'dtype': 'float32',
  }


def _difference(run: Run, params: Params, plain: Model, output: pathlib.Path) -> float:
  weights = hf.Weights(output)
  match = hf.match(weights, plain.hf_names(), plain.hf_shapes(), prefix=run.base.family.PREFIX)
  back = trees.unflatten({n: np.asarray(plain.from_hf(n, weights.read(k))) for n, k in match.pairs.items()})
  return _apart(run, params, plain, back)


def _apart(run: Run, params: Params, model: Model, back: Params) -> float:
  """The largest difference of logits between the run's model and another, both in float32."""
  _, batch = next(iter(run.eval_batches('validation')))
  ours = jax.jit(dataclasses.replace(run.method.model, compute=jnp.float32).apply)(params, batch).logits
  theirs = jax.jit(model.apply)(back, batch).logits
  return float(abs(ours - theirs).max())


def _write_peft(params: Params, run: Run, output: pathlib.Path) -> float:
  """Writes the PEFT folder and reads it back by what stands in it; gives the difference of logits."""
  name, module = run.settings.names['method'], run.settings.modules['method']
  if not hasattr(module, 'PEFT_TYPE'):
    rest = '--format=hf merges it' if run.method.merge else 'nor can it be merged: it stays in its run folder'
    raise InputError(f'--format=peft: PEFT has no form of method.name={name}; {rest}')
  if run.task.head.kind != 'classify':
    raise InputError(f'--format=peft writes classifiers, and task.name={run.settings.names["task"]} has no such head')
  flat = jax.device_get(trees.flatten(params))
  model = dataclasses.replace(run.method.model, compute=jnp.float32)
  form, save = peft_folder.form_of_run(module, run.settings.method, model, run.owns)
  pretrained = run.settings.model.pretrained
  local = pretrained.startswith('package:') or pathlib.Path(pretrained).expanduser().is_dir()
  base = str(run.base.folder.absolute()) if local else pretrained
  peft_folder.write(output, form, flat, base=base, save=save, ours={'method': name, **run.identity})

  source = peft_folder.opened(output, field=f'--output={output}')
  plain = run.base.family.build(run.method.model.config, head=run.task.head)
  found = peft_config.candidates(source.values, plain, where=str(output), also={name: module})
  if not found:
    peft_config.read(source.values, module, plain, where=str(output))  # which says why
  reader = name if name in found else min(found)  # one that starts as a PiSSA leaves as a LoRA
  there, fields = found[reader]
  config = settings.read(there.Config, fields, where='method')
  method = there.build(config, plain)
  back = peft_folder.values(source, peft_folder.form_of_folder(source, there, config, method.model))
  frozen = {n: x for n, x in flat.items() if not added(n)}
  wanted = peft_config.flags({'name': reader, **fields}, there.Config())
  print(f'to train on: --config.model.adapter={output} {wanted}')
  return _apart(run, params, method.model, trees.unflatten({**frozen, **back}))


def main() -> None:
  """Exports as the flags say."""
  from absl import flags

  workdir, output = flags.FLAGS.workdir, flags.FLAGS.output
  if not workdir or not output:
    raise InputError('give --workdir=RUN_FOLDER and --output=NEW_FOLDER')
  options = {'checkpoint': flags.FLAGS.checkpoint, 'format': flags.FLAGS.format}
  difference = export(pathlib.Path(workdir), pathlib.Path(output), **options)
  print(f'{output}: read back, logits within {difference:.1e} of the run')


if __name__ == '__main__':
  from absl import flags

  flags.DEFINE_string('workdir', None, 'the folder that train.py wrote')
  flags.DEFINE_string('output', None, 'the folder to make')
  flags.DEFINE_string('checkpoint', 'best', 'best, last, or the number of a step')
  flags.DEFINE_string('format', 'hf', 'hf: adapters merged into a model; peft: the adapter alone, as PEFT loads it')
  sys.exit(cli.run(main))
