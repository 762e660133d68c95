"""GGUF files (llama.cpp's format) as models: `read_config` and `Weights` give what `ftlib/io/hf.py`'s give of a folder.

Tensors get their Hugging Face names and layouts, so that `hf.match` works unchanged. What llama.cpp's converter did to
the values is undone: rotary rows of Llama back from pairs to halves, Gemma's norms without the one, GPT-2's transposes.
The `gguf` package dequantises.
"""

from __future__ import annotations

import hashlib
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ftlib.base import gguf_header
from ftlib.base.errors import InputError, did_you_mean, listing
from ftlib.base.gguf_header import Header, Tensor
from ftlib.io import hf

_HARMLESS = re.compile(r'\.(tensor_data_layout|attention\.value_length|rope\.scaling\.finetuned|vocab_size)$')
_BLOCK = 'model.layers.{i}.'
_DENSE = {
  'token_embd': 'model.embed_tokens',
  'output_norm': 'model.norm',
  'output': 'lm_head',
  'blk.{i}.attn_q': _BLOCK + 'self_attn.q_proj',
  'blk.{i}.attn_k': _BLOCK + 'self_attn.k_proj',
  'blk.{i}.attn_v': _BLOCK + 'self_attn.v_proj',
  'blk.{i}.attn_output': _BLOCK + 'self_attn.o_proj',
  'blk.{i}.attn_q_norm': _BLOCK + 'self_attn.q_norm',
  'blk.{i}.attn_k_norm': _BLOCK + 'self_attn.k_norm',
  'blk.{i}.attn_norm': _BLOCK + 'input_layernorm',
  'blk.{i}.ffn_norm': _BLOCK + 'post_attention_layernorm',
  'blk.{i}.ffn_gate': _BLOCK + 'mlp.gate_proj',
  'blk.{i}.ffn_up': _BLOCK + 'mlp.up_proj',
  'blk.{i}.ffn_down': _BLOCK + 'mlp.down_proj',
}
_GEMMA = {
  **_DENSE,
  'blk.{i}.post_attention_norm': _BLOCK + 'post_attention_layernorm',
  'blk.{i}.ffn_norm': _BLOCK + 'pre_feedforward_layernorm',
  'blk.{i}.post_ffw_norm': _BLOCK + 'post_feedforward_layernorm',
}
_GPT2 = {
  'token_embd': 'transformer.wte',
  'position_embd': 'transformer.wpe',
  'output_norm': 'transformer.ln_f',
  'output': 'lm_head',
  'blk.{i}.attn_norm': 'transformer.h.{i}.ln_1',
  'blk.{i}.attn_qkv': 'transformer.h.{i}.attn.c_attn',
  'blk.{i}.attn_output': 'transformer.h.{i}.attn.c_proj',
  'blk.{i}.ffn_norm': 'transformer.h.{i}.ln_2',
  'blk.{i}.ffn_up': 'transformer.h.{i}.mlp.c_fc',
  'blk.{i}.ffn_down': 'transformer.h.{i}.mlp.c_proj',
}
_LAYOUTS = {'llama': _DENSE, 'qwen2': _DENSE, 'qwen3': _DENSE, 'gemma2': _GEMMA, 'gemma3': _GEMMA, 'gpt2': _GPT2}
_LLAMA3 = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')
_LLAMA3_KNOWN = [(f, 1.0, 4.0, 8192) for f in (8.0, 32.0)]  # Llama 3.1 and 3.3, 3.2
_DERIVED = {'rope_freqs.weight'}  # tensors that follow from the config


class _Metadata:
  """The values under one architecture's prefix; it keeps in mind which were asked for."""

  def __init__(self, header: Header, path: pathlib.Path):
    self.header, self.all, self.tensors, self.path = header, header.metadata, header.tensors, path
    self.name = self.all.get('general.architecture')
    self.seen: set[str] = set()
    if self.name not in _LAYOUTS:
      raise InputError(
        f'{path}: general.architecture={self.name!r} is none that ftlib reads from GGUF'
        f'{did_you_mean(str(self.name), _LAYOUTS)}; known: {", ".join(sorted(_LAYOUTS))}'
      )
    if self.all.get('general.type', 'model') != 'model':
      raise InputError(f'{path}: general.type={self.all["general.type"]!r}; only whole models are read')
    if self.all.get('split.count', 1) not in (0, 1):
      raise InputError(
        f"{path} is one of {self.all['split.count']} parts; join them with llama.cpp's `llama-gguf-split --merge`"
      )

  def get(self, key: str, default: Any = None) -> Any:
    """A number, a text, or the default; float32 as it prints, since 1e-5 is stored as 9.99999975e-06."""
    full = f'{self.name}.{key}'
    self.seen.add(full)
    value = self.all.get(full, default)
    if isinstance(value, list):
      raise InputError(f'{self.path}: {full} differs from layer to layer, which is not supported')
    if isinstance(value, str) != isinstance(default, str):
      raise InputError(f'{self.path}: {full}={value!r} is not {"a text" if isinstance(default, str) else "a number"}')
    return float(str(np.float32(value))) if isinstance(value, float) else value

  def need(self, key: str) -> Any:
    if (value := self.get(key)) is None:
      raise InputError(f'{self.path}: the metadata lack {self.name}.{key}')
    return value

  def rest(self) -> dict[str, Any]:
    """What nobody asked for and may change the model; a family refuses it as an unknown setting."""
    mine = {k: v for k, v in self.all.items() if k.startswith(f'{self.name}.') and k not in self.seen}
    return {k: v for k, v in mine.items() if not _HARMLESS.search(k) and v not in (0, None, '')}

  def shape(self, name: str) -> tuple[int, ...]:
    if name not in self.tensors:
      raise InputError(f'{self.path}: the tensor {name} is missing')
    return self.tensors[name].shape


def read_config(path: pathlib.Path) -> dict[str, Any]:
  """What stood in the `config.json` that the file was made from, as far as the model follows from it."""
  return _config(gguf_header.read(path), path)


def _config(header: Header, path: pathlib.Path) -> dict[str, Any]:
  m = _Metadata(header, path)
  _check(path, header)
  ids = {n: header.metadata.get(f'tokenizer.ggml.{k}_token_id') for n, k in _TOKENS.items()}
  common = {
    'vocab_size': m.shape('token_embd.weight')[0],
    'tie_word_embeddings': not _untied(path, header),
    **{n: i for n, i in ids.items() if i is not None},
  }
  values = _gpt2(m) if m.name == 'gpt2' else _dense(m)
  return {**common, **values, **m.rest()}


_TOKENS = {'bos_token_id': 'bos', 'eos_token_id': 'eos', 'pad_token_id': 'padding'}


def _gpt2(m: _Metadata) -> dict[str, Any]:
  return {
    'model_type': 'gpt2',
    'n_embd': m.need('embedding_length'),
    'n_layer': m.need('block_count'),
    'n_head': m.need('attention.head_count'),
    'n_inner': m.need('feed_forward_length'),
    'n_positions': m.need('context_length'),
    'layer_norm_epsilon': m.need('attention.layer_norm_epsilon'),
    'activation_function': 'gelu_new',
  }


def _dense(m: _Metadata) -> dict[str, Any]:
  heads, embed, layers = m.need('attention.head_count'), m.need('embedding_length'), m.need('block_count')
  size = m.get('attention.key_length') or embed // max(heads, 1)
  turned = m.get('rope.dimension_count', size)
  if m.name == 'llama' and m.get('attention.key_length') is None:
    size = turned  # older files say the head size so
  if turned != size:
    raise InputError(f'{m.path}: heads of {size} of which {turned} dimensions turn are not supported')
  gemma = m.name.startswith('gemma')
  values = {
    'model_type': {'gemma3': 'gemma3_text'}.get(m.name, m.name),
    'hidden_size': embed,
    'num_hidden_layers': layers,
    'num_attention_heads': heads,
    'num_key_value_heads': m.get('attention.head_count_kv', heads),
    'head_dim': size,
    'intermediate_size': m.need('feed_forward_length'),
    'max_position_embeddings': m.need('context_length'),
    'rms_norm_eps': m.need('attention.layer_norm_rms_epsilon'),
    'rope_theta': m.get('rope.freq_base', 1e6 if m.name == 'gemma3' else 1e4),
    'hidden_activation' if gemma else 'hidden_act': 'gelu_pytorch_tanh' if gemma else 'silu',
  }
  if m.name == 'qwen2':  # always with biases; its head size is no setting
    if size * heads != embed:
      raise InputError(f'{m.path}: {heads} heads of {size} for an embedding of {embed} are not supported for qwen2')
    del values['head_dim']
  else:
    values['attention_bias'] = 'blk.0.attn_q.bias' in m.tensors
  if scaling := _scaling(m, size, values['rope_theta']):
    values['rope_scaling'] = scaling
  return {**values, **(_gemma(m, heads, embed, layers, size) if gemma else {})}


def _gemma(m: _Metadata, heads: int, embed: int, layers: int, size: int) -> dict[str, Any]:
  """Windows, caps and scales of Gemma 2 and 3. What the format leaves out is as llama.cpp has it written into it: the
  27B models alone scale queries by the embedding's share of a head, and every sixth layer of Gemma 3 sees all."""
  large = layers == (46 if m.name == 'gemma2' else 62)
  every = m.get('attention.sliding_window_pattern', 2 if m.name == 'gemma2' else 6)
  window = m.need('attention.sliding_window')
  kinds = ['full_attention' if (i + 1) % every == 0 else 'sliding_attention' for i in range(layers)]
  values = {
    'query_pre_attn_scalar': embed // heads if large else size,
    'sliding_window': window,
    'layer_types': kinds,
    'attn_logit_softcapping': m.get('attn_logit_softcapping', 50.0 if m.name == 'gemma2' else None),
    'final_logit_softcapping': m.get('final_logit_softcapping', 30.0 if m.name == 'gemma2' else None),
  }
  if m.name == 'gemma3':
    values['rope_local_base_freq'] = m.get('rope.freq_base_swa', 10000.0)
  return values


def _scaling(m: _Metadata, size: int, theta: float) -> dict[str, Any] | None:
  kind = m.get('rope.scaling.type', 'none')
  factor, original = m.get('rope.scaling.factor'), m.get('rope.scaling.original_context_length')
  if kind != 'none':
    numbers = {'factor': factor, 'original_max_position_embeddings': original if kind != 'linear' else None}
    return {'rope_type': kind, **{k: v for k, v in numbers.items() if v is not None}}
  if 'rope_freqs.weight' not in m.tensors:
    return None
  found = _raw(m.path, m.header, 'rope_freqs.weight')
  for numbers in _LLAMA3_KNOWN:
    if found.size == size // 2 and np.allclose(found, _llama3_factors(numbers, size, theta), rtol=1e-4):
      return {'rope_type': 'llama3', **dict(zip(_LLAMA3, numbers))}
  raise InputError(
    f'{m.path}: its rope_freqs.weight is none of the rotations that are known by it (Llama 3.1, 3.2, 3.3); '
    'take the safetensors folder of the model'
  )


def _llama3_factors(numbers: tuple[float, ...], size: int, theta: float) -> np.ndarray:
  """What llama.cpp divides the frequencies by [size / 2]."""
  factor, low, high, original = numbers
  turns = original * theta ** (-np.arange(0, size, 2) / size) / (2 * math.pi)  # within the first training's context
  smooth = np.clip((turns - low) / (high - low), 0, 1)
  return 1 / ((1 - smooth) / factor + smooth)


def _untied(path: pathlib.Path, header: Header) -> bool:
  """Whether there is an output matrix, and it is no copy of the embeddings (as in GPT-2's older files)."""
  pair = [header.tensors.get(n) for n in ('output.weight', 'token_embd.weight')]
  if None in pair or (pair[0].kind, pair[0].shape) != (pair[1].kind, pair[1].shape):
    return pair[0] is not None
  return not np.array_equal(*(_bytes(path, header, t) for t in pair))


class Weights:
  """The tensors of one file, dequantised on demand. `folder` is the file, `where` {Hugging Face name: the file}.

  Raises `InputError` for a truncated file, a quantisation or an architecture that is not known.
  """

  def __init__(self, path: pathlib.Path):
    self.folder, self.files = path, [path]
    self._header = gguf_header.read(path)
    self._arch = _Metadata(self._header, path)
    self._heads = [self._arch.get(f'attention.head_count{k}') for k in ('', '_kv')]
    _check(path, self._header)
    names = {n: _name(n, _LAYOUTS[self._arch.name]) for n in self._header.tensors if n not in _DERIVED}
    self._inside = {hf_name: n for n, hf_name in names.items()}
    self.where = dict.fromkeys(self._inside, path)

  def shape(self, key: str) -> tuple[int, ...]:
    """As in the Hugging Face folder."""
    shape = self._header.tensors[self._inside[key]].shape
    return shape[::-1] if self._transposed(self._inside[key]) else shape

  def read(self, key: str) -> np.ndarray:
    """The tensor in float32. Raises `InputError` for a NaN or an infinity in it."""
    name = self._inside[key]
    value = self._undo(name)(_raw(self.folder, self._header, name))
    if not np.isfinite(value).all():
      raise InputError(f'{self.folder}: tensor {name} holds NaN or infinity')
    return np.ascontiguousarray(value)

  def fingerprint(self) -> str:
    """SHA-256 of the header and the file (of samples of a file above 256 MB), independent of where it lies."""
    h = hashlib.sha256()
    with self.folder.open('rb') as f:
      h.update(f.read(self._header.start))
    hf.digest(h, self.folder)
    return h.hexdigest()

  def _transposed(self, name: str) -> bool:
    return self._arch.name == 'gpt2' and bool(re.search(r'^blk\..*(qkv|output|up|down)\.weight$', name))

  def _undo(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
    if self._transposed(name):
      return np.transpose
    if self._arch.name.startswith('gemma') and name.endswith('norm.weight'):
      return lambda x: x - np.float32(1)
    if self._arch.name == 'llama' and (which := re.search(r'\.attn_([qk])\.', name)):
      heads = self._heads[0] if which[1] == 'q' or not self._heads[1] else self._heads[1]
      return lambda x: _halves(x, heads)
    return lambda x: x


def _halves(x: np.ndarray, heads: int) -> np.ndarray:
  """Rows of each head from neighbouring pairs (2j, 2j + 1) to halves (j, j + K / 2): the inverse of llama.cpp's."""
  pairs = x.reshape(heads, -1, 2, *x.shape[1:])
  return pairs.swapaxes(1, 2).reshape(x.shape)


def _name(name: str, table: Mapping[str, str]) -> str:
  stem, _, last = name.rpartition('.')
  number = re.match(r'blk\.(\d+)\.', stem)
  i = number[1] if number else ''
  found = table.get(stem.replace(f'blk.{i}.', 'blk.{i}.', 1) if number else stem)
  return f'{found.replace("{i}", i)}.{last}' if found else name


def _check(path: pathlib.Path, header: Header) -> None:
  """Every tensor of a kind that is dequantised, and within the file."""
  import gguf

  kinds: dict[int, list[str]] = {}
  for name, tensor in header.tensors.items():
    kinds.setdefault(tensor.kind, []).append(name)
  bad = []
  for kind, names in kinds.items():
    try:
      known = gguf.GGMLQuantizationType(kind)
      _, size = gguf.GGML_QUANT_SIZES[known]
      values = gguf.dequantize(np.zeros((1, size), np.uint8), known)
      if values.dtype != np.float32:
        raise KeyError(known.name)
    except (ValueError, KeyError, RuntimeError):  # the last where gguf cannot
      text = known.name if kind in set(gguf.GGMLQuantizationType) else f'number {kind}'
      bad.append(f'{text} of {len(names)} tensors ({names[0]}, ...)')
  if bad:
    raise InputError(f'{path}: quantisations that the installed gguf package does not read:\n{listing(bad)}')
  size = path.stat().st_size
  for name, tensor in header.tensors.items():
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.kind)]
    if not tensor.shape or tensor.shape[-1] % block:
      raise InputError(f'{path}: tensor {name} of shape {list(tensor.shape)} does not divide into blocks of {block}')
    if (end := header.start + tensor.offset + math.prod(_stored(tensor))) > size:
      raise InputError(f'{path} is truncated: {name} would end at byte {end} of {size}; fetch it again')


def _stored(tensor: Tensor) -> tuple[int, ...]:
  """The shape in bytes."""
  import gguf

  block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.kind)]
  return (*tensor.shape[:-1], tensor.shape[-1] // block * size)


def _raw(path: pathlib.Path, header: Header, name: str) -> np.ndarray:
  """A tensor as it stands in the file, dequantised to float32."""
  import gguf

  tensor = header.tensors[name]
  kind = gguf.GGMLQuantizationType(tensor.kind)
  stored, (_, size) = _bytes(path, header, tensor), gguf.GGML_QUANT_SIZES[kind]
  rows = stored.reshape(-1, size * math.gcd(stored.size // size, 512))  # 16 rows are taken at once; blocks are short
  return np.array(gguf.dequantize(rows, kind), np.float32).reshape(tensor.shape)


def _bytes(path: pathlib.Path, header: Header, tensor: Tensor) -> np.ndarray:
  return np.memmap(path, np.uint8, 'r', offset=header.start + tensor.offset, shape=_stored(tensor))
