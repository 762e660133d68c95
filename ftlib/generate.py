"""Texts from a trained run or a pretrained model: python -m ftlib.generate --workdir=runs/sft --prompt="Hello"

  one text      --prompt="..."                      shown while it grows, in a terminal
  many          --input=FILE.jsonl --output=FILE.jsonl    prompts in the column --field
  a dialogue    --chat                              by the chat template; /reset begins anew, /quit ends

--model=PRETRAINED (hub id, folder, GGUF file or package:NAME/PATH) takes a model as it is instead of a run. A run of
the tasks sft and generate is asked as it was trained (template, system turn); --raw leaves that away, and --template
puts the prompts of any other through the chat template of its tokenizer.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from ftlib import cli, folder, generators, judge  # cli first: it sets the environment before JAX is imported
from ftlib import run as runs
from ftlib.base.errors import InputError
from ftlib.data import chat, tokens
from ftlib.data.literal import literal
from ftlib.data.sources import Rows
from ftlib.generation import settings as checks
from ftlib.generation.generator import Generator, Text
from ftlib.generation.settings import Settings
from ftlib.recipe import ModelSettings

_QUIT, _RESET = '/quit', '/reset'


@dataclasses.dataclass(frozen=True)
class Speaker:
  """A generator with what makes prompts of rows and of conversations. `task` is a run's of sft or generate, else None.
  `template`: whether texts of others go through the chat template. `system`: what conversations begin with.
  `chat_template`: another template than the run's or the tokenizer's, by its name or file."""

  generator: Generator
  tokenizer: Any
  task: Any = None
  template: bool = False
  system: str = ''
  chat_template: str = ''

  def prompts(self, rows: Sequence[Mapping[str, Any]], field: str) -> list[list[int]]:
    """Token ids of the prompts that rows hold in a column: texts, or conversations to go on with.

    Raises `InputError`, naming the row, for one that is neither, or leaves too few of the model's positions.
    """
    where, out = getattr(rows, 'where', lambda i: f'prompt {i}' if len(rows) > 1 else 'the prompt'), []
    for i, row in enumerate(rows):
      try:
        out.append(self._prompt(row, row[field], where(i)))
      except ValueError as e:
        raise InputError(f'{where(i)}: {e}') from e
      self.generator.check(out[i], where=where(i))
    return out

  def _prompt(self, row: Mapping[str, Any], value: Any, where: str) -> list[int]:
    """The token ids of a prompt. Raises `ValueError` where it is none."""
    c = self.task.config if self.task is not None else None
    if not value:
      raise ValueError('the prompt is empty: it has nothing that a model could go on from; give a text')
    if not isinstance(value, str):
      return self.conversation(chat.asked(value), where)
    if c is not None and c.form != 'messages':
      more = (row.get(c.input) or '') if c.form == 'instruction' else ''
      if not isinstance(more, str):
        raise ValueError(f'"{c.input}" is the {type(more).__name__} {repr(more)[:60]}, but a text is a string')
      asked = {c.input: more, getattr(c, c.fields[0]): value, getattr(c, c.fields[1]): '-'}
      if c.template != 'chat':
        return self.task.prompts([asked], self.tokenizer)[0]
      value = self.task.question(asked)
    elif c is None and not self.template:
      front = tokens.frame(self.tokenizer)[0] if self.tokenizer.eos_token_id is not None else []
      return [*front, *literal(self.tokenizer).text([value])[0].ids]
    return self.conversation([{'role': 'user', 'content': value}], where)

  def conversation(self, turns: Sequence[Mapping[str, str]], where: str = 'the conversation') -> list[int]:
    """Token ids of a conversation up to where the assistant answers; `where` names it in an `InputError`."""
    own = self.task.config if self.task is not None else None
    system = self.system or (own.system if own else '')
    if system and turns[0]['role'] != 'system':
      turns = [{'role': 'system', 'content': system}, *turns]
    return self.chat().prompts([[*turns]], lambda i: where)[0]

  def chat(self) -> chat.Chat:
    """The chat template: that of the run, or the tokenizer's own. Raises `InputError` where there is none."""
    own = self.task.config if self.task is not None else None
    if own:
      return chat.open_chat(self.tokenizer, self.chat_template or own.chat_template, date=own.date)
    return chat.open_chat(self.tokenizer, self.chat_template, date='', field='--chat_template')  # it knows today


def of_run(workdir: str, settings: Settings, *, checkpoint: str = 'best', raw: bool = False, **options: Any) -> Speaker:
  """The Speaker of a run's checkpoint; the data of the run need not be there. Raises `InputError`."""
  where = pathlib.Path(workdir).expanduser()
  config, labels = folder.stored(where)
  run = runs.build(config, labels=labels, data=False)
  for note in folder.changed(where, run):
    print(f'note  {note}', file=sys.stderr)
  own, frozen, step = judge.restored(run, where, checkpoint)
  print(f'{where}, checkpoint {step}', file=sys.stderr)
  generator = generators.of_run(run, own, frozen, settings)
  task = getattr(run.task, 'as_sft', run.task)  # of pairs of answers, what is asked
  task = task if hasattr(task, 'prompts') and hasattr(task.config, 'form') and not raw else None
  return Speaker(generator, run.tokenizer, task, **options)


def of_pretrained(name: str, settings: Settings, *, compute: str = 'float32', **options: Any) -> Speaker:
  """The Speaker of a pretrained model as it is. Raises `InputError`."""
  base = runs.open_base(ModelSettings(pretrained=name))
  tokenizer = tokens.load(base.folder)
  return Speaker(generators.of_base(base, tokenizer, settings, compute=compute, where=name), tokenizer, **options)


def read_rows(path: pathlib.Path, field: str) -> Rows:
  """The rows of a JSON-lines file. Raises `InputError` naming the line for what is no object with the column."""
  if not path.is_file():
    raise InputError(f'--input={path}: there is no such file')
  rows, lines = [], []
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as e:
    raise InputError(f'--input={path} cannot be read: {e}') from e
  for number, line in enumerate(text.split('\n'), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as e:
      raise InputError(f'--input={path}, line {number} is no JSON: {e}') from e
    if not isinstance(row, dict) or field not in row:
      there = ', '.join(row) if isinstance(row, dict) else type(row).__name__
      raise InputError(f'--input={path}, line {number} has no column {field!r}, but {there}; name it by --field')
    if not row[field]:
      raise InputError(f'--input={path}, line {number}: the prompt is empty')
    if not isinstance(row[field], str):
      try:
        chat.asked(row[field])
      except ValueError as e:
        raise InputError(f'--input={path}, line {number}: {e}') from e
    rows.append(row)
    lines.append(number)
  if not rows:
    raise InputError(f'--input={path} is empty')
  return Rows(rows, 'prompts', f'--input={path}', lines, ', line ')


def write_answers(
  speaker: Speaker, rows: Sequence[Mapping[str, Any]], field: str, output: pathlib.Path
) -> list[list[Text]]:
  """Answers all rows, a JSON object a text: `id`, `prompt`, `text`, `ended`, `tokens`, and `number` and `score` where
  there are several. The file is there when it is whole."""
  found = speaker.generator.generate(speaker.prompts(rows, field))
  draft = output.with_name(output.name + '.tmp')
  with draft.open('w', encoding='utf-8') as f:
    for i, (row, texts) in enumerate(zip(rows, found, strict=True)):
      for j, text in enumerate(texts):
        more = {'number': j} if len(texts) > 1 else {}
        more |= {} if text.score is None else {'score': text.score}
        line = {'id': row.get('id', i), 'prompt': row[field], 'text': text.text, 'ended': text.ended}
        f.write(json.dumps({**line, 'tokens': len(text.tokens), **more}, ensure_ascii=False) + '\n')
  os.replace(draft, output)
  return found


def show(speaker: Speaker, prompt: Sequence[int], out: TextIO, *, stream: bool, number: int = 0) -> str:
  """Writes the text of a prompt, piece by piece or whole, and gives it."""
  settings = speaker.generator.settings
  if stream and settings.num_beams == 1 and settings.num == 1:
    for piece in speaker.generator.stream(prompt, number=number):
      if isinstance(piece, Text):
        out.write('\n')
        out.flush()
        return piece.text
      out.write(piece)
      out.flush()
  texts = speaker.generator.generate([prompt], first=number)[0]
  for j, text in enumerate(texts):
    head = f'--- {j + 1}' + ('' if text.score is None else f', score {text.score:.4f}') + '\n' if len(texts) > 1 else ''
    out.write(f'{head}{text.text}\n')
  out.flush()
  return texts[0].text


def converse(speaker: Speaker, lines: Iterator[str], out: TextIO, *, ask: Callable[[], None], stream: bool) -> None:
  """A conversation by lines, until `/quit` or their end. What is too long for the model ends it, with a word of why."""
  turns: list[dict[str, str]] = []
  ask()
  for number, line in enumerate(lines):
    text = line.strip()
    if text == _QUIT:
      return
    if text == _RESET:
      turns = []
      out.write('(a new conversation)\n')
    elif text.startswith('/') and ' ' not in text:
      out.write(f'({text} is no command; there are {_RESET} and {_QUIT})\n')
    elif text:
      turns.append({'role': 'user', 'content': text})
      try:
        prompt = speaker.conversation(turns)
        speaker.generator.check(prompt, where='the conversation')
      except InputError as e:
        turns.pop()
        out.write(f'({e}; {_RESET} begins anew)\n')
      else:
        answer = show(speaker, prompt, out, stream=stream, number=number)
        turns.append({'role': 'assistant', 'content': answer})
    out.flush()
    ask()


def _settings(flags: Any) -> Settings:
  early = {'true': True, 'false': False}.get(str(flags.early_stopping).lower(), flags.early_stopping)
  given = {f.name: getattr(flags, f.name) for f in dataclasses.fields(Settings) if f.name in flags}
  try:
    eos = tuple(int(i) for i in flags.eos)
  except ValueError as e:
    raise InputError(f'--eos={",".join(flags.eos)}: wanted ids, with commas between') from e
  return Settings(**{**given, 'early_stopping': early, 'stop': tuple(flags.stop or ()), 'eos': eos})


def main() -> None:
  """Generates as the flags say."""
  from absl import flags

  f = flags.FLAGS
  if bool(f.workdir) == bool(f.model):
    said = 'give one of them: a run is of one model' if f.workdir else 'give --workdir=RUN_FOLDER or --model=PRETRAINED'
    raise InputError(f'--workdir and --model: {said}')
  if (f.prompt is not None) + bool(f.input) + f.chat != 1:
    raise InputError('give one of --prompt="TEXT", --input=FILE.jsonl --output=FILE.jsonl and --chat')
  if bool(f.input) != bool(f.output):
    raise InputError('--input and --output go together: the file of prompts, and the file to write')
  if f.model and f.checkpoint != 'best':
    raise InputError('--checkpoint is of a run (--workdir), and --model is a pretrained model')
  settings = _settings(f)
  checks.check(settings)
  if f.chat and (settings.num > 1 or settings.num_beams > 1):
    raise InputError('--chat shows one answer while it grows; leave --num and --num_beams')
  rows = read_rows(pathlib.Path(f.input).expanduser(), f.field) if f.input else []
  output = pathlib.Path(f.output).expanduser() if f.output else None
  if output is not None and (output.exists() or not output.absolute().parent.is_dir()):
    raise InputError(f'--output={output}: ' + ('it exists' if output.exists() else 'there is no such folder'))
  options = {'template': f.template, 'system': f.system, 'chat_template': f.chat_template}
  if f.workdir:
    speaker = of_run(f.workdir, settings, checkpoint=f.checkpoint, raw=f.raw, **options)
  else:
    speaker = of_pretrained(f.model, settings, compute=f.compute, **options)
  terminal = sys.stdout.isatty()
  if f.chat:
    speaker.chat()  # which there may not be
    ask = (lambda: print('> ', end='', flush=True)) if sys.stdin.isatty() else (lambda: None)
    converse(speaker, iter(sys.stdin.readline, ''), sys.stdout, ask=ask, stream=terminal)
  elif rows:
    found = write_answers(speaker, rows, f.field, output)
    print(f'{output}: {sum(map(len, found))} texts')
  else:
    show(speaker, speaker.prompts([{'prompt': f.prompt}], 'prompt')[0], sys.stdout, stream=terminal)


if __name__ == '__main__':
  from absl import flags

  S = Settings()
  flags.DEFINE_string('workdir', None, 'the folder that train.py wrote')
  flags.DEFINE_string('model', None, 'a pretrained model instead of a run')
  flags.DEFINE_string('checkpoint', 'best', 'best, last, or the number of a step')
  flags.DEFINE_string('compute', 'float32', 'with --model: float32 or bfloat16')
  flags.DEFINE_string('prompt', None, 'a text to go on with, or to answer')
  flags.DEFINE_string('input', None, 'a JSON-lines file of prompts')
  flags.DEFINE_string('output', None, 'the JSON-lines file to write')
  flags.DEFINE_string('field', 'prompt', 'the column of --input: texts, or lists of turns')
  flags.DEFINE_bool('chat', False, 'a conversation, line by line')
  flags.DEFINE_bool('raw', False, 'the prompt as it stands, whatever the run was trained on')
  flags.DEFINE_bool('template', False, 'the prompt through the chat template of the tokenizer')
  flags.DEFINE_string('system', '', 'the system turn of a conversation')
  flags.DEFINE_string('chat_template', '', 'a template by name or file; else that of the run, or of the tokenizer')
  flags.DEFINE_integer('max_new_tokens', S.max_new_tokens, 'the most tokens of a text')
  flags.DEFINE_bool('sample', S.sample, 'draw tokens; else the most likely one is taken')
  flags.DEFINE_float('temperature', S.temperature, 'with --sample: what logits are divided by')
  flags.DEFINE_integer('top_k', S.top_k, 'with --sample: from so many tokens, 0 for all')
  flags.DEFINE_float('top_p', S.top_p, 'with --sample: from the likeliest tokens of this probability together')
  flags.DEFINE_float('min_p', S.min_p, 'with --sample: from tokens of this share of the greatest probability')
  flags.DEFINE_float('repetition_penalty', S.repetition_penalty, 'above 1: tokens that were there are less likely')
  flags.DEFINE_integer('num_beams', S.num_beams, 'more than 1: beam search')
  flags.DEFINE_float(
    'length_penalty', S.length_penalty, 'with --num_beams: the power of the length that scores are over'
  )
  flags.DEFINE_string('early_stopping', 'false', 'with --num_beams: true, false or never')
  flags.DEFINE_multi_string('stop', [], 'a text that ends the answer; may be given several times')
  flags.DEFINE_list('eos', [], 'further ids of tokens that end a text')
  flags.DEFINE_integer('num', S.num, 'texts of each prompt')
  flags.DEFINE_integer('seed', S.seed, 'of --sample')
  flags.DEFINE_integer('batch_size', S.batch_size, 'prompts that are decoded together')
  sys.exit(cli.run(main))
