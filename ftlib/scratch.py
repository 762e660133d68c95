"""A model made from nothing: `model.family=bilstm` without `model.pretrained`.

Its vocabulary is that of the training rows. All else starts at random, but for the vectors of words that a file of
word2vec or GloVe may bring. It is made as a folder (`config.json`, the tokenizer, `vectors.safetensors`, and what to
say of it), so that all that is done with a pretrained model can be done with it; train.py puts that in the run folder
as `base`, where eval.py, a resumed run and the export find it. What `vectors.safetensors` has not is new, and trains
under every method.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import safetensors.numpy

from ftlib.base import lookup
from ftlib.base.errors import InputError
from ftlib.base.settings import setting
from ftlib.data import vocabulary
from ftlib.data.labels import Columns
from ftlib.data.vocabulary import SPLITS
from ftlib.io import hf
from ftlib.models.model import Model

if TYPE_CHECKING:
  from ftlib.data.preparation import Dataset
  from ftlib.recipe import ModelSettings, Settings
  from ftlib.run import Base, Run

BASE = 'base'  # in the run folder
VECTORS, NOTES = 'vectors.safetensors', 'made.json'
_EMBEDDING, _SIZE = 'embed/token/table', 128
_made: list[tempfile.TemporaryDirectory] = []  # gone with the process


@dataclasses.dataclass(frozen=True)
class Config:
  """A new model (`model.family` alone says which). `tokens`: what a text is split into, 'words' (at blanks and
  punctuation, and every Chinese character by itself), 'blanks' (there alone, for texts that are split already) or
  'characters'. Those that stand fewer than `min_count` times in the training rows, or are beyond the `max_tokens` most
  frequent, are the unknown one. `vectors`: a text file of word2vec or GloVe, maybe compressed; words that stand in it
  count however rare. `embedding`: size of the words' vectors, none for that of the file, or 128. `hidden`: of each
  direction's states. `dropout`: of what each layer and the head read."""

  tokens: str = setting('words', choices=SPLITS)
  lowercase: bool = True
  min_count: int = setting(2, low=1)
  max_tokens: int = setting(50_000, low=1)
  vectors: str = ''
  embedding: int | None = setting(None, low=1)
  hidden: int = setting(128, low=1)
  layers: int = setting(1, low=1)
  dropout: float = setting(0.5, low=0, below=1)


def chosen(s: Settings, read: Callable[[], Dataset]) -> ModelSettings:
  """The model of a run: as it is set, or, where it is to be made, with its new folder as `pretrained`, of the words
  of the training rows that `read` gives. Raises `InputError` for a family that starts from pretrained weights, and
  whatever is wrong with data or vectors."""
  if s.model.pretrained or not s.model.family:
    return s.model
  family = _family(s)
  holder = tempfile.TemporaryDirectory(prefix='ftlib-')
  _made.append(holder)
  folder = pathlib.Path(holder.name) / BASE
  columns = Columns(*s.modules['task'].columns(s.task))
  rows = read().splits['train']
  make(folder, s.model.scratch, family, [t for row in rows for c in columns.texts for t in _texts(row[c])])
  return dataclasses.replace(s.model, pretrained=str(folder))


def _family(s: Settings) -> Any:
  family = lookup.component('models', s.model.family, field='model.family') if s.model.family else None
  if not hasattr(family, 'new'):
    raise InputError(
      f'model.pretrained is empty, and model.family={s.model.family} is none that starts from nothing (bilstm is)\n'
      '  give a hub id, a folder or package:import_name/path'
    )
  return family


def largest(s: Settings) -> dict[str, Any]:
  """`config.json` of the model of a run that is to be made, with as many words as `max_tokens`. Raises `InputError`
  where a file of vectors or the rows would have to be read for its sizes."""
  family, c = _family(s), s.model.scratch
  if c.vectors and c.embedding is None:
    raise InputError('model.scratch.vectors: say how long they are, by --config.model.scratch.embedding=')
  if not s.train.max_length:
    raise InputError(
      f'model.family={s.model.family} takes rows of any length; say how long, by --config.train.max_length='
    )
  vocab = len(vocabulary.SPECIAL) + c.max_tokens
  return family.new(vocab=vocab, embed=c.embedding or _SIZE, hidden=c.hidden, layers=c.layers, dropout=c.dropout)


def is_new(s: Settings, name: str) -> bool:
  """Whether a parameter is one that no checkpoint has: of a head, or of a model that is made, but for its vectors."""
  made = not s.model.pretrained and not (s.model.scratch.vectors and name == _EMBEDDING)
  return made or name.startswith('head/')


def make(folder: pathlib.Path, c: Config, family: Any, texts: list[str]) -> None:
  """Writes the folder of a new model for training texts."""
  folder.mkdir()
  build = lambda least: vocabulary.of_texts(texts, split=c.tokens, lowercase=c.lowercase, min_count=least)  # noqa: E731
  words, tensors, size = build(c.min_count), {}, c.embedding or _SIZE
  if c.vectors:
    every, often = build(1), {*words}
    found = vocabulary.read_vectors(c.vectors, every, field='model.scratch.vectors')
    words = [w for w in every if w in found or w in often]
  words = words[: c.max_tokens]
  note = f'vocabulary: {len(words):,} words of the training rows'
  if c.vectors:
    note += f', {len({*words} & {*found}):,} of them with vectors of {c.vectors}'
    table = vocabulary.table(words, found)
    tensors, size = {'embedding.weight': table}, table.shape[1]
    if c.embedding not in (None, size):
      raise InputError(
        f'model.scratch.embedding={c.embedding}, but the vectors of {c.vectors} have {size} numbers; leave it out'
      )
  vocabulary.save(folder, words, split=c.tokens, lowercase=c.lowercase)
  values = family.new(
    vocab=len(vocabulary.SPECIAL) + len(words), embed=size, hidden=c.hidden, layers=c.layers, dropout=c.dropout
  )
  (folder / 'config.json').write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')
  (folder / NOTES).write_text(json.dumps([note]) + '\n', encoding='utf-8')
  safetensors.numpy.save_file(tensors, folder / VECTORS)


def match(base: Base, model: Model) -> hf.Match:
  """Pairs the parameters of a model with the tensors of its base; of one made here, all that are not there are new."""
  names = model.hf_names()
  new = (base.folder / VECTORS).is_file()
  there = {n: theirs for n, theirs in names.items() if not new or theirs in base.weights.where}
  found = hf.match(base.weights, there, model.hf_shapes(), prefix=base.family.PREFIX, tied=model.tied)
  return dataclasses.replace(found, fresh=[*found.fresh, *(n for n in names if n not in there)])


def notes(base: Base) -> list[str]:
  """What is to be said of a model that was made here."""
  file = base.folder / NOTES
  return json.loads(file.read_text(encoding='utf-8')) if file.is_file() else []


def save(run: Run, workdir: pathlib.Path) -> None:
  """Puts the folder of a model that was made for this run into the run folder."""
  if run.settings.model.pretrained or (workdir / BASE).is_dir():
    return
  draft = workdir / f'{BASE}.saving'
  shutil.rmtree(draft, ignore_errors=True)
  shutil.copytree(run.base.folder, draft)
  os.replace(draft, workdir / BASE)


def stored(config: Mapping[str, Any], workdir: pathlib.Path) -> dict[str, Any]:
  """The config of a run with the model that was made for it, where one was."""
  own = workdir / BASE
  if config['model']['pretrained'] or not own.is_dir():
    return dict(config)
  return {**config, 'model': {**config['model'], 'pretrained': str(own)}}


def _texts(value: Any) -> Iterator[str]:
  """The texts in a column: itself, or those of a list."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, list | tuple):
    for part in value:
      yield from _texts(part)
