"""A trained run as a Hugging Face folder: python -m ftlib.export --workdir=runs/quickstart --output=DIR

Adapters are merged into the base; the folder (weights, `config.json`, tokenizer, of language models the chat template
and `generation_config.json`) is what transformers loads with no missing and no unexpected key. With --format=peft the
adapter and what else was trained are written alone, as PEFT loads them onto the base. Either is read back and its
logits compared with the run's before the export is called done. `README.md` says what it is, how it was made and what
it scored.
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

from ftlib import folder, judge, language_files, model_card, peft_config, peft_folder
from ftlib import run as runs
from ftlib.base import settings, trees
from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.types import Batch, Params
from ftlib.io import hf
from ftlib.io import workdir as files
from ftlib.models import heads, stack
from ftlib.models.model import Model
from ftlib.peft.method import added
from ftlib.run import Run

_TOKENIZER = ('tokenizer*', 'vocab*', 'merges.txt', 'special_tokens_map.json', 'added_tokens.json', '*.model')
_TOLERANCE = {'float32': 1e-4, 'bfloat16': 5e-2}  # of logits, or of the largest where that is above 1
_PLACES = 64  # tokens of a batch whose logits over the vocabulary are compared
FORMATS = ('hf', 'peft')
DTYPES = ('float32', 'bfloat16')


def export(
  workdir: pathlib.Path, output: pathlib.Path, *, checkpoint: str = 'best', format: str = 'hf', dtype: str = 'float32'
) -> float:
  """Writes the folder, 'hf' (merged) or 'peft'; gives the largest difference of its logits to the run's on some rows.

  All is computed in float32, whatever the run computed in; `dtype` is that of the merged weights in the file. Raises
  `InputError` where `output` is not empty, and `RuntimeError` where logits differ by more than 1e-4 of the largest one
  (1e-4 where that is below 1), or, in bfloat16, whose numbers have 8 bits, by more than 5e-2 of it.
  """
  for flag, value, known in (('format', format, FORMATS), ('dtype', dtype, DTYPES)):
    if value not in known:
      raise InputError(f'--{flag}={value} is none of {", ".join(known)}{did_you_mean(value, known)}')
  if format == 'peft' and dtype != 'float32':
    raise InputError(f'--dtype={dtype} is of merged weights; adapters are small, and --format=peft keeps their float32')
  if output.exists() and any(output.iterdir()):
    raise InputError(f'--output={output} is not empty; nothing is overwritten')
  config, labels = folder.stored(workdir)
  run = _built(config, labels)
  _architecture(run)  # before anything is read
  own, frozen, step = judge.restored(run, workdir, checkpoint)
  params = stack.unstack(trees.join(own, frozen))
  params = jax.tree.map(_float32, params)  # a bfloat16 kernel would round the adapter away
  if format == 'peft':
    difference = _checked(_write_peft(params, run, output), run, output)
  else:
    if run.method.merge is None:
      raise InputError(f'method.name={run.settings.names["method"]} cannot be merged into the weights of its base')
    merged = run.method.merge(params)
    plain = run.base.family.build(run.method.model.config, head=run.task.head)
    write(plain, merged, run, output, dtype=dtype)
    difference = _checked(_difference(run, params, plain, output), run, output, dtype=dtype)
  model_card.write(output, run, workdir, step=step, format=format, dtype=dtype)
  return difference


def _built(config: dict[str, Any], labels: list) -> Run:
  """The run with its rows of validation; where the data cannot be read, with drawn token ids, and it says so."""
  try:
    return runs.build(config, labels=labels, split='validation')
  except InputError as e:
    try:
      run = runs.build(config, labels=labels, data=False)
    except InputError:
      raise e from None
    print(f'note: logits are compared on drawn token ids, for the data cannot be read: {str(e).splitlines()[0]}')
    return run


def _checked(apart: tuple[float, float], run: Run, output: pathlib.Path, *, dtype: str = 'float32') -> float:
  """The difference, within the tolerance of the dtype; `apart` is (difference, largest logit)."""
  difference, largest = apart
  tolerance = _TOLERANCE[dtype] * max(1.0, largest)
  if not difference <= tolerance:
    raise RuntimeError(f'{output}: logits differ from the run by {difference:.1e}, more than {tolerance:.0e}')
  if run.task.head.transitions:
    print('note: crf.transitions are in the folder, but transformers has no CRF and says a tag for each word by itself')
  theirs = heads.pooling(run.base.family, run.method.model.config)
  alike = hasattr(run.base.family, 'LIBRARY') or run.task.head.pooling == theirs or _pooled_by(run)
  if run.task.head.kind == 'classify' and not alike:
    read = {'cls': 'first token', 'last': 'last token'}.get(theirs, theirs)
    print(f"note: the run's head reads the {run.task.head.pooling} of the tokens, transformers' reads the {read}")
  return difference


def write(model: Model, params: Params, run: Run, output: pathlib.Path, *, dtype: str = 'float32') -> None:
  """Weights in `dtype`, config and tokenizer of a merged model; of a language model, what it generates by."""
  floating = lambda x: x.astype(jnp.dtype(dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
  tensors = {k: floating(x) for k, x in model.tensors(trees.flatten(params)).items()}
  values = {k: v for k, v in run.base.values.items() if k not in ('torch_dtype', 'dtype')}
  hf.save(output, tensors, {**values, **_head_config(run), 'dtype': dtype})
  _write_text_files(run, output)


def _write_text_files(run: Run, output: pathlib.Path) -> None:
  """The tokenizer, of a language model `generation_config.json`, and what Sentence-Transformers loads vectors by."""
  if run.task.head.kind == 'lm' or not run.base.folder.is_dir():
    language_files.save_tokenizer(run.tokenizer, output)
  else:
    for pattern in _TOKENIZER:
      for path in run.base.folder.glob(pattern):
        shutil.copy(path, output / path.name)
  if run.task.head.kind == 'lm':
    found = language_files.generation_config(run.tokenizer, run.base.values, run.base.folder)
    files.write_json(output / 'generation_config.json', found)
  if run.task.head.kind == 'embed' and not hasattr(run.base.family, 'LIBRARY'):
    width = run.method.model.config.embed
    for name, value in language_files.sentence_transformer(run.task.head.pooling, width, run.limit).items():
      (output / name).parent.mkdir(exist_ok=True)
      files.write_json(output / name, value)


def _float32(x: jax.Array) -> jax.Array:
  return x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _head_config(run: Run) -> dict[str, Any]:
  head, values = run.task.head, run.base.values
  out = {'architectures': [_architecture(run)]}
  if head.form in ('lm', 'mlm', 'span', 'embed'):
    return out
  if head.form == 'choice':
    return {**out, **_pooled_by(run), **getattr(run.base.family, 'CHOICE', {})}
  if head.pooling == 'last' and values.get('pad_token_id') is None:
    out['pad_token_id'] = run.tokenizer.pad_token_id  # by which transformers finds the last token
  labelled = bool(run.task.labels)
  labels = run.task.labels or [f'LABEL_{i}' for i in range(head.classes)]  # as transformers calls a score
  names = {str(i): str(l) for i, l in enumerate(labels)}
  out |= {'id2label': names, 'label2id': {v: int(k) for k, v in names.items()}, 'num_labels': len(names)}
  if head.kind == 'tag':
    return out
  problem = getattr(run.task, 'problem_type', 'single_label_classification' if labelled else 'regression')
  return {**out, **_pooled_by(run), 'problem_type': problem, 'ftlib_pooling': head.pooling}


def _pooled_by(run: Run) -> dict[str, str]:
  """What config.json tells transformers' class head to read, in families where it does."""
  key, pooling = getattr(run.base.family, 'POOLING_KEY', ''), run.task.head.pooling
  return {key: pooling} if key and pooling in ('cls', 'mean') else {}


def _architecture(run: Run) -> str:
  """What transformers calls the model with this head. Raises `InputError` where it has none."""
  head, kind = run.task.head, run.base.values['model_type']
  known = run.base.family.MODEL_TYPES[kind]
  known = {**known, 'embed': known['classify'].replace('ForSequenceClassification', 'Model')}
  if head.marks or head.form not in known:
    what = 'that reads marked tokens' if head.marks else f'of the kind {head.form!r}'
    rest = '; with task.pooling=cls or mean it is one that there is' if head.marks else ''
    raise InputError(
      f'task.name={run.settings.names["task"]}: there is no form of {kind} with a head {what} to export to{rest}'
    )
  return known[head.form]


def _difference(run: Run, params: Params, plain: Model, output: pathlib.Path) -> tuple[float, float]:
  weights = hf.Weights(output)
  match = hf.match(weights, plain.hf_names(), plain.hf_shapes(), prefix=run.base.family.PREFIX, tied=plain.tied)
  back = trees.unflatten({n: np.asarray(plain.from_hf(n, weights.read(k))) for n, k in match.pairs.items()})
  return _apart(run, params, plain, back)


def _apart(run: Run, params: Params, model: Model, back: Params) -> tuple[float, float]:
  """(the largest difference of logits between the run's model and another, the largest logit), both in float32."""
  _, batch = next(iter(run.eval_batches('validation')))
  places = np.argwhere(np.asarray(batch['segments']) > 0)
  places = places[np.linspace(0, len(places) - 1, min(len(places), _PLACES)).astype(int)]
  ours = _logits(dataclasses.replace(run.method.model, compute=jnp.float32), params, batch, places)
  theirs = _logits(model, back, batch, places)
  return float(abs(ours - theirs).max()), float(abs(ours).max())


def _logits(model: Model, params: Params, batch: Batch, places_P2: np.ndarray) -> jax.Array:
  """Logits of the rows [B, C], of a language model those of some places (row, token) [P, V], or the vectors of rows."""

  def fn(params: Params, batch: Batch) -> jax.Array:
    outputs = model.apply(params, batch)
    if outputs.unembed is None:
      return outputs.pooled if outputs.logits is None else outputs.logits
    return outputs.unembed(outputs.hidden[places_P2[:, 0], places_P2[:, 1]])

  with jax.default_matmul_precision('highest'):
    return jax.jit(fn)(params, batch)


def _write_peft(params: Params, run: Run, output: pathlib.Path) -> tuple[float, float]:
  """Writes the PEFT folder and reads it back by what stands in it; gives what `_apart` gives."""
  name, module = run.settings.names['method'], run.settings.modules['method']
  if not hasattr(module, 'PEFT_TYPE'):
    rest = '--format=hf merges it' if run.method.merge else 'nor can it be merged: it stays in its run folder'
    raise InputError(f'--format=peft: PEFT has no form of method.name={name}; {rest}')
  if hasattr(run.base.family, 'LIBRARY'):
    kind = run.base.values['model_type']
    raise InputError(f'--format=peft: PEFT is for models of transformers, which has no {kind}; --format=hf merges it')
  if run.task.head.form not in peft_config.TASKS or run.task.head.transitions:
    what = 'the transitions of task.crf' if run.task.head.transitions else f'task.name={run.settings.names["task"]}'
    raise InputError(f'--format=peft: PEFT has no place for {what}; --format=hf has')
  if 'adapter' in run.identity:
    raise InputError(
      f'--format=peft: the frozen parameters of this run are not those of {run.settings.model.pretrained}, but start '
      f'from {run.settings.model.adapter}; PEFT would put the adapter on the wrong base\n'
      '  --format=hf writes them merged, and a run whose model.pretrained is that run, exported, can be exported'
    )
  flat = jax.device_get(trees.flatten(params))
  model = dataclasses.replace(run.method.model, compute=jnp.float32)
  form, save = peft_folder.form_of_run(module, run.settings.method, model, run.owns)
  pretrained = run.settings.model.pretrained
  local = pretrained.startswith('package:') or pathlib.Path(pretrained).expanduser().is_dir()
  if not run.base.folder.is_dir():  # a GGUF file, onto which PEFT cannot load
    base = str(_write_base(run, output / 'base').absolute())
  else:
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
  if run.task.head.kind == 'lm':
    _write_text_files(run, output)
  frozen = {n: x for n, x in flat.items() if not added(n)}
  wanted = peft_config.flags({'name': reader, **fields}, there.Config())
  print(f'to train on: --config.model.adapter={output} {wanted}')
  return _apart(run, params, method.model, trees.unflatten({**frozen, **back}))


def _write_base(run: Run, output: pathlib.Path) -> pathlib.Path:
  """The base of a run as it was before, as a folder."""
  plain = run.base.family.build(run.method.model.config, head=run.task.head)
  pairs = {n: k for n, k in run.match.pairs.items() if n in plain.hf_names()}
  flat = {n: np.asarray(plain.from_hf(n, run.base.weights.read(k))) for n, k in pairs.items()}
  fresh = plain.initial(
    jax.random.key(0), [n for n in plain.hf_names() if n not in pairs]
  )  # which the adapter replaces
  write(plain, trees.unflatten({**flat, **trees.flatten(fresh)}), run, output)
  return output


def main() -> None:
  """Exports as the flags say."""
  from absl import flags

  workdir, output = flags.FLAGS.workdir, flags.FLAGS.output
  if not workdir or not output:
    raise InputError('give --workdir=RUN_FOLDER and --output=NEW_FOLDER')
  options = {'checkpoint': flags.FLAGS.checkpoint, 'format': flags.FLAGS.format, 'dtype': flags.FLAGS.dtype}
  difference = export(pathlib.Path(workdir), pathlib.Path(output), **options)
  print(f'{output}: read back, logits within {difference:.1e} of the run')


if __name__ == '__main__':
  from absl import flags

  flags.DEFINE_string('workdir', None, 'the folder that train.py wrote')
  flags.DEFINE_string('output', None, 'the folder to make')
  flags.DEFINE_string('checkpoint', 'best', 'best, last, or the number of a step')
  flags.DEFINE_string('dtype', 'float32', 'of the weights of --format=hf: float32 or bfloat16')
  flags.DEFINE_string('format', 'hf', 'hf: adapters merged into a model; peft: the adapter alone, as PEFT loads it')
  sys.exit(cli.run(main))
