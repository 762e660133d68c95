"""Greedy and sampled texts: as without a cache, the same in whatever batch, ended where they should be."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftlib.base.errors import InputError
from ftlib.generation import generator as generators
from ftlib.generation import sampling
from ftlib.generation.generator import Generator, bucket
from ftlib.generation.sampling import Sampling
from ftlib.generation.settings import Settings
from ftlib.peft import prefix, prompt
from tests.generation.conftest import byte_tokenizer

PROMPTS = ['Hello', 'A longer prompt, of more than sixteen tokens', 'x', 'Nine byte']


def ids(result):
  return [[t.tokens.tolist() for t in texts] for texts in result]


@pytest.mark.parametrize('stacked', [False, True])
def test_greedy_is_the_argmax_without_a_cache(generator, uncached, stacked):
  g = generator(max_new_tokens=12, batch_size=3, stacked=stacked)
  prompts = [g.encode(p) for p in PROMPTS]
  for prompt_ids, (text,) in zip(prompts, g.generate(prompts), strict=True):
    row = list(prompt_ids)
    for token in text.tokens:
      assert uncached(row).argmax() == token
      row.append(int(token))
    assert text.ended == ('eos' if row[-1] in g.eos else 'length')
    assert len(text.tokens) == 12 or text.ended == 'eos'


def test_a_row_ends_at_any_of_several_ids(generator, tiny_decoder, tokenizer):
  g = generator(max_new_tokens=16)
  prompts = [g.encode(p) for p in PROMPTS]
  plain = [t.tokens.tolist() for (t,) in g.generate(prompts)]
  eos = plain[0][3], plain[1][5]
  settings = Settings(max_new_tokens=16, eos=eos[:1])
  ended = Generator(*tiny_decoder, tokenizer, settings, configs=[{'eos_token_id': [eos[1]]}])
  for before, (text,) in zip(plain, ended.generate(prompts), strict=True):
    at = min(before.index(e) if e in before else 99 for e in (*eos, *g.eos))
    assert text.tokens.tolist() == before[: at + 1]
    assert text.ended == ('eos' if at < 99 else 'length')
    assert text.text == tokenizer.decode(before[: at + 1], skip_special_tokens=True)


def test_a_draw_is_the_same_in_whatever_batch(generator):
  options = {'max_new_tokens': 10, 'sample': True, 'seed': 5}
  together = generator(**options, batch_size=8)
  prompts = [together.encode(p) for p in PROMPTS]
  whole = ids(together.generate(prompts))
  assert ids(generator(**options, batch_size=1).generate(prompts)) == whole
  alone = generator(**options, batch_size=3)
  assert [ids(alone.generate([p], first=i))[0] for i, p in enumerate(prompts)] == whole
  assert ids(generator(**{**options, 'seed': 6}).generate(prompts)) != whole
  assert ids(alone.generate(prompts[:1], first=1)) != whole[:1]


def test_samples_of_a_prompt_differ(generator):
  g = generator(max_new_tokens=10, sample=True, num=3, batch_size=2)
  texts = ids(g.generate([g.encode('Hello'), g.encode('You')]))
  assert [len(t) for t in texts] == [3, 3]
  assert len({tuple(t) for row in texts for t in row}) == 6


def test_draws_follow_the_probabilities(generator, uncached):
  g = generator(max_new_tokens=1, sample=True, num=2000, batch_size=2000, top_k=4, temperature=3.0)
  prompt_ids = g.encode('Hello')
  drawn = np.bincount([int(t.tokens[0]) for t in g.generate([prompt_ids])[0]], minlength=259) / 2000
  logits = uncached(prompt_ids) / 3.0
  best = np.argsort(logits)[-4:]
  p = np.zeros(259)
  p[best] = np.exp(logits[best]) / np.exp(logits[best]).sum()
  assert np.abs(drawn - p).max() < 0.05  # four standard deviations


@pytest.mark.parametrize(
  ('values', 'left'),
  [
    ({'top_p': 0.45}, 1),
    ({'top_p': 0.7}, 2),
    ({'top_p': 0.83}, 3),
    ({'top_p': 0.83, 'top_k': 3}, 2),  # 0.8 / 0.95 of what top-k leaves
    ({'min_p': 0.25}, 3),
    ({'min_p': 0.4}, 2),
  ],
)
def test_what_is_left_to_draw_from(values, left):
  logits = jnp.log(jnp.asarray([[0.15, 0.5, 0.05, 0.3]]))
  kept = np.isfinite(sampling.filtered(logits, Sampling(sample=True, **values)))[0]
  assert kept.tolist() == [left > 2, True, left > 3, left > 1]


def test_the_score_of_a_beam_is_its_log_probability_over_its_length(generator, uncached):
  g = generator(max_new_tokens=6, num_beams=3, num=3, length_penalty=2.0, eos=tuple(range(200, 256)))
  prompts, lengths = [g.encode(p) for p in PROMPTS], set()
  for prompt_ids, texts in zip(prompts, g.generate(prompts), strict=True):
    assert [t.score for t in texts] == sorted((t.score for t in texts), reverse=True)
    for text in texts:
      row, total = list(prompt_ids), 0.0
      for token in text.tokens.tolist():
        logits = uncached(row)
        total += logits[token] - np.logaddexp.reduce(logits)
        row.append(token)
      assert text.score == pytest.approx(total / len(text.tokens) ** 2, rel=1e-4)
      lengths.add(len(text.tokens))
  assert len(lengths) > 1


def test_repetition_penalty_holds_for_prompt_and_text(generator, uncached):
  g = generator(max_new_tokens=12, repetition_penalty=3.0)
  prompts = [g.encode(p) for p in PROMPTS]
  for prompt_ids, (text,) in zip(prompts, g.generate(prompts), strict=True):
    row = list(prompt_ids)
    for token in text.tokens:
      logits = uncached(row)
      held = sorted(set(row))
      logits[held] = np.where(logits[held] < 0, logits[held] * 3, logits[held] / 3)
      assert logits.argmax() == token
      row.append(int(token))


def test_the_penalty_makes_a_token_less_likely_whatever_the_sign():
  got = sampling.penalised(jnp.asarray([[2.0, -2.0, 2.0, -2.0]]), jnp.asarray([[True, True, False, False]]), 4.0)
  np.testing.assert_array_equal(got, [[0.5, -8.0, 2.0, -2.0]])


def test_stop_texts_across_tokens(generator, tokenizer):
  plain = generator(max_new_tokens=24)
  prompts = [plain.encode(p) for p in PROMPTS]
  texts = [t.text for (t,) in plain.generate(prompts)]
  stop = texts[0][4:7]
  for (text,), before in zip(generator(max_new_tokens=24, stop=(stop,)).generate(prompts), texts, strict=True):
    cut, there, _ = before.partition(stop)
    assert text.text == cut
    assert (text.ended == 'stop') == bool(there)
    if there:
      decode = lambda n, t=text: tokenizer.decode(t.tokens[:n], skip_special_tokens=True)  # noqa: E731
      assert stop in decode(len(text.tokens))
      assert stop not in decode(len(text.tokens) - 1)


def test_a_special_token_as_stop_text_ends_a_row(generator):
  g = generator(max_new_tokens=8, stop=('<|im_start|>',))
  assert set(g.eos) == {257, 258}


def test_a_stream_gives_whole_characters_and_the_same_text(generator):
  for options in ({'sample': True, 'seed': 1}, {'sample': True, 'seed': 2, 'stop': ('\n', 'e')}, {}):
    g = generator(max_new_tokens=40, **options)
    prompt_ids = g.encode('Hello')
    *pieces, last = g.stream(prompt_ids)
    (whole,) = g.generate([prompt_ids])[0]
    assert ''.join(pieces) == last.text == whole.text
    assert last.tokens.tolist() == whole.tokens.tolist()
    assert last.ended == whole.ended
    assert all(not p.endswith('\ufffd') for p in pieces[:-1])


@pytest.mark.parametrize('module', [prompt, prefix])
def test_virtual_tokens(tiny_decoder, tokenizer, module):
  model, params = tiny_decoder
  method = module.build(module.Config(**{'also': ''} if hasattr(module.Config(), 'also') else {}), model)
  full = _overlaid(method.model.initial(jax.random.key(1)), params)
  g = Generator(method.model, full, tokenizer, Settings(max_new_tokens=6), virtual=method.tokens)

  @jax.jit
  def logits(params, tokens_BL):
    shape = tokens_BL.shape
    inputs = {
      'tokens': tokens_BL,
      'positions': np.arange(shape[1], dtype=np.int32)[None],
      'segments': np.ones(shape, np.int32),
      'rows': np.zeros(1, np.int32),
      'types': np.zeros(shape, np.int32),
    }
    out = method.model.apply(params, inputs)
    return out.unembed(out.hidden)[0, -1]

  for p in PROMPTS[:2]:
    row = g.encode(p)
    (text,) = g.generate([g.encode(p)])[0]
    for token in text.tokens:
      assert int(logits(full, np.asarray([row], np.int32)).argmax()) == token
      row.append(int(token))
  plain = Generator(model, params, tokenizer, Settings(max_new_tokens=6))
  assert ids(plain.generate([g.encode('Hello')])) != ids(g.generate([g.encode('Hello')]))


def _overlaid(under, over):
  return {k: _overlaid(v, over[k]) if k in over and isinstance(v, dict) else over.get(k, v) for k, v in under.items()}


def test_one_compile_for_a_shape(generator):
  g = generator(max_new_tokens=6, batch_size=2)
  prompts = [g.encode('a' * n) for n in (1, 5, 9, 13, 16, 3)]
  g.generate(prompts)
  assert g._start._cache_size() == g._advance._cache_size() == 1
  g.using(g.params).generate([g.encode('b' * 17)] * 2)
  assert g._start._cache_size() == 2


def test_beams_compile_once_for_a_shape(generator):
  g = generator(max_new_tokens=4, batch_size=2, num_beams=2)
  g.generate([g.encode('a' * n) for n in (1, 9, 16)])
  assert g._search._cache_size() == 1
  g.using(g.params).generate([g.encode('b' * 17)])
  assert g._search._cache_size() == 2


def test_buckets():
  sizes = [bucket(n) for n in range(1, 2000)]
  assert sizes == sorted(sizes)
  assert all(n <= b <= max(16, n * 1.5) for n, b in enumerate(sizes, 1))
  assert sorted(set(sizes))[:6] == [16, 24, 32, 48, 64, 96]


def test_compute_dtype_is_that_of_the_cache(tiny_decoder, tokenizer):
  model, params = tiny_decoder
  half = dataclasses.replace(model, compute=jax.numpy.bfloat16)
  cache = half.cache(params, rows=1, slots=4)
  assert {x.dtype for x in jax.tree.leaves(cache.layers)} == {np.dtype('bfloat16')}
  g = Generator(half, params, tokenizer, Settings(max_new_tokens=4))
  assert len(g.generate([g.encode('Hello')])[0][0].tokens) > 0


@pytest.mark.parametrize(
  ('values', 'said'),
  [
    ({'sample': True, 'temperature': 0.0}, '--temperature=0.0: wanted above 0'),
    ({'sample': True, 'temperature': float('nan')}, '--temperature=nan'),
    ({'temperature': 0.5}, '--temperature=0.5 has no effect without sampling'),
    ({'top_k': 5}, '--top_k=5 has no effect'),
    ({'sample': True, 'top_p': 0.0}, '--top_p=0.0: wanted above 0 and at most 1'),
    ({'sample': True, 'top_p': 1.5}, '--top_p=1.5'),
    ({'sample': True, 'min_p': 1.0}, '--min_p=1.0'),
    ({'sample': True, 'top_k': -1}, '--top_k=-1'),
    ({'repetition_penalty': 0.0}, '--repetition_penalty=0.0'),
    ({'num_beams': 0}, '--num_beams=0: wanted 1 or more'),
    ({'max_new_tokens': 0}, '--max_new_tokens=0'),
    ({'num_beams': 2, 'sample': True}, 'beams are searched, not drawn'),
    ({'num_beams': 2, 'stop': ('x',)}, 'beams end at tokens'),
    ({'num_beams': 2, 'num': 3}, 'at most 2'),
    ({'num': 3}, '--num=3: without sampling'),
    ({'length_penalty': 0.5}, '--length_penalty=0.5 is of beam search'),
    ({'num_beams': 2, 'early_stopping': 'always'}, "early_stopping='always'"),
    ({'stop': ('',)}, 'empty text'),
    ({'eos': (999,)}, '--eos=999: the model has the 259 tokens'),
    ({'seed': -1}, '--seed=-1'),
  ],
)
def test_settings_that_are_wrong(generator, values, said):
  with pytest.raises(InputError, match=said.replace('(', r'\(')):
    generator(**values)


def test_prompts_that_are_wrong(generator, tiny_decoder, tokenizer):
  g = generator(max_new_tokens=90)
  with pytest.raises(InputError, match='prompt 1 is empty'):
    g.generate([[1], []])
  assert len(g.generate([[1] * 6])[0][0].tokens) > 0
  with pytest.raises(InputError, match='prompt 0: 7 tokens and --max_new_tokens=90 are more than the 96 tokens'):
    g.generate([[1] * 7])
  with pytest.raises(InputError, match='no end-of-sequence token'):
    Generator(*tiny_decoder, byte_tokenizer(eos_token=None), Settings())
  assert Generator(*tiny_decoder, byte_tokenizer(eos_token=None), Settings(max_new_tokens=8, eos=(4,))).eos == (4,)


def test_names_of_special_tokens_in_a_prompt_are_text(generator):
  g = generator(max_new_tokens=8)
  assert max(g.encode('<|im_end|>')) < 256
  assert generators.PIECE > 1
