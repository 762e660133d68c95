"""The `config.json` of well-known models by their names on the Hugging Face hub, as far as it decides what they do.

The family's `from_hf` reads `PRESETS[name]`, so that shapes, memory and speed of a model are known without its weights.
"""

from __future__ import annotations

from typing import Any

Values = dict[str, Any]


def _llama(embed: int, mlp: int, layers: int, heads: int, groups: int, **more: Any) -> Values:
  """The keys that Llama and its descendants share."""
  return {
    'model_type': 'llama',
    'hidden_size': embed,
    'intermediate_size': mlp,
    'num_hidden_layers': layers,
    'num_attention_heads': heads,
    'num_key_value_heads': groups,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-5,
    'tie_word_embeddings': False,
    **more,
  }


def _scaled(factor: float) -> Values:
  """What Llama 3.1 and 3.2 add to Llama 3."""
  rope = {'rope_type': 'llama3', 'factor': factor, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0}
  return {'max_position_embeddings': 131072, 'rope_scaling': {**rope, 'original_max_position_embeddings': 8192}}


def _smol(*sizes: int, theta: float = 1e5) -> Values:
  more = {'vocab_size': 49152, 'max_position_embeddings': 8192, 'rope_theta': theta, 'tie_word_embeddings': True}
  return _llama(*sizes, **more)


def _llama2(*sizes: int) -> Values:
  return _llama(*sizes, vocab_size=32000, max_position_embeddings=4096)


def _llama3(*sizes: int, **more: Any) -> Values:
  return _llama(*sizes, **{'vocab_size': 128256, 'max_position_embeddings': 8192, 'rope_theta': 5e5, **more})


def _qwen(kind: str, *sizes: int, **more: Any) -> Values:
  same = {'vocab_size': 151936, 'rope_theta': 1e6, 'rms_norm_eps': 1e-6, 'model_type': kind}
  return _llama(*sizes, **{**same, 'max_position_embeddings': 32768 if kind == 'qwen2' else 40960, **more})


def _qwen3(*sizes: int, tied: bool = False) -> Values:
  return _qwen('qwen3', *sizes, head_dim=128, tie_word_embeddings=tied)


def _gemma(*sizes: int, **more: Any) -> Values:
  """Gemma 2, and what Gemma 3 has in common with it."""
  same = {
    'model_type': 'gemma2',
    'vocab_size': 256000,
    'head_dim': 256,
    'hidden_activation': 'gelu_pytorch_tanh',
    'rms_norm_eps': 1e-6,
    'query_pre_attn_scalar': 256,
    'sliding_window': 4096,
    'max_position_embeddings': 8192,
    'rope_theta': 1e4,
    'tie_word_embeddings': True,
  }
  caps = {'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0}
  values = _llama(*sizes, **{**same, **(caps if more.get('model_type') is None else {}), **more})
  return {k: v for k, v in values.items() if k != 'hidden_act'}


def _gpt2(embed: int, layers: int, heads: int) -> Values:
  return {
    'model_type': 'gpt2',
    'vocab_size': 50257,
    'n_embd': embed,
    'n_layer': layers,
    'n_head': heads,
    'n_positions': 1024,
    'activation_function': 'gelu_new',
    'layer_norm_epsilon': 1e-5,
  }


def _bert(kind: str, vocab: int, *, large: bool = False, **more: Any) -> Values:
  return {
    'model_type': kind,
    'vocab_size': vocab,
    'hidden_size': 1024 if large else 768,
    'num_hidden_layers': 24 if large else 12,
    'num_attention_heads': 16 if large else 12,
    'intermediate_size': 4096 if large else 3072,
    'max_position_embeddings': 512,
    'type_vocab_size': 2,
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-12,
    **more,
  }


def _roberta(kind: str, vocab: int, *, large: bool = False) -> Values:
  more = {'max_position_embeddings': 514, 'type_vocab_size': 1, 'layer_norm_eps': 1e-5, 'pad_token_id': 1}
  return _bert(kind, vocab, large=large, **more)


def _electra(embedding: int, embed: int, layers: int, heads: int) -> Values:
  more = {'embedding_size': embedding, 'hidden_size': embed, 'num_hidden_layers': layers, 'num_attention_heads': heads}
  return _bert('electra', 30522, **more, intermediate_size=4 * embed)


def _albert(embed: int, layers: int, heads: int) -> Values:
  more = {'hidden_size': embed, 'num_hidden_layers': layers, 'num_attention_heads': heads, 'embedding_size': 128}
  return _bert('albert', 30000, **more, intermediate_size=4 * embed, **_ALBERT)


def _xlnet(embed: int, layers: int, heads: int) -> Values:
  sizes = {'d_model': embed, 'n_layer': layers, 'n_head': heads, 'd_inner': 4 * embed}
  return {'model_type': 'xlnet', 'vocab_size': 32000, **sizes, 'ff_activation': 'gelu', 'layer_norm_eps': 1e-12}


def _deberta(embed: int, layers: int, heads: int, vocab: int = 128100, **more: Any) -> Values:
  sizes = {'hidden_size': embed, 'num_hidden_layers': layers, 'num_attention_heads': heads}
  return _bert('deberta-v2', vocab, **sizes, intermediate_size=4 * embed, **_DISTANCES, **more)


def _modernbert(embed: int, mlp: int, layers: int, heads: int) -> Values:
  sizes = {'hidden_size': embed, 'intermediate_size': mlp, 'num_hidden_layers': layers, 'num_attention_heads': heads}
  return {'model_type': 'modernbert', 'vocab_size': 50368, **sizes, 'classifier_pooling': 'mean'}


_DISTANCES = {
  'type_vocab_size': 0,
  'layer_norm_eps': 1e-7,
  'relative_attention': True,
  'position_biased_input': False,
  'position_buckets': 256,
  'norm_rel_ebd': 'layer_norm',
  'share_att_key': True,
  'pos_att_type': 'p2c|c2p',
}
_CONVOLVED = {'conv_kernel_size': 3, 'conv_act': 'gelu'}
_ALBERT = {
  'hidden_act': 'gelu_new',
  'hidden_dropout_prob': 0,
  'attention_probs_dropout_prob': 0,
  'num_hidden_groups': 1,
  'inner_group_num': 1,
}
_DISTILBERT = {
  'model_type': 'distilbert',
  'vocab_size': 30522,
  'dim': 768,
  'n_layers': 6,
  'n_heads': 12,
  'hidden_dim': 3072,
  'max_position_embeddings': 512,
  'activation': 'gelu',
}
_LONG = {'max_position_embeddings': 131072}
_GEMMA3 = {
  'model_type': 'gemma3_text',
  'vocab_size': 262144,
  'sliding_window': 512,
  'sliding_window_pattern': 6,
  'rope_theta': 1e6,
  'rope_local_base_freq': 1e4,
  'max_position_embeddings': 32768,
}

# embed, mlp, layers, heads, key-value heads
PRESETS: dict[str, Values] = {
  'HuggingFaceTB/SmolLM2-135M': _smol(576, 1536, 30, 9, 3),
  'HuggingFaceTB/SmolLM2-360M': _smol(960, 2560, 32, 15, 5),
  'HuggingFaceTB/SmolLM2-1.7B': _smol(2048, 8192, 24, 32, 32, theta=1.3e5),
  'meta-llama/Llama-2-7b-hf': _llama2(4096, 11008, 32, 32, 32),
  'meta-llama/Llama-2-13b-hf': _llama2(5120, 13824, 40, 40, 40),
  'meta-llama/Llama-2-70b-hf': _llama2(8192, 28672, 80, 64, 8),
  'meta-llama/Meta-Llama-3-8B': _llama3(4096, 14336, 32, 32, 8),
  'meta-llama/Meta-Llama-3-70B': _llama3(8192, 28672, 80, 64, 8),
  'meta-llama/Llama-3.1-8B': _llama3(4096, 14336, 32, 32, 8, **_scaled(8.0)),
  'meta-llama/Llama-3.1-70B': _llama3(8192, 28672, 80, 64, 8, **_scaled(8.0)),
  'meta-llama/Llama-3.2-1B': _llama3(2048, 8192, 16, 32, 8, **_scaled(32.0), tie_word_embeddings=True),
  'meta-llama/Llama-3.2-3B': _llama3(3072, 8192, 28, 24, 8, **_scaled(32.0), tie_word_embeddings=True),
  'mistralai/Mistral-7B-v0.1': _llama(
    *(4096, 14336, 32, 32, 8),
    model_type='mistral',
    vocab_size=32000,
    max_position_embeddings=32768,
    sliding_window=4096,
    rope_theta=1e4,
  ),
  'Qwen/Qwen2.5-0.5B': _qwen('qwen2', 896, 4864, 24, 14, 2, tie_word_embeddings=True),
  'Qwen/Qwen2.5-1.5B': _qwen('qwen2', 1536, 8960, 28, 12, 2, tie_word_embeddings=True, **_LONG),
  'Qwen/Qwen2.5-3B': _qwen('qwen2', 2048, 11008, 36, 16, 2, tie_word_embeddings=True),
  'Qwen/Qwen2.5-7B': _qwen('qwen2', 3584, 18944, 28, 28, 4, vocab_size=152064, **_LONG),
  'Qwen/Qwen2.5-14B': _qwen('qwen2', 5120, 13824, 48, 40, 8, vocab_size=152064, rms_norm_eps=1e-5, **_LONG),
  'Qwen/Qwen2.5-32B': _qwen('qwen2', 5120, 27648, 64, 40, 8, vocab_size=152064, rms_norm_eps=1e-5, **_LONG),
  'Qwen/Qwen2.5-72B': _qwen('qwen2', 8192, 29568, 80, 64, 8, vocab_size=152064, rms_norm_eps=1e-5, **_LONG),
  'Qwen/Qwen3-0.6B': _qwen3(1024, 3072, 28, 16, 8, tied=True),
  'Qwen/Qwen3-1.7B': _qwen3(2048, 6144, 28, 16, 8, tied=True),
  'Qwen/Qwen3-4B': _qwen3(2560, 9728, 36, 32, 8, tied=True),
  'Qwen/Qwen3-8B': _qwen3(4096, 12288, 36, 32, 8),
  'Qwen/Qwen3-14B': _qwen3(5120, 17408, 40, 40, 8),
  'Qwen/Qwen3-32B': _qwen3(5120, 25600, 64, 64, 8),
  'google/gemma-2-2b': _gemma(2304, 9216, 26, 8, 4),
  'google/gemma-2-9b': _gemma(3584, 14336, 42, 16, 8),
  'google/gemma-2-27b': _gemma(4608, 36864, 46, 32, 16, head_dim=128, query_pre_attn_scalar=144),
  'google/gemma-3-1b-pt': _gemma(1152, 6912, 26, 4, 1, **_GEMMA3),
  'openai-community/gpt2': _gpt2(768, 12, 12),
  'openai-community/gpt2-medium': _gpt2(1024, 24, 16),
  'openai-community/gpt2-large': _gpt2(1280, 36, 20),
  'openai-community/gpt2-xl': _gpt2(1600, 48, 25),
  'microsoft/DialoGPT-small': _gpt2(768, 12, 12),
  'microsoft/DialoGPT-medium': _gpt2(1024, 24, 16),
  'microsoft/DialoGPT-large': _gpt2(1280, 36, 20),
  'google-bert/bert-base-uncased': _bert('bert', 30522),
  'google-bert/bert-base-cased': _bert('bert', 28996),
  'google-bert/bert-large-uncased': _bert('bert', 30522, large=True),
  'google-bert/bert-base-chinese': _bert('bert', 21128),
  'FacebookAI/roberta-base': _roberta('roberta', 50265),
  'FacebookAI/roberta-large': _roberta('roberta', 50265, large=True),
  'FacebookAI/xlm-roberta-base': _roberta('xlm-roberta', 250002),
  'distilbert/distilbert-base-uncased': _DISTILBERT,
  'google/electra-small-discriminator': _electra(128, 256, 12, 4),
  'google/electra-base-discriminator': _electra(768, 768, 12, 12),
  'google/electra-large-discriminator': _electra(1024, 1024, 24, 16),
  'albert/albert-base-v2': _albert(768, 12, 12),
  'albert/albert-large-v2': _albert(1024, 24, 16),
  'albert/albert-xlarge-v2': _albert(2048, 24, 16),
  'albert/albert-xxlarge-v2': _albert(4096, 12, 64),
  'xlnet/xlnet-base-cased': _xlnet(768, 12, 12),
  'xlnet/xlnet-large-cased': _xlnet(1024, 24, 16),
  'microsoft/deberta-v2-xlarge': _deberta(1536, 24, 24, **_CONVOLVED),
  'microsoft/deberta-v2-xxlarge': _deberta(1536, 48, 24, **_CONVOLVED),
  'microsoft/deberta-v3-xsmall': _deberta(384, 12, 6),
  'microsoft/deberta-v3-small': _deberta(768, 6, 12),
  'microsoft/deberta-v3-base': _deberta(768, 12, 12),
  'microsoft/deberta-v3-large': _deberta(1024, 24, 16),
  'microsoft/mdeberta-v3-base': _deberta(768, 12, 12, 251000),
  'answerdotai/ModernBERT-base': _modernbert(768, 1152, 22, 12),
  'answerdotai/ModernBERT-large': _modernbert(1024, 2624, 28, 16),
}
