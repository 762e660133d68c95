"""Texts of a decoder: prompts of whatever length in, batches of few shapes through the compiled loops, texts out.

    generator = Generator(model, params, tokenizer, Settings(max_new_tokens=64))
    generator.generate([generator.encode('Once upon a time')])

The length of prompts is rounded up to one of few (`bucket`), so that as many shapes are compiled as lengths are needed.

Shape letters: B rows, P slots of prompts.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError
from ftlib.base.types import Params
from ftlib.generation import settings as checks
from ftlib.generation import stopping
from ftlib.generation.beam import Beams
from ftlib.generation.decode import Decoder
from ftlib.generation.sampling import Sampling
from ftlib.generation.settings import Settings
from ftlib.models.model import Model

PIECE = 8  # tokens between looks at the text, where there are stop texts
_STREAMED = 2  # the same where the text is shown while it grows


@dataclasses.dataclass(frozen=True)
class Text:
  """What was made of a prompt. `tokens` int32 [N] with the one that ended it; `ended`: 'eos', 'stop' or 'length'.
  `score`: of a beam, its mean log-probability."""

  text: str
  tokens: np.ndarray
  ended: str
  score: float | None = None


class Generator:
  """`model` has the head 'lm'; `params` are its parameters where they are to be computed with, stacked or not.

  `configs` are `generation_config.json` and `config.json`, of which the ids that end a row are taken; `virtual`: tokens
  that the method puts before a row. Raises `InputError` for settings that are wrong.
  """

  def __init__(
    self,
    model: Model,
    params: Params,
    tokenizer: Any,
    settings: Settings,
    *,
    configs: Sequence[Mapping[str, Any]] = (),
    virtual: int = 0,
    field: str = '--',
  ):
    checks.check(settings, field=field)
    self.params, self.tokenizer, self.settings, self._field = params, tokenizer, settings, field
    special = {t: tokenizer.convert_tokens_to_ids(t) for t in settings.stop if t in tokenizer.all_special_tokens}
    self.eos = stopping.eos_ids(tokenizer, *configs, also=(*settings.eos, *special.values()))
    if odd := [i for i in self.eos if not 0 <= i < model.config.vocab]:
      whose = f'{field}eos' if odd[0] in settings.eos else 'eos_token_id of the tokenizer or of the files beside it'
      raise InputError(f'{whose}={odd[0]}: the model has the {model.config.vocab} tokens from 0')
    self._positions, self._virtual = model.config.max_length, virtual
    if self.room < 1:
      behind = f' behind {virtual} virtual ones' if virtual else ''
      raise InputError(
        f'{field}max_new_tokens={settings.max_new_tokens} leaves no room for a prompt: the model has positions for '
        f'{self._positions} tokens{behind}; lower it'
      )
    fill = self.eos[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    common = {'model': model, 'new': settings.max_new_tokens, 'eos': self.eos, 'virtual': virtual, 'fill': fill}
    if settings.num_beams > 1:
      search = Beams(
        beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
        penalty=settings.repetition_penalty,
        **common,
      )
      self._search = jax.jit(search.search)
    else:
      plain = Sampling(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(Sampling)})
      decoder = Decoder(sampling=plain, **common)
      self._start, self._advance = jax.jit(decoder.start), jax.jit(decoder.advance, donate_argnums=1)

  @property
  def room(self) -> int:
    """The most tokens of a prompt."""
    return self._positions - self._virtual - self.settings.max_new_tokens

  def using(self, params: Params) -> Generator:
    """The same with other parameters of the same shapes; what is compiled is shared."""
    other = copy.copy(self)
    other.params = params
    return other

  def encode(self, text: str) -> list[int]:
    """The tokens of a prompt, begun as the tokenizer begins a text and not ended. Names of special tokens are text."""
    ids = list(self.tokenizer(text, return_attention_mask=False, split_special_tokens=True)['input_ids'])
    return ids[:-1] if len(ids) > 1 and ids[-1] in self.eos else ids

  def generate(self, prompts: Sequence[Sequence[int]], *, first: int = 0) -> list[list[Text]]:
    """`settings.num` texts of each prompt (token ids). Prompt i draws as number `first + i`, whatever the others are.

    Raises `InputError` for a prompt that is empty, or too long for the model.
    """
    for i, prompt in enumerate(prompts):
      self.check(prompt, where=f'prompt {first + i}')
    s = self.settings
    times = s.num if s.num_beams == 1 else 1
    work = [(first + i) * times + j for i in range(len(prompts)) for j in range(times)]
    order = sorted(range(len(work)), key=lambda w: len(prompts[w // times]))
    size = min(s.batch_size, len(work))
    out: list[list[Text]] = [[] for _ in work]
    for at in range(0, len(order), size):
      part = order[at : at + size]
      batch = self._batch([prompts[w // times] for w in part], [work[w] for w in part], size)
      for w, texts in zip(part, self._beams(batch) if s.num_beams > 1 else self._decoded(batch), strict=False):
        out[w] = texts
    return [[t for j in range(times) for t in out[i * times + j]] for i in range(len(prompts))]

  def stream(self, prompt: Sequence[int], *, number: int = 0) -> Iterator[str | Text]:
    """The text of a prompt in pieces of whole characters while it grows, and at last the `Text`."""
    if self.settings.num_beams > 1 or self.settings.num > 1:
      raise InputError(f'{self._field}num_beams and {self._field}num: one text alone can be shown while it grows')
    self.check(prompt, where='the prompt')
    shown, stops = '', self.settings.stop
    for texts in self._pieces(self._batch([prompt], [number], 1), _STREAMED):
      text = texts[0].text if texts[0].ended else stopping.ready(texts[0].text, stops)
      if text[len(shown) :]:
        yield text[len(shown) :]
        shown = text
    yield texts[0]

  def check(self, prompt: Sequence[int], *, where: str) -> None:
    """Raises `InputError` for a prompt that is empty, or leaves too few of the model's positions."""
    new = self.settings.max_new_tokens
    if not len(prompt):
      raise InputError(f'{where} is empty: it has no token that a model could go on from; give a text')
    if len(prompt) > self.room:
      virtual = f', {self._virtual} virtual ones' if self._virtual else ''
      raise InputError(
        f'{where}: {len(prompt)} tokens{virtual} and {self._field}max_new_tokens={new} are more than the '
        f'{self._positions} tokens that the model has positions for; shorten the prompt, or lower '
        f'{self._field}max_new_tokens'
      )

  def _batch(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int], size: int) -> tuple[np.ndarray, ...]:
    """(tokens [B, P], lengths [B], row numbers [B]); rows beyond the prompts have length 0."""
    tokens_BP = np.zeros((size, min(bucket(max(map(len, prompts))), self.room)), np.int32)
    length_B, rows_B = np.zeros(size, np.int32), np.zeros(size, np.int32)
    for i, (prompt, number) in enumerate(zip(prompts, numbers, strict=True)):
      tokens_BP[i, : len(prompt)], length_B[i], rows_B[i] = prompt, len(prompt), number
    return tokens_BP, length_B, rows_B

  def _decoded(self, batch: tuple[np.ndarray, ...]) -> list[list[Text]]:
    *_, texts = self._pieces(batch, PIECE if self.settings.stop else self.settings.max_new_tokens)
    return [[t] for t in texts]

  def _pieces(self, batch: tuple[np.ndarray, ...], piece: int) -> Iterator[list[Text]]:
    """The rows' texts after every so many tokens, `ended` '' for those that go on; the last are the whole ones."""
    new, stops = self.settings.max_new_tokens, self.settings.stop
    state = self._start(self.params, *batch, jax.random.key(self.settings.seed))
    real = [i for i, n in enumerate(batch[1]) if n]
    before, cuts = dict.fromkeys(real, 0), {}
    while True:
      tokens, counts, done, step = jax.device_get((state.tokens_BN, state.count_B, state.done_B, state.step))
      texts = []
      for i in real:
        ids = tokens[i, : cuts.get(i, counts[i])]
        text = stopping.decoded(self.tokenizer, ids)
        at = stopping.found(text, stops)
        if at >= 0 and i not in cuts:
          cuts[i] = stopping.tokens_until(ids, stops, lambda x: stopping.decoded(self.tokenizer, x), before[i])
          ids = ids[: cuts[i]]
        before[i] = len(ids)
        ended = 'stop' if i in cuts else '' if not done[i] else 'eos' if int(ids[-1]) in self.eos else 'length'
        texts.append(Text(text[:at] if at >= 0 else text, ids, ended))
      yield texts
      if all(t.ended for t in texts):
        return
      if cuts:
        done = done | np.isin(np.arange(len(done)), list(cuts))
        state = dataclasses.replace(state, done_B=jnp.asarray(done))
      state = self._advance(self.params, state, jnp.int32(min(step + piece, new)))

  def _beams(self, batch: tuple[np.ndarray, ...]) -> list[list[Text]]:
    found = jax.device_get(self._search(self.params, *batch[:2]))
    out = []
    for i in range(int((batch[1] > 0).sum())):
      texts = []
      for k in range(self.settings.num):
        ids = found.tokens_BKN[i, k, : found.length_BK[i, k]]
        ended = 'eos' if len(ids) and int(ids[-1]) in self.eos else 'length'
        texts.append(Text(stopping.decoded(self.tokenizer, ids), ids, ended, float(found.score_BK[i, k])))
      out.append(texts)
    return out


def bucket(length: int) -> int:
  """A length rounded up to 16, 24, 32, 48, 64, 96, ...: at most half as much again."""
  size = 16
  while size < length:
    size += size // 2 if size & (size - 1) == 0 else size // 3
  return size
