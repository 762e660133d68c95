"""Options ranked by a language model: which of them is the likeliest to follow a prompt.

No head is needed, so a model can be judged as it is (`eval.py --config=...`), and then be trained to rank better. The
options stand in the rows, or are the same throughout, a text for each label (`choices`, "verbalisers"): then this is
classification. A row's options stand in one row of a batch, each behind the prompt, as documents that do not see each
other.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.settings import setting
from ftlib.base.types import Batch, Head, Outputs
from ftlib.data import batches, chat, options, tokens
from ftlib.data.batches import Examples
from ftlib.data.labels import Columns
from ftlib.data.literal import literal
from ftlib.evals import metrics
from ftlib.objectives.vocabulary import token_scores
from ftlib.tasks import multiple_choice
from ftlib.tasks.sft import TEMPLATES

OBJECTIVE = 'choice'
HEADLESS = True
NORMALISE = ('none', 'tokens', 'characters')
_FORMS = ('', *options.FORMS)
_NEVER = -1e9  # the score of an option that a row has not
_PLACE = re.compile(r'\{(\w+)\}')


@dataclasses.dataclass(frozen=True)
class Config:
  """`prompt`: a column. `options`, `label`, `label_as`, `most`: as in multiple_choice; or `choices`, 'label=text|...':
  the same options for all rows, and `label` is that of a class.

  `wrap`: what is asked, with {prompt} in it, and other columns in braces. `template`: what is put around it, 'chat' (a
  conversation of one question) or one of `ftlib/tasks/sft.py: TEMPLATES`; `chat_template`, `date`: as in sft.
  `between`: what stands between prompt and option where the prompt does not end in white space, not of 'chat'.

  `normalise`: what is compared, the log-probability of an option's tokens ('none'), or that over the number of its
  'tokens' or 'characters'; training compares the same. `train.max_length` is that of a prompt with one option; of
  longer ones the prompt is cut from the left, the same for all options.
  """

  prompt: str = 'prompt'
  options: str = 'options'
  choices: str = ''
  label: str = 'label'
  label_as: str = setting('', choices=_FORMS)
  most: int = setting(0, low=0)
  wrap: str = '{prompt}'
  template: str = setting('bare', choices=('chat', *TEMPLATES))
  chat_template: str = ''
  date: str = chat.DATE
  between: str = ' '
  normalise: str = setting('none', choices=NORMALISE)

  def __post_init__(self):
    if '{prompt}' not in self.wrap:
      raise ValueError(f'wrap={self.wrap!r} has no place {{prompt}} for the prompt')
    if not self.choices and not options.columns_of(self.options):
      raise ValueError("options='' names no column, and choices='' no texts")
    if self.choices:
      self.verbalisers  # noqa: B018 - raises where it cannot be read
    chat.check_date(self.date)

  @property
  def verbalisers(self) -> dict[str, str]:
    """{label: text} of `choices`, {} without. Raises `ValueError`."""
    found: dict[str, str] = {}
    for part in filter(None, self.choices.split('|')):
      label, equals, text = part.partition('=')
      if not equals or not label.strip() or not text.strip() or label.strip() in found:
        raise ValueError(f"choices={self.choices!r}: {part!r} is not label=text; write 'label=text|label=text'")
      found[label.strip()] = text.strip()
    if len(found) == 1:
      raise ValueError(f'choices={self.choices!r} is one option; two or more are compared')
    return found

  @property
  def asked(self) -> list[str]:
    """The columns that the prompt is made of."""
    return [self.prompt, *dict.fromkeys(n for n in _PLACE.findall(self.wrap) if n not in ('prompt', self.prompt))]


def columns(config: Config) -> Columns:
  """What is read of the data."""
  fields = ['prompt', *['wrap'] * (len(config.asked) - 1)]
  if config.choices:
    return Columns(config.asked, config.label, 'class', [*fields, 'label'])
  names = options.columns_of(config.options)
  return Columns(
    [*config.asked, *names],
    config.label,
    'choice',
    [*fields, *['options'] * len(names), 'label'],
    kinds=options.kinds(names),
    row=functools.partial(multiple_choice.checked, names, config),
  )


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Score:
  """The task; its labels are those of `choices`, or name the places of options. Raises `InputError` for labels of the
  training rows that `choices` lacks."""
  if not config.choices:
    return Score(config, *multiple_choice.places(config, train, known))
  found = [row[config.label] for row in train or ()]
  whole = any(isinstance(value, int) for value in found) or (not found and isinstance((known or [''])[0], int))
  try:
    labels = [int(label) if whole else label for label in config.verbalisers]
  except ValueError as e:
    raise InputError(f'task.choices={config.choices!r}: the labels of "{config.label}" are whole numbers') from e
  for i, value in enumerate(found):
    if value not in labels:
      raise InputError(_unknown(config, labels, train, i, value))
  counts = np.array([found.count(label) for label in labels], np.int64)
  return Score(config, labels, counts)


def _unknown(config: Config, labels: Sequence, rows: Any, i: int, value: Any) -> str:
  where = getattr(rows, 'where', lambda i: f'row {i + 1}')(i)
  near = did_you_mean(str(value), map(str, labels))
  return f'{where}: label {value!r} is not in task.choices={config.choices!r}{near}; give it a text, as {value}=TEXT'


@dataclasses.dataclass(frozen=True)
class Score:
  """The task; see `ftlib/tasks/task.py`."""

  config: Config
  labels: list
  counts: np.ndarray
  metric: str = 'accuracy'
  head: Head = dataclasses.field(default_factory=lambda: Head('lm'))

  def placeholder(self, row: Mapping[str, Any]) -> Any:
    """The label of a row that has none to be judged by."""
    return self.labels[0] if self.config.choices else multiple_choice.placeholder(row)

  @property
  def about(self) -> str:
    by = {'none': 'log-probability', 'tokens': 'that of a token', 'characters': 'that of a character'}
    what = f'{len(self.labels)} labels' if self.config.choices else f'up to {len(self.labels)} options'
    return f'the likeliest of {what}, by {by[self.config.normalise]}'

  @property
  def metric_names(self) -> dict[str, bool]:
    return metrics.classification_names(len(self.labels)) if self.config.choices else multiple_choice.METRICS

  def examples(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, limit: int) -> Examples:
    c = self.config
    where = getattr(rows, 'where', lambda i: f'row {i + 1}')
    found = self._options(rows)
    of_row = np.repeat(np.arange(len(rows)), [len(texts) for texts in found])
    front, _ = tokens.frame(tokenizer)
    texts = [text for of_one in found for text in of_one]
    notes: list[str] = []
    if c.template == 'chat':
      template = chat.open_chat(tokenizer, c.chat_template, train_on='last', date=c.date)
      turns = lambda i, text: [  # noqa: E731
        {'role': 'user', 'content': self.asking(rows[i])},
        {'role': 'assistant', 'content': text},
      ]
      encoded = template.encode([turns(i, text) for i, text in zip(of_row, texts)], lambda k: where(of_row[k]))
      notes = template.notes
    else:
      encoded = self._plain([self.asking(rows[i]) for i in of_row], texts, tokenizer, front)
    packs = multiple_choice.packed(found)
    documents, truncated = [], 0
    for i, pack in enumerate(packs):
      documents += _cut([encoded[k] for k in pack], front, limit, where(i))
      truncated += max(len(encoded[k][0]) for k in pack) > limit
    made = batches.language([ids for ids, _ in documents], [own for _, own in documents], truncated=truncated)
    divisor = {
      'none': lambda k: 1,
      'tokens': lambda k: sum(documents[k][1][1:]),
      'characters': lambda k: len(texts[k]),
    }[c.normalise]
    divisors = np.zeros((len(rows), len(self.labels)), np.float32)
    for i, pack in enumerate(packs):
      divisors[i, : len(pack)] = [divisor(k) for k in pack]
    extra = {'labels': self._labels(rows), 'options': divisors, 'asked': np.ones(len(rows), np.float32)}
    return dataclasses.replace(made, extra=extra, packs=packs, notes=notes)

  def asking(self, row: Mapping[str, Any]) -> str:
    """What a row asks, within its template but for that of conversations."""
    c = self.config
    values = {**row, 'prompt': row[c.prompt]}
    text = _PLACE.sub(lambda m: str(values[m[1]]), c.wrap)
    return text if c.template == 'chat' else TEMPLATES[c.template][1].replace('{prompt}', text)

  def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    """`scores` float32 [B, K] of the options, as they are compared, and `probabilities`, their softmax."""
    nll_BL, _ = token_scores(outputs.unembed, outputs.hidden, batch['targets'])
    divisors_BK = batch['options']
    own_BLK = batch['segments'][..., None] == np.arange(1, divisors_BK.shape[1] + 1)
    sums_BK = -((nll_BL * batch['weights'])[..., None] * own_BLK).sum(1)
    there_BK = divisors_BK > 0
    scores_BK = jnp.where(there_BK, sums_BK / jnp.where(there_BK, divisors_BK, 1), _NEVER)
    return {'scores': scores_BK, 'probabilities': jax.nn.softmax(scores_BK)}

  def metrics(self, examples: Examples, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
    labels, probabilities = examples.extra['labels'], predictions['probabilities']
    if self.config.choices:
      return metrics.classification(labels, probabilities, names=self.labels)
    return multiple_choice.score(labels, probabilities, len(self.labels))

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    shown = lambda row: {'text': self.asking(row)}  # noqa: E731
    if not self.config.choices:
      found = multiple_choice.chosen(self, rows, predictions['probabilities'], shown)
    else:
      found = self._classified(rows, predictions['probabilities'])
    for record, scores_K in zip(found, predictions['scores'], strict=True):
      yield {**record, 'scores': [round(float(x), 6) if x > _NEVER / 2 else None for x in scores_K]}

  def _classified(self, rows: Sequence[Mapping[str, Any]], probabilities_NK: np.ndarray) -> Iterator[dict]:
    for i, (row, p_K) in enumerate(zip(rows, probabilities_NK, strict=True)):
      yield {
        'id': row.get('id', i),
        'label': row[self.config.label],
        'prediction': self.labels[int(p_K.argmax())],
        'probabilities': [round(float(p), 6) for p in p_K],
        'text': self.asking(row),
      }

  def _options(self, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    if self.config.choices:
      return [[*self.config.verbalisers.values()]] * len(rows)
    return multiple_choice.listed(self.config, self.labels, rows)

  def _labels(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    c = self.config
    if not c.choices:
      return multiple_choice.labels_of(rows, c.label)
    index = {label: i for i, label in enumerate(self.labels)}
    for i, row in enumerate(rows):
      if row[c.label] not in index:
        raise InputError(_unknown(c, self.labels, rows, i, row[c.label]))
    return np.asarray([index[row[c.label]] for row in rows], np.int32)

  def _plain(
    self, prompts: Sequence[str], texts: Sequence[str], tokenizer: Any, front: list[int]
  ) -> list[tuple[list[int], list[bool]]]:
    """(ids, which are the option's) of prompt and option as one text. Its own are those tokens that hold a character of
    it or of spaces before it, so that ' yes' is what follows 'Answer:', as in pretraining."""
    joined, begins = [], []
    for prompt, text in zip(prompts, texts, strict=True):
      between = '' if prompt[-1:].isspace() else self.config.between
      joined.append(prompt + between + text)
      begins.append(len((prompt + between).rstrip(' ')))
    out = []
    for e, whole, begin in zip(literal(tokenizer).text(joined), joined, begins, strict=True):
      own = next((k for k, start in enumerate(e.starts) if start >= begin), len(e.ids))
      if own and (own == len(e.ids) or whole[begin : e.starts[own]].strip()):
        own -= 1  # a token that begins in the prompt and reaches into the option
      while 0 < own < len(e.ids) and e.starts[own - 1] == e.starts[own]:
        own -= 1  # of several, each a part of a character
      out.append(([*front, *e.ids], [False] * (len(front) + own) + [True] * (len(e.ids) - own)))
    return out


def _cut(
  found: Sequence[tuple[list[int], list[bool]]], front: list[int], limit: int, where: str
) -> list[tuple[list[int], list[bool]]]:
  """The options of a row behind their prompt in at most `limit` tokens: it loses the same for all, from the left.

  Raises `InputError` where an option has no token, or leaves no room for one of the prompt.
  """
  if not all(any(own[1:]) for _, own in found):
    raise InputError(f'{where}: an option has no token: the tokenizer drops all that it holds')
  excess = max(len(ids) for ids, _ in found) - limit
  if excess <= 0:
    return [*found]
  keep = len(front) if all(ids[: len(front)] == front for ids, _ in found) else 0
  prompt = min(own.index(True) for _, own in found)
  if prompt - excess < max(keep, 1):
    raise InputError(
      f'{where}: an option alone is longer than train.max_length={limit} tokens; raise it, or shorten the option'
    )
  return [tuple(x[:keep] + x[keep + excess :] for x in one) for one in found]
