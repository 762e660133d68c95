"""What the PyTorch references and the tests against them share; needs NumPy alone.

No weights are stored. Every parameter is drawn from a generator seeded by its name, so `make_reference.py`
(in the PyTorch environment) and the tests (here) fill a model with the same numbers:

  reference = load('bert_classify')
  tensors = reference.tensors()   # as in a Hugging Face file: {state_dict name: float32 array}
  reference['logits']             # what transformers computed from them for reference['input_ids']
"""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / 'data'
HEADS = ('none', 'classify', 'mlm')
AUTO = {
  'none': 'AutoModel',
  'classify': 'AutoModelForSequenceClassification',
  'tag': 'AutoModelForTokenClassification',
  'span': 'AutoModelForQuestionAnswering',
  'mlm': 'AutoModelForMaskedLM',
  'lm': 'AutoModelForCausalLM',
}
CLASSES = 3
LABELS = (0, 2, 1)
LENGTHS = (8, 6, 4)
DECODER_HEADS = ('lm', 'classify')
DECODER_LENGTHS = (16, 9, 7)
LEFT = ('xlnet',)  # model types whose last column transformers reads, so that rows are padded in front
FIRST_WORD = 5  # lower ids are special tokens in every family here

_BERT = {
  'model_type': 'bert',
  'num_hidden_layers': 2,
  'hidden_size': 32,
  'num_attention_heads': 4,
  'intermediate_size': 64,
  'vocab_size': 120,
  'max_position_embeddings': 40,
  'type_vocab_size': 2,
  'hidden_act': 'gelu',
  'hidden_dropout_prob': 0.1,
  'attention_probs_dropout_prob': 0.1,
  'layer_norm_eps': 1e-12,
  'pad_token_id': 0,
}
_ROBERTA = {
  **_BERT,
  'model_type': 'roberta',
  'type_vocab_size': 1,
  'layer_norm_eps': 1e-5,
  'bos_token_id': 0,
  'pad_token_id': 1,
  'eos_token_id': 2,
}
_ERNIE = {**_BERT, 'model_type': 'ernie', 'task_type_vocab_size': 3}
_DISTILBERT = {
  'model_type': 'distilbert',
  'n_layers': 2,
  'dim': 32,
  'n_heads': 4,
  'hidden_dim': 64,
  'vocab_size': 120,
  'max_position_embeddings': 40,
  'activation': 'gelu',
  'dropout': 0.1,
  'attention_dropout': 0.1,
  'seq_classif_dropout': 0.2,
  'sinusoidal_pos_embds': False,
  'pad_token_id': 0,
}

_ELECTRA = {**_BERT, 'model_type': 'electra', 'embedding_size': 20}
_ALBERT = {
  **_BERT,
  'model_type': 'albert',
  'num_hidden_layers': 3,
  'embedding_size': 20,
  'hidden_act': 'gelu_new',
  'classifier_dropout_prob': 0.1,
}

_XLNET = {
  'model_type': 'xlnet',
  'n_layer': 2,
  'd_model': 32,
  'n_head': 4,
  'd_inner': 48,
  'vocab_size': 120,
  'ff_activation': 'gelu',
  'dropout': 0.1,
  'pad_token_id': 5,
}
_DEBERTA = {
  **{k: v for k, v in _BERT.items() if k != 'type_vocab_size'},
  'model_type': 'deberta-v2',
  'relative_attention': True,
  'pos_att_type': 'p2c|c2p',
}
_DEBERTA_V2 = {  # as few of v3's switches as can be, and the convolution
  **_DEBERTA,
  'type_vocab_size': 2,
  'max_relative_positions': 6,
  'conv_kernel_size': 3,
  'conv_act': 'gelu',
  'legacy': False,
}
_DEBERTA_V3 = {
  **_DEBERTA,
  'type_vocab_size': 0,
  'position_biased_input': False,
  'position_buckets': 8,
  'share_att_key': True,
  'norm_rel_ebd': 'layer_norm',
}
_MODERNBERT = {
  'model_type': 'modernbert',
  'num_hidden_layers': 3,
  'hidden_size': 32,
  'num_attention_heads': 4,
  'intermediate_size': 48,
  'vocab_size': 120,
  'max_position_embeddings': 40,
  'local_attention': 4,
  'global_rope_theta': 100.0,
  'local_rope_theta': 10.0,
  'pad_token_id': 0,
}
_MODERNBERT_BIASES = {
  **{k: v for k, v in _MODERNBERT.items() if 'theta' not in k},
  **dict.fromkeys(('attention_bias', 'mlp_bias', 'norm_bias', 'classifier_bias'), True),
  'num_hidden_layers': 2,
  'decoder_bias': False,
  'classifier_pooling': 'mean',
  'hidden_activation': 'silu',
  'layer_types': ['sliding_attention', 'full_attention'],
  'rope_parameters': {
    'full_attention': {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 100.0},
    'sliding_attention': {'rope_type': 'default', 'rope_theta': 10.0},
  },
}

# Tiny models by case name, as the config.json of a Hugging Face folder.
TINY = {
  'bert': _BERT,
  'bert_gelu_new': {**_BERT, 'hidden_act': 'gelu_new'},
  'bert_relu': {**_BERT, 'hidden_act': 'relu'},
  'roberta': _ROBERTA,
  'xlm_roberta': {**_ROBERTA, 'model_type': 'xlm-roberta'},
  'ernie': {**_ERNIE, 'use_task_id': True},
  'ernie_no_task': {**_ERNIE, 'use_task_id': False},
  'distilbert': _DISTILBERT,
  'electra': _ELECTRA,
  'electra_wide': {**_ELECTRA, 'embedding_size': 32},
  'albert': _ALBERT,
  'albert_groups': {**_ALBERT, 'num_hidden_layers': 5, 'num_hidden_groups': 2, 'inner_group_num': 2},
  'xlnet': _XLNET,
  'deberta_v2': _DEBERTA_V2,
  'deberta_v3': _DEBERTA_V3,
  'modernbert': _MODERNBERT,
  'modernbert_biases': _MODERNBERT_BIASES,
}

_LLAMA = {
  'model_type': 'llama',
  'num_hidden_layers': 2,
  'hidden_size': 32,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'intermediate_size': 48,
  'vocab_size': 64,
  'max_position_embeddings': 64,
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-5,
  'rope_theta': 100.0,
  'attention_dropout': 0.1,
  'tie_word_embeddings': False,
  'pad_token_id': 0,
  'bos_token_id': 1,
  'eos_token_id': 2,
}
_ROPE = {'factor': 4.0, 'original_max_position_embeddings': 16, 'rope_theta': 100.0}
_LLAMA3 = {**_ROPE, 'rope_type': 'llama3', 'low_freq_factor': 1.0, 'high_freq_factor': 4.0}
_NEW = {k: v for k, v in _LLAMA.items() if k != 'rope_theta'}
_QWEN2 = {**_LLAMA, 'model_type': 'qwen2', 'tie_word_embeddings': True}
_GEMMA = {
  **{k: v for k, v in _LLAMA.items() if k not in ('attention_dropout', 'tie_word_embeddings')},
  'model_type': 'gemma',
  'head_dim': 16,
  'hidden_act': 'gelu_pytorch_tanh',
}
_GEMMA2 = {
  **{k: v for k, v in _GEMMA.items() if k != 'hidden_act'},
  'model_type': 'gemma2',
  'hidden_activation': 'gelu_pytorch_tanh',
  'sliding_window': 5,
  'query_pre_attn_scalar': 24,
  'attn_logit_softcapping': 2.0,
  'final_logit_softcapping': 3.0,
}
_GEMMA3 = {
  **{k: v for k, v in _GEMMA2.items() if 'softcapping' not in k},
  'model_type': 'gemma3_text',
  'num_hidden_layers': 3,
  'rope_local_base_freq': 10.0,
  'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention'],
}
_GPT2 = {
  'model_type': 'gpt2',
  'n_layer': 2,
  'n_embd': 32,
  'n_head': 4,
  'vocab_size': 64,
  'n_positions': 64,
  'pad_token_id': 0,
  'bos_token_id': 1,
  'eos_token_id': 2,
}

# An LSTM in both directions over word vectors, as PyTorch has it.
BILSTM = {
  'model_type': 'bilstm',
  'vocab_size': 40,
  'embedding_size': 12,
  'hidden_size': 8,
  'num_hidden_layers': 2,
  'pad_token_id': 0,
}

# Tiny decoders by case name; windows (5) are shorter than the rows.
DECODERS = {
  'llama': _LLAMA,
  'llama_biases': {**_LLAMA, 'attention_bias': True, 'mlp_bias': True, 'tie_word_embeddings': True, 'head_dim': 16},
  'llama_linear': {**_LLAMA, 'rope_scaling': {'type': 'linear', 'factor': 4.0}},
  'llama_llama3': {**_NEW, 'rope_parameters': _LLAMA3},
  'llama_yarn': {**_NEW, 'rope_parameters': {**_ROPE, 'rope_type': 'yarn', 'beta_fast': 4.0}},
  'mistral': {**_LLAMA, 'model_type': 'mistral', 'sliding_window': 5},
  'qwen2': _QWEN2,
  'qwen2_window': {**_QWEN2, 'use_sliding_window': True, 'sliding_window': 5, 'max_window_layers': 1},
  'qwen3': {**_LLAMA, 'model_type': 'qwen3', 'head_dim': 16},
  'gemma': _GEMMA,
  'gemma2': _GEMMA2,
  'gemma3': _GEMMA3,
  'gpt2': _GPT2,
  'gpt2_wide': {**_GPT2, 'n_inner': 48, 'activation_function': 'relu', 'tie_word_embeddings': False},
}


def weights(shapes: Mapping[str, tuple[int, ...]], scale: float = 0.1) -> dict[str, np.ndarray]:
  """A float32 array for every name, always the same: `scale` * normal, plus 1 for the scales of norms."""
  return {name: _weight(name, tuple(shape), scale) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
  draws = scale * np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
  norm = re.search(r'(LayerNorm|layer_norm|layernorm|[._]norm|ln_\w)\.weight$', name) is not None
  return (draws + norm).astype(np.float32)


def scale_of(config: Mapping[str, object]) -> float:
  """The scale of a case's weights: decoders' are large enough that attention is far from even."""
  return 0.25 if config['model_type'] in {c['model_type'] for c in (*DECODERS.values(), BILSTM)} else 0.1


def checksum(tensors: Mapping[str, np.ndarray]) -> int:
  """One number for the bytes of all tensors, in the order of their names."""
  total = 0
  for name in sorted(tensors):
    total = zlib.crc32(np.ascontiguousarray(tensors[name]).tobytes(), total)
  return total


def inputs(case: str, lengths: Sequence[int] = ()) -> dict[str, np.ndarray]:
  """Right-padded rows of `lengths`, of 8, 6 and 4 tokens unless given (decoders' are longer): `input_ids`,
  `attention_mask`, for some `token_type_ids`.

  All rows begin and end with the same special tokens, so the gradients of some embeddings are sums over rows.
  """
  config = TINY[case] if case in TINY else DECODERS[case]
  lengths = lengths or (LENGTHS if case in TINY else DECODER_LENGTHS)
  rng = np.random.default_rng(zlib.crc32(b'inputs'))
  mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
  ids = rng.integers(FIRST_WORD, config['vocab_size'], mask.shape)
  ids[:, 0] = 3
  ids[np.arange(len(lengths)), np.array(lengths) - 1] = 4
  out = {'input_ids': np.where(mask, ids, config['pad_token_id']), 'attention_mask': mask}
  if config.get('type_vocab_size', 1) > 1:
    second = np.arange(mask.shape[1]) >= np.array(lengths)[:, None] // 2
    out['token_type_ids'] = second & mask
  if config['model_type'] in LEFT:  # the last token is of a type of its own
    out['token_type_ids'] = (np.arange(mask.shape[1]) >= 2) + (ids == 4)
  return {name: value.astype(np.int32) for name, value in out.items()}


def moved(
  kind: str, arrays: Mapping[str, np.ndarray], mask: np.ndarray, *, back: bool = False
) -> dict[str, np.ndarray]:
  """Arrays [B, L, ...] with the padding of rows in front, where transformers wants it there for a model type; `back`
  undoes it."""
  if kind not in LEFT:
    return dict(arrays)
  by = (-1 if back else 1) * (mask == 0).sum(1)
  roll = lambda x: np.stack([np.roll(row, n, axis=0) for row, n in zip(x, by)])  # noqa: E731
  return {name: roll(x) if x.shape[:2] == mask.shape else x for name, x in arrays.items()}


def auto_class(model_type: str, head: str) -> str:
  """The class of transformers that makes a model with a head."""
  if model_type == 'xlnet' and head == 'mlm':
    return 'AutoModelForCausalLM'  # what it calls a head over the vocabulary there
  return AUTO[head]


def pooling(config: Mapping[str, object]) -> str:
  """What the class head of transformers reads."""
  return 'last' if config['model_type'] in LEFT else str(config.get('classifier_pooling', 'cls'))


@dataclasses.dataclass(frozen=True)
class Reference:
  """One stored file: the arrays by key, and its JSON entries parsed."""

  arrays: dict[str, np.ndarray]
  config: dict
  shapes: dict[str, tuple[int, ...]]  # every state_dict name, tied ones included
  tied: dict[str, str]  # tied name -> the name whose tensor it shares

  def __getitem__(self, key: str) -> np.ndarray:
    return self.arrays[key]

  def gradients(self) -> dict[str, np.ndarray]:
    """The gradients of `loss` by state_dict name."""
    prefix = 'grad/'
    return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

  def tensors(self) -> dict[str, np.ndarray]:
    """The weights behind the reference, by state_dict name; without tied names, as in a saved file."""
    shapes = {name: shape for name, shape in self.shapes.items() if name not in self.tied}
    drawn = weights(shapes, scale_of(self.config))
    if checksum(drawn) != int(self.arrays['checksum']):
      raise AssertionError('the weights drawn here are not those of the file: run make_reference.py again')
    return drawn


def load(name: str) -> Reference:
  """The reference `<case>_<head>` from the data folder."""
  with np.load(DATA / f'{name}.npz') as stored:
    arrays = {key: stored[key] for key in stored.files}
  config, shapes, tied = (json.loads(str(arrays.pop(key))) for key in ('config', 'shapes', 'tied'))
  return Reference(arrays, config, {n: tuple(s) for n, s in shapes.items()}, tied)
