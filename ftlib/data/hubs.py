"""Data sets of TensorFlow Datasets and of the Hugging Face hub, as plain rows."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import re
from collections.abc import Mapping
from typing import Any

from ftlib.base.errors import InputError, did_you_mean

SPELLING = {
  'tfds': 'Write tfds:NAME[/CONFIG][:VERSION], as in tfds:glue/sst2.',
  'hf': 'Write hf:[OWNER/]NAME[:CONFIG], as in hf:stanfordnlp/imdb or hf:nyu-mll/glue:sst2.',
}
_SAMPLED = 256  # rows of a hub's split that enter its fingerprint, beside name, version and row count


def read(scheme: str, name: str) -> tuple[dict[str, list[dict]], dict[str, list[str]], str]:
  """({split: rows}, class names of the columns that come with such, a fingerprint). Raises `InputError`."""
  path = f'{scheme}:{name}'
  try:
    version, parts, features, kind = _tfds(name) if scheme == 'tfds' else _hugging_face(name)
    inner = {column: getattr(f, 'feature', f) for column, f in features.items()}  # also of sequences of labels
    labels = {column: list(f.names) for column, f in inner.items() if isinstance(f, kind)}
    splits = {
      split: [{c: _plain(v, labels.get(c)) for c, v in example.items()} for example in examples]
      for split, examples in sorted(parts.items())
    }
  except ModuleNotFoundError as e:
    package = "'ftlib[hf]'" if scheme == 'hf' else e.name
    raise InputError(f'{path}: needs the library {e.name}\nRun pip install {package}.') from e
  except Exception as e:  # whatever the hub's library, its builders or the network raise
    raise InputError(f'{path}: {" ".join(str(e).split())[:400] or type(e).__name__}\n{SPELLING[scheme]}') from e
  sampled = {split: [len(rows), rows[:: max(1, len(rows) // _SAMPLED)]] for split, rows in splits.items()}
  known = json.dumps([path, version, sampled], sort_keys=True, default=repr)
  return splits, labels, hashlib.sha256(known.encode()).hexdigest()


def _tfds(name: str) -> tuple[str, Mapping[str, Any], Mapping[str, Any], type]:
  import tensorflow_datasets as tfds

  with contextlib.suppress(ImportError):  # without TensorFlow, TFDS stops registering before it comes to these
    importlib.import_module('tensorflow_datasets.text')
  try:
    info = tfds.builder(name).info
  except tfds.core.DatasetNotFoundError as e:
    near = did_you_mean(re.split('[/:]', name)[0], tfds.list_builders(with_community_datasets=False))
    raise ValueError(f'TFDS has no such data set{near}') from e
  return info.full_name, tfds.data_source(name), info.features, tfds.features.ClassLabel


def _hugging_face(name: str) -> tuple[str, Mapping[str, Any], Mapping[str, Any], type]:
  import datasets

  name, _, config = name.partition(':')
  parts = datasets.load_dataset(name, config or None)
  first = next(iter(parts.values()))
  return str(first.info.version), parts, first.features, datasets.ClassLabel


def _plain(value: Any, names: list[str] | None) -> Any:
  """Python values of what a hub gives: text for bytes, the class name for its number, None for a hidden label."""
  if hasattr(value, 'tolist'):  # numpy arrays and scalars
    value = value.tolist()
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, list):
    return [_plain(v, names) for v in value]
  if isinstance(value, dict):
    return {k: _plain(v, None) for k, v in value.items()}
  if names is None or value is None:
    return value
  return names[value] if value >= 0 else None
