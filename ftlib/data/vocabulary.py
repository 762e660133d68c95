"""The vocabulary of a model that starts from nothing: the words of its training texts, and vectors for them.

The tokenizer is a fast one of whole words, saved as any other. Its special tokens have names with blanks in them, which
no word of a text can have.
"""

from __future__ import annotations

import bz2
import collections
import gzip
import json
import lzma
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ftlib.base.errors import InputError, did_you_mean

SPLITS = ('words', 'blanks', 'characters')
SPECIAL = ('[ PAD ]', '[ UNK ]', '[ SEP ]')  # ids 0, 1, 2: padding, what is not in the vocabulary, between two texts
_OPEN: dict[str, Callable[..., Any]] = {'.gz': gzip.open, '.bz2': bz2.open, '.xz': lzma.open}


def of_texts(texts: Iterable[str], *, split: str, lowercase: bool, min_count: int) -> list[str]:
  """The words that stand in the texts at least `min_count` times, the most frequent first and those alike by alphabet.

  `split`: as `tokenizer` takes it. Raises `InputError` where there is none.
  """
  from tokenizers import trainers

  found = tokenizer([], split=split, lowercase=lowercase)
  trainer = trainers.WordLevelTrainer(
    vocab_size=1 << 31, min_frequency=min_count, special_tokens=[*SPECIAL], show_progress=False
  )
  found.train_from_iterator(texts, trainer)
  words = sorted(found.get_vocab(with_added_tokens=False).items(), key=lambda pair: pair[1])
  words = [w for w, _ in words if w not in SPECIAL]
  if not words:
    raise InputError(
      f'no word stands {min_count} times in the training rows, so there is no vocabulary; lower '
      '--config.model.scratch.min_count'
    )
  return words


def tokenizer(words: Sequence[str], *, split: str, lowercase: bool) -> Any:
  """A tokenizer of whole words, `SPECIAL` and then `words`; a pair is two texts with the third special token between.

  `split`: 'words' at blanks and punctuation, with every Chinese character by itself; 'blanks' there alone; 'characters'
  between all characters but blanks.
  """
  import tokenizers
  from tokenizers import models, normalizers, pre_tokenizers, processors

  vocabulary = {w: i for i, w in enumerate((*SPECIAL, *words))}
  out = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[1]))
  if split == 'words':
    out.normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=lowercase)
    out.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  else:
    out.normalizer = normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])])
    single = [pre_tokenizers.Split(tokenizers.Regex('.'), 'isolated')] if split == 'characters' else []
    out.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), *single])
  between = SPECIAL[2]
  out.post_processor = processors.TemplateProcessing(
    single=['$A'], pair=['$A', f'{between}:0', '$B:1'], special_tokens=[(between, vocabulary[between])]
  )
  out.add_special_tokens([*SPECIAL])
  return out


def save(folder: pathlib.Path, words: Sequence[str], *, split: str, lowercase: bool) -> None:
  """Writes the tokenizer's files."""
  tokenizer(words, split=split, lowercase=lowercase).save(str(folder / 'tokenizer.json'))
  names = dict(zip(('pad_token', 'unk_token', 'sep_token'), SPECIAL, strict=True))
  values = {'tokenizer_class': 'PreTrainedTokenizerFast', **names}
  (folder / 'tokenizer_config.json').write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')


def read_vectors(path: str, words: Collection[str], *, field: str) -> dict[str, np.ndarray]:
  """{word: float32 [D]} of those `words` that a text file of word2vec or GloVe has: a word and its D numbers a line,
  before which there may be a line with the number of words and D.

  A word that is not there as it is written has the vector of one that differs in capitals alone. Raises `InputError`
  naming `field` or file and line.
  """
  place = pathlib.Path(path).expanduser()
  if not place.is_file():
    near = did_you_mean(place.name, [p.name for p in place.parent.iterdir()]) if place.parent.is_dir() else ''
    raise InputError(f'{field}={path}: there is no such file{near}')
  if place.suffix in ('.zip', '.bin', '.7z', '.tar', '.tgz'):
    raise InputError(f'{field}={path}: wanted a text file of vectors, plain or .gz, .bz2 or .xz; unpack or convert it')
  alike = collections.defaultdict(list)
  for w in words:
    alike[w.lower()].append(w)
  exact: dict[str, np.ndarray] = {}
  other: dict[str, np.ndarray] = {}
  try:
    with _OPEN.get(place.suffix, open)(place, 'rb') as f:
      _read(f, place, {*words}, alike, exact, other)
  except (OSError, EOFError, lzma.LZMAError) as e:
    raise InputError(f'{field}={path} cannot be read: {e}') from e
  if not exact and not other:
    raise InputError(f'{field}={path}: none of the {len(words):,} words of the training rows stands in it')
  return {**other, **exact}


def _read(
  lines: Iterable[bytes],
  place: pathlib.Path,
  words: Collection[str],
  alike: Mapping[str, Sequence[str]],
  exact: dict[str, np.ndarray],
  other: dict[str, np.ndarray],
) -> None:
  """Fills `exact` with the vectors of words as they are written, `other` with those of words in other capitals."""
  size = 0
  for number, line in enumerate(lines, 1):
    if number == 1:
      fields = line.split()
      if len(fields) == 2 and all(f.isdigit() for f in fields):
        size = int(fields[1])
        continue
    first, *rest = line.split(None, 1)[:2] or [b'']
    size = size or len(rest[0].split() if rest else [])
    found = alike.get(first.decode('utf-8', 'replace').lower())
    if not found and number > 2:  # the first lines are looked at anyway
      continue
    word, *numbers = line.rsplit(None, size)  # bytes split at ASCII blanks alone; GloVe has words with blanks in them
    try:
      vector = np.array([float(x) for x in numbers], np.float32)
    except ValueError:
      vector = np.zeros(0)
    if not size or len(vector) != size or not np.isfinite(vector).all():
      raise InputError(
        f'{place}:{number}: wanted a word and {size or "its"} numbers; save a binary file of word2vec as text first'
      )
    word = word.decode('utf-8', 'replace').strip()
    if word in words:
      exact.setdefault(word, vector)
    for w in alike.get(word.lower(), ()):
      other.setdefault(w, vector)


def table(words: Sequence[str], found: Mapping[str, np.ndarray]) -> np.ndarray:
  """float32 [3 + words, D] for `SPECIAL` and the words: the vectors that were found, and elsewhere normal values of the
  same deviation, always the same ones."""
  given = np.stack(list(found.values()))
  rows = np.random.default_rng(0).normal(size=(len(SPECIAL) + len(words), given.shape[1])) * given.std()
  for i, word in enumerate(words, len(SPECIAL)):
    if word in found:
      rows[i] = found[word]
  return rows.astype(np.float32)
