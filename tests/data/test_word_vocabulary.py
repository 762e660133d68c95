"""Vocabularies of training texts, their tokenizers, and the text files of word vectors."""

import gzip
import json

import numpy as np
import pytest

from ftlib.base.errors import InputError
from ftlib.data import tokens, vocabulary
from ftlib.data.vocabulary import SPECIAL

TEXTS = ['The cat sat.', 'the dog, the CAT', '猫 sat on', 'on 猫狗 [UNK]']


def words(split, *, lowercase=True, least=1):
  return vocabulary.of_texts(TEXTS, split=split, lowercase=lowercase, min_count=least)


def test_words_come_by_number_and_then_by_alphabet():
  assert words('words', least=2) == ['the', 'cat', 'on', 'sat', '猫']  # 3, and 2 each
  assert words('blanks', least=2) == ['the', 'cat', 'on']
  assert {'猫狗', 'sat.', 'CAT', '[UNK]'} <= {*words('blanks', lowercase=False)}
  assert words('characters')[0] == 't'
  assert not {w for w in words('characters') if len(w) > 1}
  with pytest.raises(InputError, match='no word stands 4 times'):
    words('words', least=4)


def ids(split, *texts, lowercase=True):
  return vocabulary.tokenizer(['the', 'cat', '猫'], split=split, lowercase=lowercase).encode(*texts)


def test_texts_become_ids():
  assert ids('words', 'The cat猫!').ids == [3, 4, 5, 1]
  assert ids('words', 'The cat', lowercase=False).ids == [1, 4]
  assert ids('blanks', 'the cat猫 cat').ids == [3, 1, 4]
  assert ids('characters', '猫 猫').ids == [5, 5]
  pair = ids('words', 'the cat', 'cat')
  assert (pair.ids, pair.type_ids) == ([3, 4, 2, 4], [0, 0, 0, 1])


@pytest.mark.parametrize('split', vocabulary.SPLITS)
def test_the_saved_tokenizer_loads_as_any_other_and_no_text_holds_a_special_token(tmp_path, split):
  vocabulary.save(tmp_path, ['the', 'cat', 'e'], split=split, lowercase=True)
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'bilstm'}))
  loaded = tokens.load(tmp_path)
  assert (loaded.pad_token_id, loaded.unk_token_id, loaded.sep_token_id, len(loaded)) == (0, 1, 2, 6)
  got = tokens.encode(loaded, ['the ' + ' '.join(SPECIAL), 'cat ' * 9], None, limit=20)
  assert set(got.ids[: got.offsets[1]].tolist()) <= {1, 3, 5}
  assert got.ids[got.offsets[1] :].tolist() == ([4] * 9 if split != 'characters' else [1] * 20)
  assert got.truncated == int(split == 'characters')


# Vectors.

GLOVE = 'the 1 2 3\nCat -1 0.5 1e-1\n. . . 7 7 7\ncat 4 5 6\n\u3000 0 0 0\nthe 9 9 9\ndog 1 1\n'


def read(path, of=('the', 'THE', 'cat', 'Cat', 'bird')):
  found = vocabulary.read_vectors(str(path), of, field='model.scratch.vectors')
  return {w: x.tolist() for w, x in found.items()}


def test_files_of_both_forms_are_read(tmp_path):
  """The first of a word counts, and other capitals where it is not there as it is written."""
  (tmp_path / 'glove.txt').write_text(GLOVE)
  (tmp_path / 'w2v.vec').write_text(f'7 3\n{GLOVE}')
  with gzip.open(tmp_path / 'glove.txt.gz', 'wt') as f:
    f.write(GLOVE)
  one = pytest.approx([-1, 0.5, 0.1])
  for path in tmp_path.iterdir():
    assert read(path) == {'the': [1, 2, 3], 'THE': [1, 2, 3], 'cat': [4, 5, 6], 'Cat': one}
  assert read(tmp_path / 'glove.txt', ['CAT', 'the']) == {'CAT': one, 'the': [1, 2, 3]}


@pytest.mark.parametrize(
  ('text', 'of', 'said'),
  [
    (GLOVE, ['dog'], r'v\.txt:7: wanted a word and 3 numbers'),
    ('the 1 2\ncat 1 x\n', ['cat'], r'v\.txt:2: wanted a word and 2 numbers'),
    ('the 1 nan\n', ['the'], r'v\.txt:1: wanted a word and 2 numbers'),
    ('2 3\nthe\udcff\udcfe\n', ['the'], r'v\.txt:2: .* binary file of word2vec'),
    (GLOVE, ['bird', 'fish'], 'none of the 2 words'),
    ('', ['bird'], 'none of the 1 words'),
  ],
)
def test_what_is_no_file_of_vectors_is_an_error(tmp_path, text, of, said):
  (tmp_path / 'v.txt').write_bytes(text.encode('utf-8', 'surrogateescape'))
  with pytest.raises(InputError, match=said):
    read(tmp_path / 'v.txt', of)


def test_a_file_that_is_not_there_or_packed_otherwise_is_an_error(tmp_path):
  (tmp_path / 'glove.txt').write_text(GLOVE)
  with pytest.raises(InputError, match=r'model\.scratch\.vectors=.*there is no such file; did you mean "glove\.txt"'):
    read(tmp_path / 'glov.txt')
  for name, said in (('a.zip', 'unpack or convert'), ('b.txt.gz', 'cannot be read')):
    (tmp_path / name).write_bytes(b'PK')
    with pytest.raises(InputError, match=said):
      read(tmp_path / name)


def test_words_without_a_vector_are_drawn():
  found = {'a': np.float32([1, -1, 3, 0]), 'b': np.float32([2, 2, -2, 1])}
  rare = [f'w{i}' for i in range(200)]
  table = vocabulary.table(['b', *rare, 'a'], found)
  assert (table.shape, table.dtype) == ((3 + 202, 4), np.float32)
  np.testing.assert_array_equal(table[[3, -1]], [found['b'], found['a']])
  assert table[4:-1].std() == pytest.approx(np.stack([*found.values()]).std(), rel=0.1)
  np.testing.assert_array_equal(table, vocabulary.table(['b', *rare, 'a'], found))
