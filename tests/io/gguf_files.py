"""Small GGUF files written with the gguf package: what llama.cpp's converter makes of Hugging Face tensors."""

from __future__ import annotations

import json
import pathlib

import gguf
import numpy as np

from ftlib.io import hf

Q = gguf.GGMLQuantizationType
CONTROL, NORMAL = 3, 1


def tokens(count: int) -> list[str]:
  return [f'<{i}>' for i in range(count)]


def write(
  path: pathlib.Path,
  arch: str,
  tensors: dict[str, np.ndarray],
  *,
  kind: Q = Q.F32,
  metadata: dict[str, object] | None = None,
  vocabulary: list[str] | None = None,
  kinds: list[int] | None = None,
) -> pathlib.Path:
  """A file of GGUF-named tensors: matrices in `kind`, vectors in float32."""
  writer = gguf.GGUFWriter(path, arch)
  for key, value in (metadata or {}).items():
    put = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    put.get(type(value), writer.add_array)(key, value)
  if vocabulary:
    writer.add_token_list(vocabulary)
    writer.add_token_types(kinds or [NORMAL] * len(vocabulary))
  for name, value in tensors.items():
    own = kind if value.ndim > 1 else Q.F32
    writer.add_tensor(name, gguf.quantize(value, own), raw_dtype=own)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def converted(arch: gguf.MODEL_ARCH, tensors: dict[str, np.ndarray], *, heads: int, kv: int) -> dict[str, np.ndarray]:
  """Hugging Face's tensors as the converter names and lays them out."""
  names = gguf.get_tensor_name_map(arch, 2)
  kind = gguf.MODEL_ARCH_NAMES[arch]
  out = {}
  for name, value in tensors.items():
    if kind == 'llama' and (name.endswith(('q_proj.weight', 'k_proj.weight'))):
      count = heads if 'q_proj' in name else kv
      value = value.reshape(count, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
    if kind.startswith('gemma') and name.endswith('norm.weight'):
      value = value + np.float32(1)
    if kind == 'gpt2' and name.endswith(('c_attn.weight', 'c_proj.weight', 'c_fc.weight')):
      value = value.T
    out[names.get_name(name, try_suffixes=('.weight', '.bias'))] = np.ascontiguousarray(value)
  return out


def of_folder(path: pathlib.Path, folder: pathlib.Path, *, kind: Q = Q.F32, **changes) -> pathlib.Path:
  """The GGUF of a tiny Llama folder, tokenizer and template with it; `changes` are of the metadata (None: left out)."""
  config, weights = hf.read_config(folder), hf.Weights(folder)
  inner = json.loads((folder / 'tokenizer.json').read_text())
  settings = json.loads((folder / 'tokenizer_config.json').read_text())
  vocab = {**inner['model']['vocab'], **{t['content']: t['id'] for t in inner['added_tokens']}}
  special = {t['content'] for t in inner['added_tokens']}
  ordered = sorted(vocab, key=vocab.get)
  pairs = [m if isinstance(m, str) else ' '.join(m) for m in inner['model']['merges']]
  metadata = {
    'llama.block_count': config['num_hidden_layers'],
    'llama.context_length': config['max_position_embeddings'],
    'llama.embedding_length': config['hidden_size'],
    'llama.feed_forward_length': config['intermediate_size'],
    'llama.attention.head_count': config['num_attention_heads'],
    'llama.attention.head_count_kv': config['num_key_value_heads'],
    'llama.rope.freq_base': config['rope_theta'],
    'llama.rope.dimension_count': config['head_dim'],
    'llama.attention.layer_norm_rms_epsilon': config['rms_norm_eps'],
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'gpt-2',
    'tokenizer.ggml.merges': pairs,
    'tokenizer.ggml.add_bos_token': False,
    **{f'tokenizer.ggml.{k}_token_id': vocab[settings[f'{k}_token']] for k in ('bos', 'eos')},
    'tokenizer.ggml.padding_token_id': vocab[settings['pad_token']],
    'tokenizer.chat_template': settings['chat_template'],
  }
  metadata = {k: v for k, v in {**metadata, **changes}.items() if v is not None}
  tensors = {k: weights.read(k) for k in weights.where}
  heads, kv = config['num_attention_heads'], config['num_key_value_heads']
  tensors = converted(gguf.MODEL_ARCH.LLAMA, tensors, heads=heads, kv=kv)
  kinds = [CONTROL if t in special else NORMAL for t in ordered]
  return write(path, 'llama', tensors, kind=kind, metadata=metadata, vocabulary=ordered, kinds=kinds)


D, F, K, H, G, V = 64, 96, 16, 4, 2, 40


def made(arch: str, *, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, object], dict[str, object]]:
  """(Hugging Face tensors, metadata, what the config must say) of a tiny model of two layers of an architecture."""
  rng, wide = np.random.default_rng(seed), 4 * D if arch == 'gpt2' else F  # as transformers expects of GPT-2
  draw = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
  common = {
    f'{arch}.block_count': 2,
    f'{arch}.context_length': 1024 if arch == 'gpt2' else 50,  # transformers reads no other of GPT-2
    f'{arch}.embedding_length': D,
    f'{arch}.feed_forward_length': wide,
    f'{arch}.attention.head_count': H,
  }
  if arch == 'gpt2':
    tensors = {'transformer.wte.weight': draw(V, D), 'transformer.wpe.weight': draw(1024, D)}
    shapes = {'ln_1': (D,), 'ln_2': (D,), 'attn.c_attn': (D, 3 * D), 'attn.c_proj': (D, D)}
    shapes |= {'mlp.c_fc': (D, wide), 'mlp.c_proj': (wide, D)}
    for i in range(2):
      for name, shape in shapes.items():
        tensors[f'transformer.h.{i}.{name}.weight'] = draw(*shape)
        tensors[f'transformer.h.{i}.{name}.bias'] = draw(shape[-1])
    tensors |= {f'transformer.ln_f.{k}': draw(D) for k in ('weight', 'bias')}
    said = {'model_type': 'gpt2', 'n_embd': D, 'n_layer': 2, 'n_head': H, 'n_inner': wide, 'n_positions': 1024}
    said |= {'layer_norm_epsilon': 1e-5, 'vocab_size': V, 'tie_word_embeddings': True}
    return tensors, {**common, 'gpt2.attention.layer_norm_epsilon': 1e-5}, said
  metadata = {
    **common,
    f'{arch}.attention.head_count_kv': G,
    f'{arch}.attention.layer_norm_rms_epsilon': 1e-6,
    f'{arch}.rope.freq_base': 5000.0,
  }
  said = {
    'model_type': {'gemma3': 'gemma3_text'}.get(arch, arch),
    'hidden_size': D,
    'num_hidden_layers': 2,
    'num_attention_heads': H,
    'num_key_value_heads': G,
    'intermediate_size': F,
    'max_position_embeddings': 50,
    'rms_norm_eps': 1e-6,
    'rope_theta': 5000.0,
    'vocab_size': V,
    'tie_word_embeddings': arch != 'qwen3',
  }
  size = {'llama': K, 'qwen2': K, 'qwen3': 128}.get(arch, 2 * K)  # 128: transformers reads no other of Qwen 3
  shapes = {
    'self_attn.q_proj': (H * size, D),
    'self_attn.k_proj': (G * size, D),
    'self_attn.v_proj': (G * size, D),
    'self_attn.o_proj': (D, H * size),
    'mlp.gate_proj': (F, D),
    'mlp.up_proj': (F, D),
    'mlp.down_proj': (D, F),
    'input_layernorm': (D,),
    'post_attention_layernorm': (D,),
  }
  if arch in ('qwen3', 'gemma3'):
    shapes |= {'self_attn.q_norm': (size,), 'self_attn.k_norm': (size,)}
  if arch.startswith('gemma'):
    shapes |= {'pre_feedforward_layernorm': (D,), 'post_feedforward_layernorm': (D,)}
    said |= {'hidden_activation': 'gelu_pytorch_tanh', 'sliding_window': 8, 'query_pre_attn_scalar': size}
    metadata[f'{arch}.attention.sliding_window'] = 8
  if arch == 'gemma2':
    metadata |= {'gemma2.attn_logit_softcapping': 40.0, 'gemma2.final_logit_softcapping': 20.0}
    said |= {'attn_logit_softcapping': 40.0, 'final_logit_softcapping': 20.0}
    said['layer_types'] = ['sliding_attention', 'full_attention']
  if arch == 'gemma3':
    said |= {'layer_types': ['sliding_attention'] * 2, 'rope_local_base_freq': 10000.0}
  if size != K:
    metadata |= {f'{arch}.attention.key_length': size, f'{arch}.attention.value_length': size}
  if arch != 'qwen2':
    said['head_dim'] = size
  tensors = {'model.embed_tokens.weight': draw(V, D), 'model.norm.weight': draw(D)}
  for i in range(2):
    tensors |= {f'model.layers.{i}.{n}.weight': draw(*shape) for n, shape in shapes.items()}
    if arch == 'qwen2':
      tensors |= {f'model.layers.{i}.self_attn.{p}_proj.bias': draw(H * K if p == 'q' else G * K) for p in 'qkv'}
  if arch == 'qwen3':
    tensors['lm_head.weight'] = draw(V, D)
  return tensors, metadata, said
