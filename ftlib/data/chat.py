"""Conversations to token ids by a chat template, and which of the tokens are an assistant's answer.

The ids are those of the tokenizer's own `apply_chat_template` on the whole conversation. An answer begins where the
prompt ends that the model is given when it is to answer (`add_generation_prompt`), and ends with what ends its turn, so
what is learnt is what is asked for later. Templates with `{% generation %}` say themselves where answers stand. Of
others it is checked that what a turn looks like does not depend on the turns that follow; where it does, training on it
would teach what generation never shows (Qwen3 takes the thoughts out of all turns but the last), and is refused. One
that prints the date (`strftime_now`, as Llama 3 does) is told a fixed one, else token ids would change by the day.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ftlib.base.errors import InputError, did_you_mean
from ftlib.data.literal import PRIVATE, Encoded, literal

Message = dict[str, str]
Span = tuple[int, int]  # first and last + 1 character of a supervised part

ROLES = ('system', 'user', 'assistant')
TRAIN_ON = ('assistant', 'last', 'all')
DATE = '2024-07-26'  # what Llama 3's templates print where they cannot ask for today's
TEMPLATES = {  # for tokenizers without one; each says where its answers stand
  'turns': (  # one after the other, as DialoGPT was trained (Zhang et al. 2020)
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + eos_token }}"
    "{% endgeneration %}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
  ),
  'names': (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'Assistant:' }}{% generation %}"
    "{{ ' ' + m['content'] + eos_token }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ {'user': 'User: ', 'system': ''}[m['role']] + m['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
  ),
}
_DIRECTIVES = ('-d', '-m', *'aAwdbBmyYHIMSpjUWxXc')  # of strftime
_UNREAD = ('tool_calls', 'function_call', 'reasoning_content', 'thinking')  # of a turn, besides its text
_SHAREGPT = {'human': 'user', 'gpt': 'assistant', 'bot': 'assistant', 'model': 'assistant'}
_MARK = '\U0010fffe{}\U0010fffe'  # stands for the content of message {}
_MARKS = re.compile('\U0010fffe(\\d+)\U0010fffe')


class Unstable(ValueError):
  """A turn that looks otherwise when more turns follow."""


# --- rows to conversations


def messages(value: Any) -> list[Message]:
  """The turns of a row: `{'role', 'content'}` objects, `{'from', 'value'}` objects, or plain texts of user and
  assistant by turns, of which a last one without an answer is left out. Raises `ValueError` that says what is wrong."""
  turns = _turns(value)
  if turns and isinstance(value[0], str):
    turns = turns[: len(turns) // 2 * 2]
    if not turns:
      raise ValueError('the conversation has one turn and no answer to learn from')
  _check_order(turns)
  if 'assistant' not in (roles := [t['role'] for t in turns]):
    raise ValueError('the conversation has no assistant turn, so there is nothing to learn')
  if roles[-1] != 'assistant':
    raise ValueError(f'the conversation ends with a turn of the {roles[-1]}, which nothing answers')
  return turns


def asked(value: Any) -> list[Message]:
  """The turns of a conversation that the assistant is to go on with, as in `messages`. Raises `ValueError`."""
  turns = _turns(value)
  _check_order(turns)
  if turns[-1]['role'] != 'user':
    raise ValueError(f"the conversation ends with a turn of the {turns[-1]['role']}; the last one is to be the user's")
  return turns


def fault(value: Any) -> str:
  """What is wrong with a conversation; empty where nothing is."""
  try:
    messages(value)
  except ValueError as e:
    return str(e)
  return ''


def _turns(value: Any) -> list[Message]:
  if not isinstance(value, list):
    raise ValueError(f'a conversation is a list of turns, not the {type(value).__name__} {repr(value)[:60]}')
  if all(isinstance(turn, str) for turn in value):
    return [{'role': ROLES[1 + i % 2], 'content': turn} for i, turn in enumerate(value)]
  return [_turn(turn, i) for i, turn in enumerate(value, 1)]


def _turn(turn: Any, number: int) -> Message:
  if not isinstance(turn, Mapping):
    raise ValueError(f'turn {number} is {repr(turn)[:60]}, not an object with role and content')
  role = turn.get('role', turn.get('from'))
  content = turn.get('content', turn.get('value'))
  role = _SHAREGPT.get(role, role) if isinstance(role, str) else role
  if role not in ROLES:
    near = did_you_mean(str(role), ROLES)
    raise ValueError(f'turn {number} has the role {role!r}, which is none of {", ".join(ROLES)}{near}')
  if unread := [name for name in _UNREAD if turn.get(name)]:
    raise ValueError(f'turn {number} ({role}) has {unread[0]}, which would be lost: only content is read')
  if not isinstance(content, str):
    raise ValueError(f'turn {number} ({role}) has the content {repr(content)[:60]}, which is no text')
  if not content.strip():
    raise ValueError(f'turn {number} ({role}) is empty')
  return {'role': role, 'content': content}


def _check_order(turns: Sequence[Message]) -> None:
  roles = [t['role'] for t in turns]
  if not roles:
    raise ValueError('the conversation is empty')
  if roles.count('system') > 1:
    raise ValueError(f'the conversation has {roles.count("system")} system turns; one, at its beginning, is possible')
  if 'system' in roles[1:]:
    raise ValueError(f'turn {roles.index("system") + 1} is the system turn, which can only be the first')


# --- conversations to tokens


@dataclasses.dataclass(frozen=True)
class Chat:
  """Conversations by the template of a tokenizer; `train_on` says which tokens count, see `TRAIN_ON`. `date`: the one
  that the template is told is today, as YYYY-MM-DD; '' for the real one."""

  tokenizer: Any
  template: str
  train_on: str = 'assistant'
  date: str = DATE

  @property
  def notes(self) -> list[str]:
    """What the user should know of the template."""
    notes = []
    if 'strftime_now' in self.template:
      notes.append(
        f'the chat template prints the date; it is given task.date={self.date} for ever, so that token ids do not '
        'change from day to day'
      )
    if self._endless:
      notes.append(
        'the chat template has no special token behind an answer, so the model does not learn where one ends: it will '
        'go on until max_new_tokens, or until a --stop text'
      )
    return notes

  @property
  def _endless(self) -> bool:
    """Whether nothing special ends an answer; of a template that refuses a question and its answer, not known."""
    turns = [{'role': 'user', 'content': 'mirum'}, {'role': 'assistant', 'content': 'quidem'}]
    try:
      _, answer, rest = self.render(turns).rpartition(turns[1]['content'])
    except ValueError:
      return False
    return bool(answer) and not literal(self.tokenizer).names.search(rest)

  @functools.cached_property
  def marked(self) -> bool:
    """Whether the template says where answers stand."""
    return bool(re.search(r'\{%-?\s*generation\s*-?%\}', self.template))

  def encode(
    self, conversations: Sequence[list[Message]], where: Callable[[int], str]
  ) -> list[tuple[list[int], list[bool]]]:
    """(ids, which of them are supervised) of each conversation; `where(i)` names it in an `InputError`."""
    texts, spans = [], []
    for i, conversation in enumerate(conversations):
      with _told(where, i):
        texts.append(self.render(conversation))
        spans.append([*self._spans(conversation, texts[i])])
    found = self._tokens(conversations, texts, where, spans)
    return [(e.ids, [any(a <= s < b for a, b in own) for s in e.starts]) for e, own in zip(found, spans, strict=True)]

  def prompts(self, conversations: Sequence[list[Message]], where: Callable[[int], str]) -> list[list[int]]:
    """The ids after which the model is to answer conversations, which end before an assistant's turn."""
    texts = []
    for i, conversation in enumerate(conversations):
      with _told(where, i):
        texts.append(self.render(conversation, answer=True))
    found = self._tokens(conversations, texts, where, [[] for _ in texts], answer=True)
    return [e.ids for e in found]

  def render(self, conversation: list[Message], *, answer: bool = False) -> str:
    """The text of a conversation; with `answer`, up to where the assistant begins."""
    import jinja2

    try:
      return self.tokenizer.apply_chat_template(
        conversation, chat_template=self._dated, tokenize=False, add_generation_prompt=answer
      )
    except jinja2.exceptions.TemplateSyntaxError:
      raise  # of no row
    except jinja2.exceptions.TemplateError as e:
      raise ValueError(f'the chat template refuses it: {e.message}') from e
    except (TypeError, LookupError, AttributeError, ArithmeticError) as e:  # in what the template computes
      raise ValueError(f'the chat template fails on it: {e}') from e

  @functools.cached_property
  def _dated(self) -> str:
    """The template, with a function of its own for the date where it asks for one (what a template is given beside
    messages may be data alone). Its first line ends with a tag, so it leaves nothing in the text."""
    if not (self.date and 'strftime_now' in self.template):
      return self.template
    day = datetime.date.fromisoformat(self.date)
    parts = ''.join(f"|replace('%{c}', '{day.strftime(f'%{c}')}')" for c in _DIRECTIVES)
    return f'{{% macro strftime_now(format) %}}{{{{ format{parts} }}}}{{% endmacro %}}\n{self.template}'

  def _tokens(self, conversations, texts: list[str], where, spans: list[list[Span]], **options) -> list[Encoded]:
    """The tokens of rendered texts. Where a user's text has the name of a special token, text and `spans` move to the
    one with private names."""
    own, texts = literal(self.tokenizer), list(texts)
    odd = [i for i, c in enumerate(conversations) if any(own.mentions(m['content']) for m in c)]
    for i in odd:
      with _told(where, i):
        texts[i], spans[i][:] = self._hidden(conversations[i], texts[i], spans[i], **options)
    out = own.markup(['' if i in {*odd} else t for i, t in enumerate(texts)])
    for i, e in zip(odd, own.text([texts[i] for i in odd]), strict=True):
      out[i] = e
    return out

  def _hidden(self, conversation, text: str, spans: list[Span], **options) -> tuple[str, list[Span]]:
    """A rendered text with private names for the special tokens of the template alone, and the spans in it."""
    own = literal(self.tokenizer)
    if any(PRIVATE.search(m['content']) for m in conversation):
      raise ValueError('the text holds a noncharacter (U+10FFFE or U+10FFFF), which no text should')
    marked = self.render([{**m, 'content': _MARK.format(i)} for i, m in enumerate(conversation)], **options)
    parts = _MARKS.split(marked)  # template, number, template, number, ..., template
    contents = [conversation[int(n)]['content'] for n in parts[1::2]]
    either = ['|'.join(map(re.escape, dict.fromkeys((c, c.strip(), c.lstrip(), c.rstrip())))) for c in contents]
    pattern = ''.join(re.escape(a) + (f'({b})' if b else '') for a, b in zip(parts[::2], [*either, '']))
    found = re.fullmatch(pattern, text)
    if not found:
      raise ValueError(
        'a turn holds the name of a special token, and the template changes turns, so the name cannot be told from '
        'the token; take it out of the text'
      )
    out, at, moved = '', 0, []  # moved: (place in text, place in out) where a piece begins
    pieces = [p for pair in zip(parts[::2], [*found.groups(), '']) for p in pair]
    for k, piece in enumerate(pieces):
      for part in re.split(f'({own.names.pattern})', piece) if k % 2 == 0 else [piece]:
        moved.append((at, len(out)))
        at, out = at + len(part), out + (own.hidden(part) if k % 2 == 0 else part)
    moved.append((at, len(out)))

    def there(place: int) -> int:
      start, new = next(m for m in reversed(moved) if m[0] <= place)
      return new + place - start

    return out, [(there(a), there(b)) for a, b in spans]

  def _spans(self, conversation: list[Message], text: str) -> Iterator[Span]:
    if self.train_on == 'all':
      yield 0, len(text)
      return
    answers = [k for k, m in enumerate(conversation) if m['role'] == 'assistant']
    if self.marked:
      spans = self._marked_spans(conversation, text)
      yield from spans[-1:] if self.train_on == 'last' else spans
      return
    for k in answers[-1:] if self.train_on == 'last' else answers:
      yield self._answer(conversation, k, text)

  def _marked_spans(self, conversation: list[Message], text: str) -> list[Span]:
    """What the template marks, with the special token that ends the turn where that is not marked."""
    from transformers.utils import chat_template_utils

    rendered, marks = chat_template_utils.render_jinja_template(
      conversations=[conversation],
      chat_template=self._dated,
      return_assistant_tokens_mask=True,
      **self.tokenizer.special_tokens_map,
    )
    if rendered != [text]:
      raise ValueError('the template does not give the same text twice')
    names, out = literal(self.tokenizer).names, []
    answers = [m['content'].strip() for m in conversation if m['role'] == 'assistant']
    if len(marks[0]) != len(answers):
      raise ValueError(
        f'the template marks {len(marks[0])} parts by {{% generation %}}, and there are {len(answers)} answers'
      )
    for (a, b), answer in zip(marks[0], answers):
      body = text.find(answer, a, b)
      ended = names.search(text, a if body < 0 else body + len(answer), b)
      end = None if ended else names.match(text, len(text) - len(text[b:].lstrip()))
      out.append((a, end.end() if end else b))
    return out

  def _answer(self, conversation: list[Message], k: int, text: str) -> Span:
    """Where the answer in turn k stands in the text, with what ends it."""
    whole = self.render(conversation[: k + 1])
    start = self._start(conversation, k, whole)
    content = conversation[k]['content'].strip()
    body = whole.find(content, start)
    if start <= len(whole) and text.startswith(whole):
      return start, len(whole.rstrip())
    same = next((i for i, (a, b) in enumerate(zip(whole, text)) if a != b), min(len(whole), len(text)))
    ends = [*literal(self.tokenizer).names.finditer(text[:same], body + len(content))] if body >= 0 else []
    if start > same or not ends:
      raise Unstable(
        f'turn {k + 1} looks otherwise when more turns follow, so what the model is trained on is not what it is given '
        'when it answers (see ftlib/data/chat.py). Set --config.task.train_on=last, or give a template with '
        '{% generation %} marks by --config.task.chat_template=FILE'
      )
    return start, ends[-1].end()

  def _start(self, conversation: list[Message], k: int, whole: str) -> int:
    """Where the prompt ends after which turn k is generated."""
    before = self.render(conversation[:k], answer=True) if k else ''
    if not whole.startswith(before):
      raise Unstable(
        f'what the template asks with does not begin turn {k + 1}: the model would be asked otherwise than it is '
        'trained (some put the system turn before the last question alone, which no answer follows; leave it out '
        'then), or give another template by --config.task.chat_template=FILE'
      )
    if k and before != self.render(conversation[:k]):
      return len(before)
    # the template has nothing to ask with: the answer begins with its content, or the blank in front of it
    start = self.render([*conversation[:k], {**conversation[k], 'content': _MARK.format(k)}]).find(_MARK.format(k))
    if start < 0:
      raise ValueError(f'the chat template leaves the content of turn {k + 1} out')
    return len(before) if k and not whole[len(before) : start].strip() else start


def check_date(date: str) -> None:
  """Raises `ValueError` for what is no date."""
  try:
    datetime.date.fromisoformat(date)
  except ValueError as e:
    raise ValueError(f'date={date!r} is no date as YYYY-MM-DD, such as {DATE}') from e


def open_chat(
  tokenizer: Any,
  name: str = '',
  *,
  train_on: str = 'assistant',
  date: str = DATE,
  field: str = '--config.task.chat_template',
) -> Chat:
  """The Chat of a template: '' for the tokenizer's own, one of `TEMPLATES`, or a file. Raises `InputError`, in which
  the template is called `field`.

  The tokenizer has that template from then on, so that whatever is made of the model later asks as it was trained.
  """
  known = ', '.join(TEMPLATES)
  if name in TEMPLATES:
    template = TEMPLATES[name]
  elif name:
    file = pathlib.Path(name).expanduser()
    if not file.is_file():
      raise InputError(f'{field}={name}: neither a file nor one of {known}{did_you_mean(name, TEMPLATES)}')
    try:
      template = file.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as e:
      raise InputError(f'{field}={name} cannot be read: {e}') from e
  else:
    try:
      template = tokenizer.get_chat_template()
    except ValueError as e:
      raise InputError(
        'the tokenizer has no chat template (a base model, most likely)\n'
        f'Set {field}= to one of {known}, or to a file with a template.'
      ) from e
  tokenizer.chat_template = template
  return Chat(tokenizer, template, train_on, date)


class _told:
  """Turns what a template, or a check of this file, raises into an `InputError` that names the row."""

  def __init__(self, where: Callable[[int], str], i: int):
    self.where, self.i = where, i

  def __enter__(self) -> None:
    return None

  def __exit__(self, kind, error, trace) -> bool:
    import jinja2

    if isinstance(error, jinja2.exceptions.TemplateSyntaxError):
      raise InputError(f'task.chat_template: {error.message} (line {error.lineno} of the template)') from error
    if isinstance(error, ValueError):
      raise InputError(f'{self.where(self.i)}: {error}') from error
    return False
