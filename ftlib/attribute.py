"""Which tokens an answer hangs on: python -m ftlib.attribute --workdir=W --rows=3,17 --split=test

  --method=integrated_gradients   each token's share in the answer's logit, beside that of a row of padding tokens; the
                                  shares sum to the difference, and how nearly they do is printed (completeness)
  --method=rollout                how much of what the head reads comes from each token by way of attention

Tokens are coloured in a terminal, and in the report's section of the split (eval/<split>_attribution.jsonl holds the
numbers). Rows are numbers of the split, from 0. For tasks with a class or a score for a row, on encoders and decoders.
"""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib import cli, folder, judge, thresholds  # cli first: it sets the environment before JAX is imported
from ftlib.base import trees
from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.types import Batch, Outputs, Params
from ftlib.data import batches
from ftlib.data.batches import Examples
from ftlib.data.labels import PART
from ftlib.evals import attribution, report
from ftlib.models import inside, stack
from ftlib.run import Run
from ftlib.tasks.task import Task

METHODS = ('integrated_gradients', 'rollout')
_AT_ONCE = 8  # points of the path in a batch


def attributed(
  run: Run, own: Params, frozen: Params, split: str, rows: Sequence[int], *, method: str, steps: int, target: str = ''
) -> list[dict[str, Any]]:
  """A record for each document of some rows: `row`, `id`, `method`, `target`, `tokens` [[text, number], ...] and, of
  integrated gradients, `value` and `baseline` (the target's logit of the row, and of the same row of padding tokens)
  and `completeness` (how far the numbers' sum is off their difference, as a share of it). Raises `InputError`."""
  check(run, method, steps)
  params = stack.unstack(trees.join(own, frozen))
  params = jax.device_put(params, jax.devices()[0])
  examples, found = run.examples[split].unpacked, []
  numbers = _documents(examples, rows, split)
  longest = int(examples.tokens.lengths[[d for _, d in numbers]].max())
  length = -(-longest // 8) * 8
  collate = functools.partial(batches.collate, examples, size=1, edges=(length,), pad_id=run.tokenizer.pad_token_id)
  forward = jax.jit(lambda params, inputs: run.method.model.apply(params, inputs, None).logits)
  one = _Gradients(run, params, steps) if method == METHODS[0] else _Rollout(run, params)
  for row, document in numbers:
    batch = collate([document])
    logits_C = np.asarray(forward(params, batch))[0]
    of_split = run.dataset.splits[split][row]
    c = _target(run, logits_C, target, of_split)
    weights_L, more = one(batch, c)
    count = int((batch['segments'] > 0).sum())
    label = run.task.labels[c] if len(run.task.labels) else 'score'
    said = {'row': row, 'id': of_split.get('id', row), 'method': method, 'target': str(label)}
    pieces = texts(run.tokenizer, batch['tokens'][0, :count].tolist())
    found.append({**said, 'tokens': [[t, round(float(w), 6)] for t, w in zip(pieces, weights_L[:count])], **more})
  return found


def check(run: Run, method: str, steps: int) -> None:
  """Raises `InputError` for what cannot be attributed."""
  if method not in METHODS:
    raise InputError(f'--method={method} is none of {", ".join(METHODS)}{did_you_mean(method, METHODS)}')
  if steps < 1:
    raise InputError(f'--steps={steps}: wanted a number of points from 1')
  head = run.task.head
  if head.kind != 'classify' or head.documents > 1:
    raise InputError(
      f'task.name={run.settings.names["task"]} has no class or score for a row as a whole; attribution is of one'
    )


class _Gradients:
  """Integrated gradients of a class's logit, from the row's own tokens replaced by padding tokens, unknown words too;
  special ones stay."""

  def __init__(self, run: Run, params: Params, steps: int):
    self.run, self.params, self.steps = run, params, steps
    model = run.method.model
    known = run.tokenizer
    framing = {known.bos_token_id, known.eos_token_id, known.cls_token_id, known.sep_token_id}
    special = {*known.all_special_ids} - ({known.unk_token_id} - framing)
    self.plain = np.vectorize(lambda i: i not in special, otypes=[bool])
    self.embed = jax.jit(lambda params, inputs: inside.embedded(model, params, inputs).astype(jnp.float32))

    def logit(noise_BLD: jax.Array, params: Params, inputs: Batch, c: jax.Array) -> tuple[jax.Array, jax.Array]:
      value_B = model.apply(params, {**inputs, 'embedding_noise': noise_BLD}, None).logits[:, c]
      return value_B.sum(), value_B

    self.gradient = jax.jit(jax.grad(logit, has_aux=True))

  def __call__(self, batch: Batch, c: int) -> tuple[np.ndarray, dict[str, float]]:
    pad = self.run.tokenizer.pad_token_id
    blank = {**batch, 'tokens': np.where(self.plain(batch['tokens']), pad, batch['tokens']).astype(np.int32)}
    x_LD, x0_LD = (np.asarray(self.embed(self.params, b))[0] for b in (batch, blank))
    size = min(_AT_ONCE, self.steps)
    wide = {n: np.repeat(x, size, 0) for n, x in batch.items()}

    def at(alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
      """(gradients [S, L, D], values [S]) at points of the path."""
      grads, values = [], []
      for i in range(0, len(alphas), size):
        part = np.resize(alphas[i : i + size], size)
        noise_SLD = (part[:, None, None] - 1) * (x_LD - x0_LD)
        grad, value = self.gradient(noise_SLD.astype(np.float32), self.params, wide, c)
        keep = min(size, len(alphas) - i)
        grads.append(np.asarray(grad)[:keep])
        values.append(np.asarray(value)[:keep])
      return np.concatenate(grads), np.concatenate(values)

    weights_L = attribution.integrated_gradients(lambda alphas: at(alphas)[0], x_LD, x0_LD, steps=self.steps)
    baseline, value = map(float, at(np.array([0.0, 1.0]))[1])
    off = abs(weights_L.sum() - (value - baseline)) / max(abs(value - baseline), 1e-9)
    return weights_L, {'value': value, 'baseline': baseline, 'completeness': float(off)}


class _Rollout:
  """Attention rollout onto what the head reads of a row: its first token, its last, the mean, or its marks."""

  def __init__(self, run: Run, params: Params):
    self.run, self.params = run, params
    self.attended = jax.jit(lambda params, inputs: inside.attended(run.method.model, params, inputs)[1])

  def __call__(self, batch: Batch, c: int) -> tuple[np.ndarray, dict[str, float]]:
    layers = [np.asarray(a)[0] for a in self.attended(self.params, batch)]
    lead = layers[0].shape[1] - batch['tokens'].shape[1]
    head, count = self.run.task.head, int((batch['segments'] > 0).sum())
    if head.marks:
      read = batch['marks'][0]
    else:
      read = {'cls': [0], 'last': [count - 1], 'mean': np.arange(count), 'max': np.arange(count)}[head.pooling]
    return attribution.rollout(layers, lead=lead)[np.asarray(read)].mean(0), {}


def texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
  """The text of each token; the space is in front of those that begin a word, but for the first."""
  wordwise = type(tokenizer.backend_tokenizer.model).__name__ == 'WordPiece'
  out = []
  for i, (number, name) in enumerate(zip(ids, tokenizer.convert_ids_to_tokens(list(ids)))):
    text = tokenizer.decode([number], clean_up_tokenization_spaces=False)
    begins = not name.startswith('##') if wordwise else name.startswith(('Ġ', '▁'))
    out.append(' ' * (begins and i > 0) + text.removeprefix('##').lstrip(' '))
  return out


def shown(record: dict[str, Any], *, colour: bool) -> str:
  """A record for the terminal: blue what speaks for the target, orange what speaks against it, or numbers."""
  top = max((abs(w) for _, w in record['tokens']), default=0) or 1.0
  head = f'--- row {record["row"]}: {record["target"]}'
  if 'value' in record:
    head += f', logit {record["value"]:.4f}, of padding {record["baseline"]:.4f}, off by {record["completeness"]:.2%}'
  if not colour:
    return head + '\n' + '\n'.join(f'  {w:+.4f}  {t.strip()}' for t, w in record['tokens'])
  return head + '\n' + ''.join(_coloured(t, w / top) for t, w in record['tokens'])


def _coloured(text: str, share: float) -> str:
  """Text on a background from white to blue or orange, in 24 bits."""
  full = (111, 160, 200) if share > 0 else (214, 130, 88)
  r, g, b = (round(255 + (f - 255) * min(abs(share), 1)) for f in full)
  return f'\x1b[38;2;0;0;0m\x1b[48;2;{r};{g};{b}m{text}\x1b[0m'


def _documents(examples: Examples, rows: Sequence[int], split: str) -> list[tuple[int, int]]:
  """(row, document) of some rows; windows are documents of their own."""
  total = len(examples) if examples.windows is None else int(examples.windows[-1]) + 1
  out = []
  for row in rows:
    if not 0 <= row < total:
      raise InputError(f'--rows: {split} has the rows 0 to {total - 1}, and no {row}')
    found = [row] if examples.windows is None else np.flatnonzero(examples.windows == row).tolist()
    out += [(row, d) for d in found]
  return out


def _target(run: Run, logits_C: np.ndarray, target: str, row: Mapping[str, Any]) -> int:
  """The class that is attributed: the one named, else the one that the task predicts, of several labels the likeliest;
  where there are several tasks at once, the row's own."""
  if not target:
    return _predicted(run.task, logits_C, row)
  names = [str(l) for l in run.task.labels]
  if target not in names:
    raise InputError(f'--target={target} is none of the labels {", ".join(names[:20])}{did_you_mean(target, names)}')
  return names.index(target)


def _predicted(task: Task, logits_C: np.ndarray, row: Mapping[str, Any]) -> int:
  if hasattr(task, 'stretch'):
    own = task.stretch(row[PART])
    return own.start + _predicted(task.tasks[row[PART]], logits_C[own], row)
  found = task.predict(Outputs(None, logits=jnp.asarray(logits_C[None])), {})
  said = next(iter(task.records([row], {n: np.asarray(x) for n, x in found.items()})))['prediction']
  return task.labels.index(said) if said in task.labels else int(logits_C.argmax())


def main() -> None:
  """Attributes as the flags say."""
  from absl import flags

  f = flags.FLAGS
  try:
    rows = [int(r) for r in f.rows]
  except ValueError as e:
    raise InputError(f'--rows={",".join(f.rows)}: wanted numbers of rows from 0, with commas between') from e
  if not rows:
    raise InputError('give the rows that are meant: --rows=3,17')
  if f.method not in METHODS:
    raise InputError(f'--method={f.method} is none of {", ".join(METHODS)}{did_you_mean(f.method, METHODS)}')
  built, own, frozen, step = judge.opened(f.workdir, f.split, f.checkpoint)
  where = pathlib.Path(f.workdir).expanduser()
  built = thresholds.read(built, where, step, split='')
  found = attributed(built, own, frozen, f.split, rows, method=f.method, steps=f.steps, target=f.target)
  (where / 'eval').mkdir(exist_ok=True)
  with folder.written(where / 'eval' / f'{f.split}_attribution.jsonl') as file:
    file.writelines(folder.line(r) for r in found)
  for record in found:
    print(shown(record, colour=sys.stdout.isatty()))
  print(f'report: {report.write(where)}')


if __name__ == '__main__':
  from absl import flags

  flags.DEFINE_string('workdir', None, 'the folder that train.py wrote')
  flags.DEFINE_string('split', 'test', 'train, validation or test')
  flags.DEFINE_string('checkpoint', 'best', 'best, last, or the number of a step')
  flags.DEFINE_list('rows', [], 'numbers of rows, from 0')
  flags.DEFINE_string('method', METHODS[0], ' or '.join(METHODS))
  flags.DEFINE_string('target', '', 'the label whose logit is attributed, the predicted one by default')
  flags.DEFINE_integer('steps', 64, 'of integrated gradients: points of the path')
  sys.exit(cli.run(main))
