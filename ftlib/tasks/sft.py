"""Supervised fine-tuning: answers to prompts, instructions or conversations, of which the answers alone are learnt.

Rows have one of three forms. `messages`: a conversation, through the tokenizer's chat template. `prompt`: a prompt and
its completion. `instruction`: an instruction, an input that may be empty, and an output. The last two go through a
template by its name: 'chat' makes them a conversation of one question and its answer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ftlib.base.errors import InputError, listing
from ftlib.base.settings import setting
from ftlib.data import chat, tokens
from ftlib.data.batches import Examples, language
from ftlib.data.chat import Message
from ftlib.data.labels import Columns
from ftlib.data.literal import literal
from ftlib.tasks.lm import HEADLESS as HEADLESS
from ftlib.tasks.lm import Language

OBJECTIVE = 'language'
TEMPLATES = {  # name -> (prompt with an input, prompt without); the answer and the end of the text follow
  'plain': ('{prompt}\n{input}\n', '{prompt}\n'),
  'bare': ('{prompt}{input}', '{prompt}'),
  'alpaca': (  # Taori et al. 2023
    'Below is an instruction that describes a task, paired with an input that provides further context. Write a '
    'response that appropriately completes the request.\n\n'
    '### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response:\n',
    'Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n'
    '### Instruction:\n{prompt}\n\n### Response:\n',
  ),
  'question': ('{prompt}\n\n{input}\nAnswer: ', 'Question: {prompt}\nAnswer: '),
}
_BARREN = 0.05  # share of rows without a supervised token above which a run stops


@dataclasses.dataclass(frozen=True)
class Config:
  """`form`: what the rows are; then the columns of each form (`input` may be '': there is none; `references`: the one
  whose first text stands in for the answer in splits without such a column, '' for none).

  `template`: for prompts and instructions, 'chat' or one of `TEMPLATES`. `wrap`: what is asked, with {prompt} in it.
  `system`: what a conversation without a system turn begins with. `chat_template`: '' for the tokenizer's own, one of
  `ftlib/data/chat.py: TEMPLATES`, or a file. `date`: what a chat template that prints the date is told it is, whenever
  the run is trained, judged or asked. `train_on`: the assistant's turns, the last of these, or every token.
  `truncate`: where a row that is too long loses tokens, or whether it is dropped. `samples`: how many rows of
  validation are answered before and after training, for the report.
  """

  form: str = setting('messages', choices=('messages', 'prompt', 'instruction'))
  messages: str = 'messages'
  prompt: str = 'prompt'
  completion: str = 'completion'
  instruction: str = 'instruction'
  input: str = 'input'
  output: str = 'output'
  references: str = ''
  template: str = setting('plain', choices=('chat', *TEMPLATES))
  wrap: str = '{prompt}'
  system: str = ''
  chat_template: str = ''
  date: str = chat.DATE
  train_on: str = setting('assistant', choices=chat.TRAIN_ON)
  truncate: str = setting('left', choices=('left', 'right', 'drop'))
  samples: int = setting(4, low=0)

  def __post_init__(self):
    if '{prompt}' not in self.wrap:
      raise ValueError(f'wrap={self.wrap!r} has no place {{prompt}} for the prompt')
    chat.check_date(self.date)

  @property
  def fields(self) -> tuple[str, str]:
    """The names of the settings that hold the columns of question and answer."""
    return ('instruction', 'output') if self.form == 'instruction' else ('prompt', 'completion')


def columns(config: Config) -> Columns:
  """What is read of the data."""
  column = config.references
  own = {'row': functools.partial(_referenced, column), 'somewhere': {'references': column}} if column else {}
  if config.form == 'messages':
    return Columns([], config.messages, 'messages', ('messages',), **own)
  question, answer = (getattr(config, f) for f in config.fields)
  own['spare'] = {answer: column} if column else None
  if config.form == 'instruction' and config.input:
    fields, kinds = (*config.fields, 'input', 'label'), {config.input: 'optional'}
    return Columns([question, answer, config.input], fields=fields, kinds=kinds, **own)
  return Columns([question, answer], fields=(*config.fields, 'label'), **own)


def _referenced(column: str, row: dict) -> dict:
  """The row as it is. Raises `ValueError` where the column has something else than a text or texts."""
  value = row.get(column)
  texts = value if isinstance(value, list) else [value]
  if value is not None and (odd := [t for t in texts if not isinstance(t, str)]):
    what = 'holds' if isinstance(value, list) else 'is'
    raise ValueError(f'"{column}" {what} {repr(odd[0])[:60]}, but references are a text or a list of texts')
  return row


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Sft:
  """The task; there are no labels, and nothing of the rows is looked at."""
  return Sft(config)


@dataclasses.dataclass(frozen=True)
class Sft(Language):
  """The task; see `ftlib/tasks/task.py`."""

  @property
  def about(self) -> str:
    c = self.config
    what = {'assistant': 'the answers', 'last': 'the last answer', 'all': 'every token'}[c.train_on]
    return f'{what} of {c.form if c.form == "messages" else f"{c.form} rows ({c.template})"}'

  @property
  def _chats(self) -> bool:
    return self.config.form == 'messages' or self.config.template == 'chat'

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    where = getattr(rows, 'where', lambda i: f'row {i + 1}')
    front, end = tokens.frame(tokenizer)
    notes: list[str] = []
    if self._chats:
      c = self.config
      own = chat.open_chat(tokenizer, c.chat_template, train_on=c.train_on, date=c.date)
      notes = own.notes
      found = own.encode([self.conversation(row) for row in rows], where)
    else:
      found = self._plain(rows, tokenizer, front, end)
    fitted = self._fitted(found, front, limit, where, getattr(rows, 'name', 'rows'))
    return dataclasses.replace(fitted, notes=[*notes, *fitted.notes])

  def prompts(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[list[int]]:
    """The ids after which the model is to give each row's (last) answer, as it is trained to."""
    where = getattr(rows, 'where', lambda i: f'row {i + 1}')
    if self._chats:
      own = chat.open_chat(tokenizer, self.config.chat_template, date=self.config.date)
      return own.prompts([self.conversation(row)[:-1] for row in rows], where)
    front, _ = tokens.frame(tokenizer)
    return [[*front, *e.ids] for e in literal(tokenizer).text([self.question(row) for row in rows])]

  def answer(self, row: Mapping[str, Any]) -> str:
    """The (last) answer that a row holds."""
    c = self.config
    return row[c.messages][-1]['content'] if c.form == 'messages' else row[getattr(c, c.fields[1])]

  def question(self, row: Mapping[str, Any]) -> str:
    """What a row of prompt or instruction asks, by the template; of a conversation, the turn before the last answer."""
    c = self.config
    if c.form == 'messages':
      return row[c.messages][-2]['content'] if len(row[c.messages]) > 1 else ''
    prompt = c.wrap.replace('{prompt}', row[getattr(c, c.fields[0])])
    extra = (row.get(c.input) or '') if c.form == 'instruction' else ''
    if c.template == 'chat':
      return f'{prompt}\n\n{extra}' if extra else prompt
    parts = {'{prompt}': prompt, '{input}': extra}
    return _filled(TEMPLATES[c.template][0 if extra else 1], parts)

  def conversation(self, row: Mapping[str, Any]) -> list[Message]:
    """A row as a conversation that ends with its answer."""
    c = self.config
    if c.form == 'messages':
      turns = row[c.messages]
    else:
      turns = [{'role': 'user', 'content': self.question(row)}, {'role': 'assistant', 'content': self.answer(row)}]
    if c.system and turns[0]['role'] != 'system':
      return [{'role': 'system', 'content': c.system}, *turns]
    return turns

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    for i, row in enumerate(rows):
      scores = self._scores(predictions, i)
      yield {'id': row.get('id', i), 'label': self.answer(row), **scores, 'text': self.question(row)}

  def _plain(self, rows, tokenizer: Any, front: list[int], end: int) -> list[tuple[list[int], list[bool]]]:
    """Prompt and answer apart, as when the model is asked: no token spans both."""
    own, everything = literal(tokenizer), self.config.train_on == 'all'
    prompts = own.text([self.question(row) for row in rows])
    answers = own.text([self.answer(row) for row in rows])
    out = []
    for p, a in zip(prompts, answers, strict=True):
      asked = len(front) + len(p.ids)
      out.append(([*front, *p.ids, *a.ids, end], [everything] * asked + [True] * (len(a.ids) + 1)))
    return out

  def _fitted(self, found, front: list[int], limit: int, where: Callable[[int], str], name: str) -> Examples:
    """Documents of at most `limit` tokens, without those of which nothing is left to learn."""
    ids, supervised, kept, barren, truncated = [], [], [], [], 0
    for i, (own, counts) in enumerate(found):
      if len(own) > limit:
        truncated += 1
        own, counts = self._cut(own, counts, front, limit)
      if not any(counts[1:]):  # the first token of a row is never predicted
        barren.append(i)
        continue
      ids.append(own)
      supervised.append(counts)
      kept.append(i)
    dropped = f'{name}: {len(barren)} of {len(found)} rows have no supervised token'
    if len(barren) > _BARREN * len(found):
      places = listing([f'{where(i)}: {len(found[i][0])} tokens' for i in barren], limit=5)
      raise InputError(
        f'{dropped} within {limit} tokens, more than the {_BARREN:.0%} that are passed over:\n{places}\nRaise '
        '--config.train.max_length=, or cut prompts from the left by --config.task.truncate=left.'
      )
    notes = [f'{dropped} and were dropped, the first {where(barren[0])}'] if barren else []
    lost = truncated - len(barren) if self.config.truncate == 'drop' else truncated
    return language(ids, supervised, rows=np.array(kept, np.int64), truncated=max(lost, 0), notes=notes)

  def _cut(self, ids: list[int], counts: list[bool], front: list[int], limit: int) -> tuple[list[int], list[bool]]:
    """A row of more than `limit` tokens cut down; from the left, what the tokenizer puts in front stays."""
    if self.config.truncate == 'drop':
      return [], []
    if self.config.truncate == 'right':
      return ids[:limit], counts[:limit]
    keep = len(front) if ids[: len(front)] == front else 0
    last = max(i for i, c in enumerate(counts) if c) + 1 if any(counts) else len(ids)  # what follows is not learnt
    first = max(keep, last - (limit - keep))
    return ids[:keep] + ids[first:last], counts[:keep] + counts[first:last]


def _filled(template: str, parts: Mapping[str, str]) -> str:
  """The template with its places filled, whatever braces the parts hold."""
  out, rest = '', template
  while rest:
    at = {name: rest.find(name) for name in parts if name in rest}
    if not at:
      return out + rest
    name = min(at, key=at.get)
    out, rest = out + rest[: at[name]] + parts[name], rest[at[name] + len(name) :]
  return out
