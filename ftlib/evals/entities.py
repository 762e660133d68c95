"""How well tags are found: entities as a whole (precision, recall, F1, equal to seqeval) and words one by one.

An entity counts as found if type, first and last word are right (Tjong Kim Sang & De Meulder 2003). Of each row only
counts are kept, from which follow the measures of all rows, of some, or of rows drawn several times.

Shapes: N rows, K types, C tags, X words of all rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ftlib.base.tags import Entity

ENTITY_METRICS = {  # name -> whether higher is better
  **dict.fromkeys(('f1', 'precision', 'recall', 'f1_macro', 'precision_macro', 'recall_macro', 'f1_weighted'), True),
  'token_accuracy': True,
}
TOKEN_METRICS = dict.fromkeys(('token_accuracy', 'f1_macro', 'precision_macro', 'recall_macro', 'f1_weighted'), True)


def counts(gold: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]], types: Sequence[str]) -> np.ndarray:
  """Entities of each row by type, int64 [N, K, 3]: found, predicted, true."""
  number = {t: i for i, t in enumerate(types)}
  out = np.zeros((len(gold), len(types), 3), np.int64)
  for i, (true, said) in enumerate(zip(gold, predicted, strict=True)):
    for column, group in enumerate(({*true} & {*said}, said, true)):
      for entity in group:
        out[i, number[entity.kind], column] += 1
  return out


def scores(counts_K3: np.ndarray, types: Sequence[str]) -> dict:
  """The measures from counts summed over rows, and `per_class` {type: precision, recall, f1, support}.

  `f1`, `precision` and `recall` are over all entities (micro). The macro means, and those weighted by how many there
  are, are over the types that occur among true or predicted ones, as seqeval has them. What is not defined is 0.
  """
  there = counts_K3.sum(1) > 0
  kept = counts_K3[there]
  precision_K, recall_K, f1_K = _shares(kept)
  micro = _shares(kept.sum(0, keepdims=True))
  support_K = kept[:, 2]
  out = {n: float(x[0]) for n, x in zip(('precision', 'recall', 'f1'), micro)}
  for name, x_K in (('precision', precision_K), ('recall', recall_K), ('f1', f1_K)):
    out[f'{name}_macro'] = float(x_K.mean()) if len(x_K) else 0.0
  out['f1_weighted'] = float(f1_K @ support_K / max(support_K.sum(), 1))
  columns = {'precision': precision_K, 'recall': recall_K, 'f1': f1_K}
  per_class: dict[str, dict] = {}
  for i, name in enumerate(itertools.compress(types, there)):
    per_class[name] = {**{n: float(x_K[i]) for n, x_K in columns.items()}, 'support': int(support_K[i])}
  return {**out, 'per_class': per_class}


def confusion(gold_X: np.ndarray, predicted_X: np.ndarray, classes: int) -> np.ndarray:
  """Words by true tag (row) and predicted tag, int64 [C, C]."""
  return np.bincount(gold_X * classes + predicted_X, minlength=classes**2).reshape(classes, classes)


def word_counts(
  gold_X: np.ndarray, predicted_X: np.ndarray, row_X: np.ndarray, *, rows: int, classes: int
) -> np.ndarray:
  """Words of each row by tag, int64 [N, C, 3]: right, predicted, true; `row_X` is the row of each word."""
  out = np.zeros((rows, classes, 3), np.int64)
  right_X = gold_X == predicted_X
  np.add.at(out, (row_X[right_X], gold_X[right_X], 0), 1)
  np.add.at(out, (row_X, predicted_X, 1), 1)
  np.add.at(out, (row_X, gold_X, 2), 1)
  return out


def tokens(counts_C3: np.ndarray, names: Sequence[str]) -> dict:
  """The measures of words by their tags, from `word_counts` summed over rows: `token_accuracy`, means over the tags
  that occur among true or predicted ones (as scikit-learn's without a list of labels), and `per_class`."""
  found = scores(counts_C3, names)
  means = {n: found[n] for n in TOKEN_METRICS if n in found}
  accuracy = float(counts_C3[:, 0].sum() / max(counts_C3[:, 2].sum(), 1))
  return {'token_accuracy': accuracy, **means, 'per_class': found['per_class']}


def _shares(counts_K3: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(precision, recall, F1) float64 [K], 0 where one is not defined."""
  right_K, said_K, true_K = counts_K3.T.astype(np.float64)
  ratio = lambda a, b: np.divide(a, b, out=np.zeros_like(a), where=b > 0)  # noqa: E731
  return ratio(right_K, said_K), ratio(right_K, true_K), ratio(2 * right_K, said_K + true_K)
