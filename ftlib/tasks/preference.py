"""Pairs of answers to a prompt, of which people prefer one: what DPO and ORPO learn from.

A row has a prompt, a chosen and a rejected answer: texts, or (`form='messages'`) lists of turns. The two answers stand
in one row of a batch, each behind the prompt, as its documents 1 and 2: batches keep their shapes and their order, a
pair is never torn apart, and documents of a row do not see each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ftlib.base.errors import InputError, did_you_mean, listing
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Head, Outputs
from ftlib.data import batches, chat, tokens
from ftlib.data.batches import Examples
from ftlib.data.chat import Message
from ftlib.data.labels import Columns
from ftlib.data.literal import literal
from ftlib.objectives.vocabulary import token_scores
from ftlib.tasks.sft import TEMPLATES, Sft
from ftlib.tasks.sft import Config as SftConfig

OBJECTIVE = 'preference'
HEADLESS = True
_DROPPED = 0.05  # share of a split's pairs; more that cannot be used mean that something is wrong with the data

Tokens = tuple[list[int], list[bool]]  # ids, and which of them are supervised


@dataclasses.dataclass(frozen=True)
class Config:
  """`form`: what the rows are. 'prompt': texts in the columns `prompt`, `chosen` and `rejected`. 'messages': the latter
  two are lists of turns: the assistant's alone, behind the turns (or the text of a user) in `prompt`, or whole
  conversations, for which `prompt` may be ''.

  `template`: of texts, 'chat' (a conversation of one question) or one of `ftlib/tasks/sft.py: TEMPLATES`.
  `chat_template`, `date`: as in sft. `train.max_length` is that of prompt and answer together; of longer ones the
  prompt is cut from the left, the same for both, then the answers from the right.
  """

  form: str = setting('prompt', choices=('prompt', 'messages'))
  prompt: str = 'prompt'
  chosen: str = 'chosen'
  rejected: str = 'rejected'
  template: str = setting('chat', choices=('chat', *TEMPLATES))
  chat_template: str = ''
  date: str = chat.DATE

  def __post_init__(self):
    if self.form == 'prompt' and not self.prompt:
      raise ValueError("prompt='' is for form='messages', whose answers may be whole conversations")
    chat.check_date(self.date)


def columns(config: Config) -> Columns:
  """What is read of the data; of turns, prompts and rejected answers are looked at by `examples`."""
  if config.form == 'messages':
    return Columns([], config.chosen, 'messages', ('chosen',))
  return Columns([config.prompt, config.chosen, config.rejected], fields=('prompt', 'chosen', 'rejected', 'label'))


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Preference:
  """The task; there are no labels, and nothing of the rows is looked at."""
  return Preference(config)


@dataclasses.dataclass(frozen=True)
class Preference:
  """The task; see `ftlib/tasks/task.py`."""

  config: Config
  labels: list = dataclasses.field(default_factory=list)
  counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
  metric: str = 'accuracy'
  head: Head = dataclasses.field(default_factory=lambda: Head('lm'))

  @property
  def about(self) -> str:
    return 'which of two answers is preferred'

  @property
  def metric_names(self) -> dict[str, bool]:
    return {'accuracy': True}

  @property
  def as_sft(self) -> Sft:
    """The task of giving the chosen answers: how a model is asked that was trained on pairs."""
    c = self.config
    same = {f: getattr(c, f) for f in ('form', 'template', 'chat_template', 'date')}
    return Sft(SftConfig(**same, prompt=c.prompt or 'prompt', completion=c.chosen, messages=c.chosen))

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    """Two documents a pair: 2i is the chosen answer of pair i behind its prompt, 2i + 1 the rejected one; `rows` has
    the data row of each pair. Raises `InputError` for rows that are no pairs, and where over 5 % teach nothing."""
    where = getattr(rows, 'where', lambda i: f'row {i + 1}')
    pairs = [self._pair(row, lambda i=i: where(i)) for i, row in enumerate(rows)]
    dropped = {i: 'chosen and rejected are the same' for i, (_, a, b) in enumerate(pairs) if a.strip() == b.strip()}
    usable = [i for i in range(len(pairs)) if i not in dropped]
    documents = [(pairs[i][0], answer) for i in usable for answer in pairs[i][1:]]
    front, end = tokens.frame(tokenizer)
    if self._chats:
      template = chat.open_chat(tokenizer, self.config.chat_template, train_on='last', date=self.config.date)
      whole = [[*turns, {'role': 'assistant', 'content': answer}] for turns, answer in documents]
      encoded = template.encode(whole, lambda k: where(usable[k // 2]))
    else:
      encoded = _plain(documents, tokenizer, front, end)
    kept, two, truncated = [], [], 0
    for k, i in enumerate(usable):
      pair = encoded[2 * k : 2 * k + 2]
      chosen, rejected = _cut(pair, front, limit)
      if not (any(chosen[1][1:]) and any(rejected[1][1:])):
        dropped[i] = f'an answer has no token within {limit}'
      elif chosen == rejected:
        dropped[i] = f'chosen and rejected are the same within {limit} tokens'
      else:
        kept.append(i)
        two += [chosen, rejected]
        truncated += max(len(ids) for ids, _ in pair) > limit
    notes = _notes(getattr(rows, 'name', 'rows'), len(rows), dropped, where)
    notes = [*template.notes, *notes] if self._chats else notes
    found = batches.language([ids for ids, _ in two], [own for _, own in two], truncated=truncated, notes=notes)
    return dataclasses.replace(
      found,
      rows=np.array(kept, np.int64),
      packs=[np.array([2 * j, 2 * j + 1]) for j in range(len(kept))],
      extra={'pairs': np.ones(len(kept), np.float32)},
    )

  def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    """Log-probabilities of the answers [B], and the `margin` by which the chosen one is ahead: in what it has gained on
    the reference, or, without one, in the mean over its tokens."""
    nll_BL, _ = token_scores(outputs.unembed, outputs.hidden, batch['targets'])
    own_BL2 = (batch['segments'][..., None] == np.arange(1, 3)) * batch['weights'][..., None]
    logp_B2, tokens_B2 = -(nll_BL[..., None] * own_BL2).sum(1), own_BL2.sum(1)
    ahead_B2 = logp_B2 - batch['reference'] if 'reference' in batch else logp_B2 / tokens_B2.clip(1)
    return {'chosen': logp_B2[:, 0], 'rejected': logp_B2[:, 1], 'margin': ahead_B2[:, 0] - ahead_B2[:, 1]}

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The share of pairs in which the chosen answer is ahead."""
    return {'accuracy': float((predictions['margin'] > 0).mean())}

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    for i, row in enumerate(rows):
      prompt, chosen, rejected = self._pair(row, lambda i=i: f'row {i + 1}')
      chosen_logp, rejected_logp, margin = (
        round(float(predictions[n][i]), 6) for n in ('chosen', 'rejected', 'margin')
      )
      yield {
        'id': row.get('id', i),
        'label': 'chosen',
        'prediction': 'chosen' if margin > 0 else 'rejected',
        'margin': margin,
        'chosen_logp': chosen_logp,
        'rejected_logp': rejected_logp,
        'text': prompt if isinstance(prompt, str) else '\n'.join(turn['content'] for turn in prompt),
        'chosen': chosen,
        'rejected': rejected,
      }

  @property
  def _chats(self) -> bool:
    return self.config.form == 'messages' or self.config.template == 'chat'

  def _pair(self, row: Mapping[str, Any], where: Callable[[], str]) -> tuple[Any, str, str]:
    """(turns before the answer, or text where there is no template for turns; chosen answer; rejected answer)."""
    c = self.config
    if c.form == 'prompt':
      prompt, turn = row[c.prompt], {'role': 'user', 'content': row[c.prompt]}
      before = [turn] if self._chats else TEMPLATES[c.template][1].replace('{prompt}', prompt)
      return before, row[c.chosen], row[c.rejected]
    if not row.get(c.rejected):
      missing = f'is missing{did_you_mean(c.rejected, [*row])}; set --config.task.rejected='
      raise InputError(f'{where()}: "{c.rejected}" {"is empty" if c.rejected in row else missing}')
    try:
      chosen, rejected = (_conversation(row.get(c.prompt), row[name]) for name in (c.chosen, c.rejected))
    except ValueError as e:
      raise InputError(f'{where()}: {e}') from e
    if chosen[:-1] != rejected[:-1]:
      raise InputError(
        f'{where()}: "{c.chosen}" and "{c.rejected}" differ before their last turn: they answer different prompts'
      )
    return chosen[:-1], chosen[-1]['content'], rejected[-1]['content']


def _conversation(prompt: Any, answer: Any) -> list[Message]:
  """The turns up to and with an answer. Raises `ValueError`."""
  turns = chat.messages(answer)
  if turns[0]['role'] != 'assistant':
    return turns  # a whole conversation, which begins with the prompt
  if not prompt:
    raise ValueError('the answer has no prompt in front; name its column by --config.task.prompt=')
  before = [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else [*prompt]
  return chat.messages([*before, *turns])


def _plain(documents: Sequence[tuple[str, str]], tokenizer: Any, front: list[int], end: int) -> list[Tokens]:
  """Prompt and answer apart, as when the model is asked, and the end of the text."""
  own = literal(tokenizer)
  prompts, answers = (own.text([d[k] for d in documents]) for k in (0, 1))
  return [
    ([*front, *p.ids, *a.ids, end], [False] * (len(front) + len(p.ids)) + [True] * (len(a.ids) + 1))
    for p, a in zip(prompts, answers, strict=True)
  ]


def _cut(pair: Sequence[Tokens], front: list[int], limit: int) -> list[Tokens]:
  """Both answers with their prompt in at most `limit` tokens: the prompt loses the same for both, from the left."""
  excess = max(len(ids) for ids, _ in pair) - limit
  if excess <= 0:
    return [*pair]
  keep = len(front) if all(ids[: len(front)] == front for ids, _ in pair) else 0
  prompt = min(own.index(True) if any(own) else 0 for _, own in pair)
  lost = max(0, min(excess, prompt - max(keep, 1)))  # the token before an answer predicts its first one
  return [tuple((x[:keep] + x[keep + lost :])[:limit] for x in both) for both in pair]


def _notes(name: str, count: int, dropped: Mapping[int, str], where: Callable[[int], str]) -> list[str]:
  """What was left out of `count` pairs. Raises `InputError` where that is more than 5 %."""
  if not dropped:
    return []
  lines = [f'{where(i)}: {why}' for i, why in sorted(dropped.items())]
  if len(dropped) > _DROPPED * count:
    raise InputError(
      f'{name}: {len(dropped)} of {count} pairs teach nothing, more than the {_DROPPED:.0%} that are passed over:\n'
      f'{listing(lines, limit=5)}\nMend the data, or raise --config.train.max_length= where answers are cut off.'
    )
  return [f'{name}: {len(dropped)} of {count} pairs were dropped, the first {lines[0]}']
