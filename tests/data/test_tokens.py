"""Tokens: special names in text stay text, pairs lose their longer half first, the file's own switches are off."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ftlib.base.errors import InputError
from ftlib.data import batches, tokens

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '[', ']', 'sep', 'cls', 'mask', 'pad', *'abcdefghij']
ID = {w: i for i, w in enumerate(WORDS)}


def write(folder, *, truncation: int | None = None, padding: int | None = None, pad: bool = True, words=WORDS):
  """A folder with a WordLevel `tokenizer.json` of a known vocabulary."""
  inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token='[UNK]'))
  inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  inner.add_special_tokens(WORDS[:5])
  inner.post_processor = processors.TemplateProcessing(
    single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B:1 [SEP]:1', special_tokens=[('[CLS]', 2), ('[SEP]', 3)]
  )
  if truncation:
    inner.enable_truncation(truncation)
  if padding:
    inner.enable_padding(length=padding, pad_id=0, pad_token='[PAD]')
  folder.mkdir(exist_ok=True)
  inner.save(str(folder / 'tokenizer.json'))
  names = {'unk_token': '[UNK]', 'cls_token': '[CLS]', 'sep_token': '[SEP]', **({'pad_token': '[PAD]'} if pad else {})}
  config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': 6, **names}
  config['model_input_names'] = ['input_ids', 'token_type_ids', 'attention_mask']
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return folder


@pytest.fixture
def tokenizer(tmp_path):
  return tokens.load(write(tmp_path / 'plain'))


def rows(tokenizer, texts, pairs=None, *, limit=100):
  got = tokens.encode(tokenizer, texts, pairs, limit=limit)
  assert got.ids.dtype == got.types.dtype == np.int32
  assert (got.lengths == np.diff(got.offsets)).all()
  assert len(got) == len(texts)
  spans = list(zip(got.offsets, got.offsets[1:], strict=False))
  as_words = [' '.join(WORDS[i] for i in got.ids[a:b]) for a, b in spans]
  return as_words, [''.join(map(str, got.types[a:b])) for a, b in spans], got.truncated


def test_texts_and_pairs(tokenizer):
  assert rows(tokenizer, ['a b', 'c', 'zzz', '']) == (
    ['[CLS] a b [SEP]', '[CLS] c [SEP]', '[CLS] [UNK] [SEP]', '[CLS] [SEP]'],
    ['0000', '000', '000', '00'],
    0,
  )
  assert rows(tokenizer, ['a b', ''], ['c', 'd']) == (
    ['[CLS] a b [SEP] c [SEP]', '[CLS] [SEP] d [SEP]'],
    ['000011', '0011'],
    0,
  )


@pytest.mark.parametrize('name', ['[SEP]', '[CLS]', '[MASK]', '[PAD]'])
def test_names_of_special_tokens_in_a_text_are_text(tokenizer, name):
  texts, _, _ = rows(tokenizer, [f'a {name} b'], [name])
  inside = texts[0].removeprefix('[CLS] ').removesuffix(' [SEP]').replace(' [SEP] ', ' | ')
  assert not set(inside.split()) & set(WORDS[:1] + WORDS[2:5])
  assert inside.startswith('a [')


def test_the_longer_of_a_pair_is_cut_first(tokenizer):
  long, short = 'a b c d e f g h', 'i j'
  for texts, pairs, wanted in (
    ([long], [short], '[CLS] a b c [SEP] i j [SEP]'),
    ([short], [long], '[CLS] i j [SEP] a b c [SEP]'),
    ([long], [long], '[CLS] a b [SEP] a b c [SEP]'),
  ):
    got, _, cut = rows(tokenizer, texts, pairs, limit=8)
    assert (got, cut) == ([wanted], 1)
  got, _, cut = rows(tokenizer, [long, 'a', long], limit=4)
  assert (got, cut) == (['[CLS] a b [SEP]', '[CLS] a [SEP]', '[CLS] a b [SEP]'], 2)


def test_a_row_of_just_the_limit_is_whole(tokenizer):
  assert rows(tokenizer, ['a b', 'a b c'], limit=5) == (['[CLS] a b [SEP]', '[CLS] a b c [SEP]'], ['0000', '00000'], 0)


def test_a_files_own_truncation_and_padding_are_off(tmp_path):
  """all-MiniLM-L6-v2's tokenizer.json cuts to 128 tokens and pads to 128."""
  folder = write(tmp_path / 'switched', truncation=4, padding=12)
  switched = Tokenizer.from_file(str(folder / 'tokenizer.json'))
  assert len(switched.encode('a b c d e f g').ids) == 12  # the file is as bad as it should be
  assert len(switched.encode('a b c d e f g').overflowing) > 0
  tokenizer = tokens.load(folder)
  assert tokenizer.backend_tokenizer.truncation is None
  assert tokenizer.backend_tokenizer.padding is None
  for limit, wanted in (
    (100, '[CLS] a b c d e f g [SEP]'),
    (5, '[CLS] a b c [SEP]'),
    (100, '[CLS] a b c d e f g [SEP]'),
  ):
    assert rows(tokenizer, ['a b c d e f g', 'a'], limit=limit)[0] == [wanted, '[CLS] a [SEP]']


def test_more_rows_than_one_call_takes(tokenizer, monkeypatch):
  texts = [' '.join('abcdefghij'[: 1 + i % 9]) for i in range(50)]
  whole = rows(tokenizer, texts, limit=7)
  monkeypatch.setattr(tokens, '_CHUNK', 7)
  assert rows(tokenizer, texts, limit=7) == whole
  assert whole[2] == sum(len(t.split()) > 5 for t in texts)


def test_ids_beyond_the_tables_are_refused(tokenizer):
  got = tokens.encode(tokenizer, ['j'], ['a'], limit=9)
  tokens.check_ids(got, vocab=len(WORDS), types=2, where='here')
  with pytest.raises(InputError, match=rf'here.*token id {ID["j"]}.*{ID["j"]} embeddings'):
    tokens.check_ids(got, vocab=ID['j'], types=2, where='here')
  with pytest.raises(InputError, match='token type 1'):
    tokens.check_ids(got, vocab=len(WORDS), types=1, where='here')
  tokens.check_ids(got, vocab=len(WORDS), types=0, where='here')  # a family without types reads none


def test_folders_without_a_usable_tokenizer(tmp_path):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(InputError, match='empty holds no tokenizer'):
    tokens.load(tmp_path / 'empty')
  with pytest.raises(InputError, match='no padding token'):
    tokens.load(write(tmp_path / 'no_pad', pad=False))
  few = tmp_path / 'few'
  few.mkdir()
  (few / 'vocab.txt').write_text('good\nbad\n')
  (few / 'tokenizer_config.json').write_text('{"tokenizer_class": "BertTokenizer", "pad_token": "good"}')
  with pytest.raises(InputError, match=r'few: the tokenizer cannot read a text: .*\[UNK\].*lacks tokens of its model'):
    tokens.load(few)


def roberta(folder):
  """A byte-level BPE as RoBERTa has it: `<s> A </s></s> B </s>`, and no token types."""
  special = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
  vocab = {w: i for i, w in enumerate([*special, *'abcdefghij', 'Ġ', *(f'Ġ{c}' for c in 'abcdefghij')])}
  inner = Tokenizer(models.BPE(vocab, [('Ġ', c) for c in 'abcdefghij'], unk_token='<unk>'))
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.add_special_tokens(special)
  inner.post_processor = processors.RobertaProcessing(('</s>', 2), ('<s>', 0), add_prefix_space=False)
  folder.mkdir()
  inner.save(str(folder / 'tokenizer.json'))
  names = {'bos': '<s>', 'eos': '</s>', 'cls': '<s>', 'sep': '</s>', 'pad': '<pad>', 'unk': '<unk>', 'mask': '<mask>'}
  config = {'tokenizer_class': 'RobertaTokenizer', 'add_prefix_space': False, 'model_max_length': 64}
  (folder / 'tokenizer_config.json').write_text(json.dumps({**config, **{f'{k}_token': v for k, v in names.items()}}))
  return folder, vocab


def test_a_tokenizer_without_token_types(tmp_path):
  """Pairs of RoBERTa's kind: two separators between the texts, all of type 0; the model has one type."""
  folder, vocab = roberta(tmp_path / 'roberta')
  tokenizer = tokens.load(folder)
  word = {i: w for w, i in vocab.items()}

  def encoded(texts, pairs, limit):
    got = tokens.encode(tokenizer, texts, pairs, limit=limit)
    tokens.check_ids(got, vocab=len(vocab), types=1, where='here')
    assert got.types.dtype == np.int32
    assert got.types.shape == got.ids.shape
    assert not got.types.any()
    return [' '.join(word[i] for i in got.ids[a:b]) for a, b in zip(got.offsets, got.offsets[1:], strict=False)]

  assert encoded(['a b', ''], None, 9) == ['<s> a Ġb </s>', '<s> </s>']
  assert encoded(['a b', 'c'], ['d', 'e f'], 9) == ['<s> a Ġb </s> </s> d </s>', '<s> c </s> </s> e Ġf </s>']
  assert encoded(['a b c d e f'], ['g h'], 9) == ['<s> a Ġb Ġc </s> </s> g Ġh </s>']
  assert encoded(['a </s> b'], ['c'], 99)[0].split().count('</s>') == 3


def test_types_of_pairs_reach_the_batch(tokenizer):
  """Where a tokenizer has types, those of the second text are 1, in the batch too, and padding is 0."""
  got = tokens.encode(tokenizer, ['a b', 'c'], ['d', 'e f g'], limit=9)
  batch = batches.collate(batches.Examples(got, {}), [1, 0], size=2, edges=(16,), pad_id=0)
  assert [''.join(map(str, row)) for row in batch['types'][:, :9]] == ['000111100', '000011000']
  assert [' '.join(WORDS[i] for i in row) for row in batch['tokens'][:, :7]] == [
    '[CLS] c [SEP] e f g [SEP]',
    '[CLS] a b [SEP] d [SEP] [PAD]',
  ]
