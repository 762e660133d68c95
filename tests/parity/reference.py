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
from collections.abc import Mapping
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / 'data'
HEADS = ('none', 'classify', 'mlm')
CLASSES = 3
LABELS = (0, 2, 1)
LENGTHS = (8, 6, 4)
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
}


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """A float32 array for every name, always the same: 0.1 * normal, plus 1 for the scales of layer norms."""
  return {name: _weight(name, tuple(shape)) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  draws = 0.1 * np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
  scale = re.search(r'(LayerNorm|layer_norm)\.weight$', name) is not None
  return (draws + scale).astype(np.float32)


def checksum(tensors: Mapping[str, np.ndarray]) -> int:
  """One number for the bytes of all tensors, in the order of their names."""
  total = 0
  for name in sorted(tensors):
    total = zlib.crc32(np.ascontiguousarray(tensors[name]).tobytes(), total)
  return total


def inputs(case: str) -> dict[str, np.ndarray]:
  """Three right-padded rows of lengths 8, 6 and 4: `input_ids`, `attention_mask`, for some `token_type_ids`.

  All rows begin and end with the same special tokens, so the gradients of some embeddings are sums over rows.
  """
  config = TINY[case]
  rng = np.random.default_rng(zlib.crc32(b'inputs'))
  mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
  ids = rng.integers(FIRST_WORD, config['vocab_size'], mask.shape)
  ids[:, 0] = 3
  ids[np.arange(len(LENGTHS)), np.array(LENGTHS) - 1] = 4
  out = {'input_ids': np.where(mask, ids, config['pad_token_id']), 'attention_mask': mask}
  if config.get('type_vocab_size', 1) > 1:
    second = np.arange(mask.shape[1]) >= np.array(LENGTHS)[:, None] // 2
    out['token_type_ids'] = second & mask
  return {name: value.astype(np.int32) for name, value in out.items()}


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
    drawn = weights({name: shape for name, shape in self.shapes.items() if name not in self.tied})
    if checksum(drawn) != int(self.arrays['checksum']):
      raise AssertionError('the weights drawn here are not those of the file: run make_reference.py again')
    return drawn


def load(name: str) -> Reference:
  """The reference `<case>_<head>` from the data folder."""
  with np.load(DATA / f'{name}.npz') as stored:
    arrays = {key: stored[key] for key in stored.files}
  config, shapes, tied = (json.loads(str(arrays.pop(key))) for key in ('config', 'shapes', 'tied'))
  return Reference(arrays, config, {n: tuple(s) for n, s in shapes.items()}, tied)
