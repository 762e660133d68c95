"""Reads a run folder for the report, leniently: what is missing or broken becomes empty and a note, never an error.
Predictions are read through once for numbers, and again for the few rows that are shown (`report_rows.py`).

Shapes: N examples whose prediction can be judged, C classes.
"""

from __future__ import annotations

import array
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ftlib.evals import report_rows
from ftlib.evals.report_rows import Rows

_ILLEGAL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]')
_LABELS = {
  'accuracy': 'Accuracy',
  'precision': 'Precision',
  'precision_macro': 'Precision (macro)',
  'precision_micro': 'Precision (micro)',
  'recall': 'Recall',
  'recall_macro': 'Recall (macro)',
  'recall_micro': 'Recall (micro)',
  'f1': 'F1',
  'f1_macro': 'F1 (macro)',
  'f1_micro': 'F1 (micro)',
  'f1_weighted': 'F1 (weighted)',
  'precision_samples': 'Precision (rows)',
  'recall_samples': 'Recall (rows)',
  'f1_samples': 'F1 (rows)',
  'subset_accuracy': 'Subset accuracy',
  'hamming_loss': 'Hamming loss',
  'lrap': 'Label ranking AP',
  'mcc': 'Matthews correlation',
  'roc_auc': 'ROC AUC',
  'average_precision': 'Average precision',
  'log_loss': 'Log loss',
  'loss': 'Loss',
  'perplexity': 'Perplexity',
  'exact_match': 'Exact match',
  'pearson': 'Pearson correlation',
  'spearman': 'Spearman correlation',
  'mse': 'Mean squared error',
  'mae': 'Mean absolute error',
  'bits_per_token': 'Bits per token',
  'bleu': 'BLEU',
  'chrf': 'chrF',
  'rouge1': 'ROUGE-1',
  'rouge2': 'ROUGE-2',
  'rougeL': 'ROUGE-L',
  'f1_undirected': 'F1 (macro, either direction)',
  'has_answer_exact_match': 'Exact match (with an answer)',
  'has_answer_f1': 'F1 (with an answer)',
  'no_answer_exact_match': 'Exact match (without an answer)',
  'no_answer_f1': 'F1 (without an answer)',
  'best_exact_match': 'Exact match (at the best threshold)',
  'best_f1': 'F1 (at the best threshold)',
  'ter': 'TER',
  'mrr': 'MRR',
  'mean': 'Mean of the parts',
}


@dataclasses.dataclass(frozen=True)
class Judged:
  """Predictions of a classifier that name a known class and hold C finite probabilities.

  `rows` are the N rows as read; row i has true class `labels_N[i]`, predicted class `predictions_N[i]` and
  `probabilities_NC[i]`.
  """

  rows: Sequence[dict]
  labels_N: np.ndarray
  predictions_N: np.ndarray
  probabilities_NC: np.ndarray

  @property
  def confidence_N(self) -> np.ndarray:
    """Probability of the predicted class."""
    return self.probabilities_NC[np.arange(len(self.rows)), self.predictions_N]

  @property
  def correct_N(self) -> np.ndarray:
    return self.predictions_N == self.labels_N

  @property
  def positives_NC(self) -> np.ndarray:
    """Which rows are of which class."""
    return self.labels_N[:, None] == np.arange(self.probabilities_NC.shape[1])


@dataclasses.dataclass(frozen=True)
class Scored:
  """Predictions of a regression: the N rows as read, their true scores and the predicted ones, all finite."""

  rows: Sequence[dict]
  scores_N: np.ndarray
  predictions_N: np.ndarray

  @property
  def errors_N(self) -> np.ndarray:
    """Prediction minus true score."""
    return self.predictions_N - self.scores_N


@dataclasses.dataclass(frozen=True)
class Valued:
  """The N rows, as read, that hold a finite number of some name, and these numbers."""

  rows: Sequence[dict]
  values_N: np.ndarray


@dataclasses.dataclass(frozen=True)
class Split:
  """One evaluated split: `eval/<name>.json` and `eval/<name>_predictions.jsonl`.

  `rows` are all predictions, whatever the task; `judged` is None without those of a classifier, `scored` without those
  of a regression. `losses` are a language model's, one a row; `margins` those by which chosen answers are ahead;
  `places` where the right text stands among all. `more` is all of eval/<name>.json, `attribution` the rows of
  `eval/<name>_attribution.jsonl`.
  """

  name: str
  metrics: dict
  n: int | None
  checkpoint: object
  classes: list[str]
  rows: Sequence[dict]
  judged: Judged | None
  scored: Scored | None
  losses: Valued | None
  margins: Valued | None
  places: Valued | None = None
  more: dict = dataclasses.field(default_factory=dict)
  attribution: list[dict] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Run:
  """A run folder in memory. `history` is {split: rows of metrics.jsonl sorted by step, one for each step}; `preview`
  and `samples` are the rows of `eval/preview.jsonl` and `eval/samples.jsonl` (`ftlib/samples.py`)."""

  name: str
  config: dict
  env: dict
  summary: dict
  history: dict[str, list[dict]]
  splits: list[Split]
  preview: list[dict]
  samples: list[dict]
  modified: float | None
  notes: list[str]


def read(workdir: pathlib.Path) -> Run:
  """Everything the report shows of `workdir`, which may be empty."""
  notes: list[str] = []
  config, env, summary = (_object(workdir / f'{name}.json', notes) for name in ('config', 'env', 'summary'))
  log = workdir / 'metrics.jsonl'
  stamps = [p.stat().st_mtime for p in (log, workdir / 'summary.json', workdir / 'config.json') if p.exists()]
  return Run(
    name=str(first(config, 'name', 'run.name', 'run_name') or workdir.resolve().name),
    config=config,
    env=env,
    summary=summary,
    history=_history(report_rows.read(log, notes)),
    splits=_splits(workdir / 'eval', notes),
    preview=list(report_rows.read(workdir / 'eval' / 'preview.jsonl', notes)),
    samples=list(report_rows.read(workdir / 'eval' / 'samples.jsonl', notes)),
    modified=stamps[0] if stamps else None,
    notes=notes,
  )


def number(value: object) -> float | None:
  """`value` as a finite float, else None; True is no number."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return None
  try:
    return float(value) if math.isfinite(value) else None
  except OverflowError:  # an integer beyond the range of floats
    return None


def first(tree: Mapping, *paths: str) -> object:
  """The first of the dotted `paths` that leads to something other than a dict, None or ''; else None."""
  for path in paths:
    node: object = tree
    for part in path.split('.'):
      node = node.get(part) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping) and node not in (None, ''):
      return node
  return None


def clean(value: object) -> str:
  """`value` as text without what HTML, XML or UTF-8 cannot hold: control characters and lone surrogates."""
  return _ILLEGAL.sub('\N{REPLACEMENT CHARACTER}', str(value))


def series(rows: Sequence[Mapping], key: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values of `key`, both float [n], of the rows in which it is a finite number."""
  pairs = [(row['step'], number(row.get(key))) for row in rows]
  pairs = [pair for pair in pairs if pair[1] is not None]
  steps_values = np.array(pairs, float).reshape(-1, 2)
  return steps_values[:, 0], steps_values[:, 1]


def named(split: Split, key: str) -> str:
  """A metric's name on a split: of a language model, what is accurate are its tokens, and of two classes, what is not
  averaged over them is that of the second; which that is, nobody can guess."""
  if key == 'accuracy' and split.losses:
    return 'Token accuracy'
  return label(key) + (
    f' ({split.classes[1]})' if key in ('precision', 'recall', 'f1') and len(split.classes) == 2 else ''
  )


def label(key: str) -> str:
  """A metric's name as people write it."""
  words = str(key).replace('_', ' ')
  return _LABELS.get(key) or words[:1].upper() + words[1:]


def _object(path: pathlib.Path, notes: list[str]) -> dict:
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    return {}
  except (OSError, ValueError, RecursionError):
    value = None
  if not isinstance(value, dict):
    notes.append(f'{path.name} is not a readable JSON object; left out.')
    return {}
  return value


def _history(rows: Iterable[dict]) -> dict[str, list[dict]]:
  """Rows by split and step. A resumed run writes some steps twice: the later row is the one that counts."""
  table: dict[str, dict[float, dict]] = {}
  for row in rows:
    step = number(row.get('step'))
    if step is not None:
      table.setdefault(str(row.get('split', 'train')), {})[step] = row
  return {split: [by_step[step] for step in sorted(by_step)] for split, by_step in table.items()}


def _splits(folder: pathlib.Path, notes: list[str]) -> list[Split]:
  """The test split first, as the number that nobody tuned on; then validation, then the others by name."""
  suffix = '_predictions.jsonl'
  names = {p.stem for p in folder.glob('*.json')} - {'temperature'}  # which is of no split
  for ending in (suffix, '_attribution.jsonl'):
    names |= {p.name.removesuffix(ending) for p in folder.glob(f'*{ending}')}
  order = {'test': 0, 'validation': 1}
  found = [_split(folder, name, suffix, notes) for name in sorted(names, key=lambda n: (order.get(n, 2), n))]
  return [part for split in found for part in _parts(split)]


def _parts(split: Split) -> list[Split]:
  """The split; of several tasks at once (`ftlib/tasks/several.py`) what is of all, and a Split of each one's rows."""
  of_all = {key: value for key, value in split.metrics.items() if '/' not in key}
  numbers: dict[str, array.array] = {}
  for i, row in enumerate(split.rows if len(of_all) < len(split.metrics) else ()):
    if isinstance(name := row.get('task'), str) and any(key.startswith(f'{name}/') for key in split.metrics):
      numbers.setdefault(name, array.array('q')).append(i)
  if not numbers:
    return [split]
  intervals = split.more.get('intervals')
  parts = []
  for name, at in numbers.items():
    labels = [c.removeprefix(name)[1:] for c in split.classes if c.startswith((f'{name}/', f'{name}+'))]
    record = {'metrics': _own(split.metrics, name), 'n': len(at), 'checkpoint': split.checkpoint, 'labels': labels}
    record |= {'intervals': _own(intervals, name), 'bootstrap': split.more.get('bootstrap')}
    parts.append(_made(f'{split.name}: {name}', record, split.rows.taken(at)))
  nothing = dict.fromkeys(('judged', 'scored', 'losses', 'margins', 'places'))
  return [dataclasses.replace(split, metrics=of_all, classes=[], rows=split.rows.taken([]), **nothing), *parts]


def _own(found: object, name: str) -> dict:
  """What is called 'name/...', without that."""
  found = found if isinstance(found, dict) else {}
  return {key.removeprefix(f'{name}/'): value for key, value in found.items() if key.startswith(f'{name}/')}


def _split(folder: pathlib.Path, name: str, suffix: str, notes: list[str]) -> Split:
  record = _object(folder / f'{name}.json', notes)
  rows = report_rows.read(folder / f'{name}{suffix}', notes)
  return _made(name, record, rows, [*report_rows.read(folder / f'{name}_attribution.jsonl', notes)])


def _made(name: str, record: dict, rows: Rows, attribution: Sequence[dict] = ()) -> Split:
  metrics = record['metrics'] if isinstance(record.get('metrics'), dict) else {}
  per_class = metrics.get('per_class')
  labels = record.get('labels')
  if not isinstance(labels, list):
    labels = list(per_class) if isinstance(per_class, dict) else []
  classes = [str(label) for label in labels]
  n = number(record.get('n'))
  return Split(
    name=name,
    metrics=metrics,
    n=int(n) if n is not None else (len(rows) or None),
    checkpoint=record.get('checkpoint'),
    classes=classes,
    rows=rows,
    judged=_judged(rows, classes),
    scored=None if classes else _scored(rows),
    losses=None if classes else _valued(rows, 'loss'),
    margins=None if classes else _valued(rows, 'margin'),
    places=None if classes else _valued(rows, 'place'),
    more=record,
    attribution=[*attribution],
  )


def _valued(rows: Rows, key: str) -> Valued | None:
  found = _numbers(rows, key)
  return Valued(*found) if found else None


def _scored(rows: Rows) -> Scored | None:
  """The rows whose label and prediction are finite numbers."""
  found = _numbers(rows, 'label', 'prediction')
  return Scored(*found) if found else None


def _numbers(rows: Rows, *names: str) -> tuple | None:
  """(the rows that hold a finite number of every name, float64 [N] for each); None without any."""
  kept, values = array.array('q'), [array.array('d') for _ in names]
  for i, row in enumerate(rows):
    found = [number(row.get(name)) for name in names]
    if None not in found:
      kept.append(i)
      for column, value in zip(values, found):
        column.append(value)
  return (rows.taken(kept), *(np.array(column) for column in values)) if kept else None


def _judged(rows: Rows, classes: list[str]) -> Judged | None:
  """The rows that name a class, by its name or else by its index, and hold a probability for each class."""
  index = {name: c for c, name in enumerate(classes)}

  def class_of(value: object) -> int | None:
    if str(value) in index:
      return index[str(value)]
    is_index = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(classes)
    return value if is_index else None

  kept, labels, predictions = (array.array('q') for _ in range(3))
  probabilities = array.array('d')
  for i, row in enumerate(rows):
    values = row.get('probabilities')
    if not isinstance(values, list) or len(values) != len(classes) or len(classes) < 2:
      continue
    values = [number(v) for v in values]
    label = class_of(row.get('label'))
    if label is None or None in values:
      continue
    prediction = class_of(row.get('prediction'))
    kept.append(i)
    labels.append(label)
    predictions.append(values.index(max(values)) if prediction is None else prediction)
    probabilities.extend(values)
  if not kept:
    return None
  p_NC = np.array(probabilities).reshape(len(kept), -1)
  return Judged(rows.taken(kept), np.array(labels), np.array(predictions), p_NC)
