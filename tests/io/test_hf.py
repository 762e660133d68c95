"""Hugging Face folders: what loads, what is written, and what each broken folder is told."""

import json
import pickle
import shutil
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from numpy.testing import assert_array_equal

from ftlib.base import trees
from ftlib.base.types import Head
from ftlib.io import hf
from ftlib.models import bert
from tests import tiny
from tests.refusal import refused

QUERY = 'bert.encoder.layer.0.attention.self.query.weight'


@pytest.fixture
def place(tmp_path_factory):
  """An empty folder whose name says nothing, so that it cannot be what a test finds in a message."""
  return tmp_path_factory.mktemp('place')


@pytest.fixture
def folder(tiny_bert, place):
  """A copy of the tiny model, to break."""
  return shutil.copytree(tiny_bert, place / 'model')


@pytest.fixture(scope='session')
def tensors(tiny_bert):
  """The tensors of the tiny model, not to be written to."""
  return safetensors.numpy.load_file(tiny_bert / 'model.safetensors')


def write(folder, tensors, name='model.safetensors'):
  safetensors.numpy.save_file(tensors, folder / name)


def match(folder, head=None):
  """A folder's tensors paired with the names of its model."""
  model = bert.build(bert.from_hf(tiny.CONFIG), head=head or Head())
  return hf.match(hf.Weights(folder), model.hf_names(), model.hf_shapes(), prefix='bert.')


# Finding a folder.


def test_a_folder_and_a_package_are_found_without_importing_anything(place, monkeypatch):
  package = place / 'ftlib_test_weights'
  (package / 'model').mkdir(parents=True)
  (package / '__init__.py').write_text('raise RuntimeError("imported")')
  monkeypatch.syspath_prepend(place)
  assert hf.resolve(str(package / 'model')) == package / 'model'
  assert hf.resolve('package:ftlib_test_weights/model') == package / 'model'
  assert 'ftlib_test_weights' not in sys.modules
  refused(lambda: hf.resolve('package:ftlib_test_weights/models'), 'is no folder', 'did you mean "model"?')
  refused(lambda: hf.resolve('package:ftlib_test_wights/model'), "no package 'ftlib_test_wights' is installed")
  refused(lambda: hf.resolve('package:colorsys/model'), "no package 'colorsys' is installed")  # a file, no folder
  assert hf.resolve('package:ftlib_test_weights.model') == package / 'model'


def test_what_is_no_folder_is_said_before_the_hub_is_asked(place, monkeypatch):
  (place / 'minilm').mkdir()
  (place / 'weights.safetensors').touch()
  monkeypatch.setattr('huggingface_hub.snapshot_download', lambda *_, **__: pytest.fail('the hub was asked'))
  refused(lambda: hf.resolve(''), 'model.pretrained is empty')
  refused(lambda: hf.resolve(f'{place}/minilmm'), 'no such folder', 'did you mean "minilm"?')
  refused(lambda: hf.resolve('./nowhere'), 'no such folder')
  refused(lambda: hf.resolve('no/where/at/all'), 'no such folder')
  refused(lambda: hf.resolve(str(place / 'weights.safetensors')), 'is a file', 'config.json')


def test_a_hub_id_offline(place, monkeypatch):
  monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
  monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(place))
  monkeypatch.chdir(place)
  refused(lambda: hf.resolve('nobody/no-such-model'), "'nobody/no-such-model' is no folder here", 'Hugging Face hub')
  refused(lambda: hf.resolve('no such model'), 'Hugging Face hub', 'HFValidationError')


def test_only_weights_that_are_not_pickled_are_downloaded(place, monkeypatch):
  asked = {}
  monkeypatch.setattr('huggingface_hub.snapshot_download', lambda name, **k: asked.update({name: k}) or str(place))
  assert hf.resolve('somebody/model') == place
  patterns = asked['somebody/model']['allow_patterns']
  assert {'*.json', '*.safetensors', '*.txt'} <= set(patterns)
  assert not any(p.endswith(('bin', 'pt', 'py', '*')) for p in patterns)


@pytest.mark.parametrize(
  ('content', 'text'),
  [
    (None, 'holds no config.json'),
    (b'{"model_type": "bert",}', 'is not JSON'),
    (b'\xff\xfe{}', 'is not JSON'),
    (b'{"hidden_size": 32}', 'has no "model_type"'),
    (b'{"model_type": null}', 'has no "model_type"'),
    (b'["bert"]', 'has no "model_type"'),
  ],
)
def test_config_json(folder, content, text):
  path = folder / 'config.json'
  path.unlink()
  if content is not None:
    path.write_bytes(content)
  assert str(folder) in refused(lambda: hf.read_config(folder), text)


# Files that are broken, foreign or missing.


@pytest.mark.parametrize('keep', [0, 5, 200, 5000, -1])
def test_a_truncated_file(folder, keep):
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:keep])
  refused(lambda: hf.Weights(folder), str(path), 'truncated')


@pytest.mark.parametrize('length', [0x280, 0x480, 0x4B50])  # as bytes: how pickles and zip files begin
def test_a_truncated_file_is_not_called_a_pickle_for_the_length_of_its_header(folder, length):
  path = folder / 'model.safetensors'
  path.write_bytes(length.to_bytes(8, 'little') + b'{"a": ')
  refused(lambda: hf.Weights(folder), 'truncated')


def test_a_git_lfs_pointer(folder):
  pointer = 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 90868376\n'
  (folder / 'model.safetensors').write_text(pointer)
  refused(lambda: hf.Weights(folder), 'git-lfs pointer', 'git lfs pull')


class Bomb:
  def __reduce__(self):
    return pytest.fail, ('a pickle was read',)


@pytest.mark.parametrize('protocol', [2, 3, 4, 5, 'zip'])
def test_a_pickle_named_safetensors_is_refused_unread(folder, protocol):
  content = b'PK\x03\x04' + bytes(60) if protocol == 'zip' else pickle.dumps([Bomb()] * 9, protocol)
  (folder / 'model.safetensors').write_bytes(content)
  refused(lambda: hf.Weights(folder), 'is a pickle named .safetensors', 'refused')


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.pt', 'model.ckpt', 'flax_model.msgpack', 'tf_model.h5'])
def test_only_pickled_weights(folder, name):
  (folder / 'model.safetensors').unlink()
  (folder / name).write_bytes(pickle.dumps(Bomb()))
  refused(lambda: hf.Weights(folder), f'holds only {name}', 'can run code', 'safe_serialization=True')


def test_no_weights_at_all(folder):
  (folder / 'model.safetensors').unlink()
  refused(lambda: hf.Weights(folder), 'holds no model.safetensors')


def test_a_single_file_of_another_name_is_taken(folder):
  (folder / 'model.safetensors').rename(folder / 'weights.safetensors')
  assert QUERY in hf.Weights(folder).where
  shutil.copy(folder / 'weights.safetensors', folder / 'weights-2.safetensors')
  refused(lambda: hf.Weights(folder), 'holds no model.safetensors')


@pytest.mark.parametrize(('value', 'text'), [(np.nan, 'NaN'), (np.inf, 'infinity'), (-np.inf, 'infinity')])
@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_value_that_is_not_finite(folder, tensors, value, text, dtype):
  bad = tensors[QUERY].astype(dtype)
  bad[3, 5] = value
  write(folder, {**tensors, QUERY: bad})
  refused(lambda: hf.Weights(folder).read(QUERY), QUERY, text)


# Shards.


@pytest.fixture
def shards(folder, tensors):
  """The tiny model in two shards; `shards(other)` writes the index, with another file for one tensor."""
  names = sorted(tensors)
  parts = {'model-00001-of-00002.safetensors': names[:9], 'model-00002-of-00002.safetensors': names[9:]}
  for file, part in parts.items():
    write(folder, {n: tensors[n] for n in part}, file)
  (folder / 'model.safetensors').unlink()

  def index(other=None):
    weight_map = {n: file for file, part in parts.items() for n in part}
    if other is not None:
      weight_map[QUERY] = other
    content = json.dumps({'metadata': {'total_size': 1}, 'weight_map': weight_map})
    (folder / 'model.safetensors.index.json').write_text(content)
    return folder

  return index


def test_sharded_weights_load(shards, tensors, tiny_bert):
  folder = shards()
  weights = hf.Weights(folder)
  assert sorted(weights.where) == sorted(tensors)
  for name, want in tensors.items():
    assert weights.shape(name) == want.shape
    assert_array_equal(weights.read(name), want)
  assert match(folder) == match(tiny_bert)


def test_a_missing_shard(shards):
  folder = shards()
  (folder / 'model-00002-of-00002.safetensors').unlink()
  message = refused(lambda: hf.Weights(folder), 'shards that are not in', 'model-00002-of-00002')
  assert 'model-00001' not in message


@pytest.mark.parametrize(
  'name', ['../x', '../model/model-00001-of-00002.safetensors', 'a/b.safetensors', '/etc/passwd']
)
def test_an_index_that_leads_out_of_its_folder(shards, name):
  refused(lambda: hf.Weights(shards(name)), 'files outside its folder', name)


@pytest.mark.parametrize('name', ['..', '.', ''])
def test_an_index_that_names_a_folder(shards, name):
  refused(lambda: hf.Weights(shards(name)), 'model.safetensors.index.json')


@pytest.mark.parametrize(
  'content', [b'{', b'\xff\xfe{}', b'{}', b'[]', b'{"weight_map": []}', b'{"weight_map": {"a": 1}}']
)
def test_a_malformed_index(folder, content):
  (folder / 'model.safetensors.index.json').write_bytes(content)
  refused(lambda: hf.Weights(folder), 'is no safetensors index')


def test_a_tensor_in_two_shards(shards, tensors):
  folder = shards()
  names = sorted(tensors)
  write(folder, {n: tensors[n] for n in names[8:]}, 'model-00002-of-00002.safetensors')
  refused(lambda: hf.Weights(folder), 'model-00002', 'model-00001', 'both hold the tensor', names[8])


# Names and shapes.


def test_missing_surplus_and_misshapen_tensors_are_all_listed(folder, tensors):
  without = {n: x for n, x in tensors.items() if n != QUERY}
  surplus = {'bert.encoder.layer.2.output.dense.weight': np.ones((32, 64), np.float32)}
  bias = 'bert.embeddings.LayerNorm.bias'
  write(folder, without)
  message = refused(lambda: match(folder), '1 missing', QUERY)
  assert 'surplus' not in message
  write(folder, {**tensors, **surplus})
  message = refused(lambda: match(folder), '1 surplus', *surplus)
  assert 'missing' not in message
  write(folder, {**without, **surplus, bias: np.ones(31, np.float32)})
  message = refused(lambda: match(folder), '1 missing', QUERY, '1 surplus', *surplus, '1 of another shape')
  assert f'{bias} is [31], wanted [32]' in message


def test_two_tensors_for_one_parameter(folder, tensors):
  # Which of the two is right cannot be known.
  plain = QUERY.removeprefix('bert.')
  write(folder, {**tensors, plain: tensors[QUERY] + 1})
  refused(lambda: match(folder), '1 there under two names', QUERY, f'  {plain} and ')
  write(folder, {**tensors, 'bert.embeddings.LayerNorm.gamma': np.ones(32, np.float32)})
  refused(lambda: match(folder), 'bert.embeddings.LayerNorm.gamma', 'bert.embeddings.LayerNorm.weight')


def test_a_tied_bias_may_come_under_either_name_or_both(folder, tensors):
  names = bert.build(bert.from_hf(tiny.CONFIG), head=Head('mlm')).hf_names()
  shapes = {'dense.weight': (32, 32), 'dense.bias': (32,), 'LayerNorm.weight': (32,), 'LayerNorm.bias': (32,)}
  head = {f'cls.predictions.transform.{n}': np.ones(s, np.float32) for n, s in shapes.items()}
  for found in (['bias'], ['decoder.bias'], ['decoder.bias', 'bias']):  # of two, transformers adds the first
    write(folder, {**tensors, **head, **{f'cls.predictions.{n}': np.full(64, len(n), np.float32) for n in found}})
    got = match(folder, Head('mlm'))
    assert (got.fresh, set(got.pairs)) == ([], set(names))
    assert got.pairs['mlm/bias'] == f'cls.predictions.{found[0]}'


def test_a_head_of_another_shape_starts_afresh_and_is_listed(folder, tensors):
  head = {'classifier.weight': np.ones((5, 32), np.float32), 'classifier.bias': np.ones(5, np.float32)}
  write(folder, {**tensors, **head})
  got = match(folder, Head('classify', 3))
  assert (sorted(got.fresh), got.unused) == (['head/out/bias', 'head/out/kernel'], sorted(head))
  got = match(folder, Head('classify', 5))
  assert (got.fresh, got.unused) == ([], [])
  assert got.pairs['head/out/kernel'] == 'classifier.weight'


def test_heads_and_poolers_may_be_absent_and_buffers_surplus(folder, tensors):
  kept = {n: x for n, x in tensors.items() if 'pooler' not in n}
  write(folder, {**kept, 'bert.embeddings.position_ids': np.arange(40)[None]})
  got = match(folder, Head('classify', 2))
  assert got.fresh == ['head/out/bias', 'head/out/kernel', 'pooler/bias', 'pooler/kernel']
  assert got.unused == []


# Numbers.


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_load_as_float32(folder, tensors, dtype):
  half = {n: x.astype(dtype) for n, x in tensors.items()}
  write(folder, half)
  weights = hf.Weights(folder)
  for name, want in half.items():
    assert weights.read(name).dtype == np.float32
    assert_array_equal(weights.read(name), want.astype(np.float32))


def test_integers_stay_as_they_are(folder, tensors):
  ids = np.arange(40)[None]
  write(folder, {**tensors, 'embeddings.position_ids': ids})
  got = hf.Weights(folder).read('embeddings.position_ids')
  assert got.dtype == ids.dtype
  assert_array_equal(got, ids)


@pytest.mark.parametrize('sample', [None, 1000])  # read whole, and in samples
def test_the_fingerprint_is_of_the_content_alone(folder, place, monkeypatch, sample):
  if sample:
    monkeypatch.setattr(hf, '_SAMPLE_BYTES', sample)
  before = hf.Weights(folder).fingerprint()
  moved = shutil.copytree(folder, place / 'elsewhere' / 'renamed')
  assert hf.Weights(moved).fingerprint() == before
  path = moved / 'model.safetensors'
  content = bytearray(path.read_bytes())
  for place in (-1, len(content) // 2):
    changed = content.copy()
    changed[place] ^= 1
    path.write_bytes(changed)
    assert hf.Weights(moved).fingerprint() != before
  path.write_bytes(content)
  assert hf.Weights(moved).fingerprint() == before


# Writing.


def test_arrays_that_are_transposed_or_cut_are_written_right(place):
  x = np.arange(24, dtype=np.float32).reshape(4, 6)
  wanted = {'transposed': x.T, 'every second': x[:, ::2], 'backwards': x[::-1], 'plain': x, 'scalar': np.full((), 3.0)}
  hf.save(place / 'new' / 'folder', wanted, {'model_type': 'bert'})
  back = safetensors.numpy.load_file(place / 'new' / 'folder' / 'model.safetensors')
  assert set(back) == set(wanted)
  for name, want in wanted.items():
    assert_array_equal(back[name], want, err_msg=name, strict=True)
  assert hf.read_config(place / 'new' / 'folder') == {'model_type': 'bert'}
  with safetensors.safe_open(place / 'new' / 'folder' / 'model.safetensors', framework='numpy') as f:
    assert f.metadata() == {'format': 'pt'}  # transformers asks for it


def test_a_file_that_does_not_read_back_as_written_is_an_error(place, monkeypatch):
  load = safetensors.numpy.load_file
  monkeypatch.setattr('safetensors.numpy.load_file', lambda path: {n: x + 1 for n, x in load(path).items()})
  with pytest.raises(RuntimeError, match='does not read back as written'):
    hf.save(place, {'a': np.ones(3, np.float32)}, {})


def test_a_model_written_and_loaded_is_the_same(tiny_bert, tensors, place):
  model = bert.build(bert.from_hf(tiny.CONFIG), head=Head())
  weights, pairs = hf.Weights(tiny_bert), match(tiny_bert).pairs
  flat = {ours: model.from_hf(ours, weights.read(key)) for ours, key in pairs.items()}
  assert trees.size(trees.unflatten(flat)) == sum(i.size for i in model.info().values())
  hf.save(place, {name: model.to_hf(ours, flat[ours]) for ours, name in model.hf_names().items()}, tiny.CONFIG)
  back = safetensors.numpy.load_file(place / 'model.safetensors')
  assert trees.digest(back) == trees.digest(tensors)
