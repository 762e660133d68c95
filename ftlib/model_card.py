"""`README.md` of an exported folder: what it is, how to load it, what it scored, and how it was made.

Every number is read from the run folder. Paths of the machine are cut down to their last names.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from ftlib import scratch, show
from ftlib.io import workdir as files
from ftlib.run import Run

_PATH = re.compile(r'(?:(?<=[=:,\'"\s])|^)(?:~|\.{1,2})?/(?:[^/,\s\'"]+/)*(?=[^/,\s\'"])')
_AUTO = {  # by the model's head: what transformers loads it as, and what hubs call its task
  'lm': ('AutoModelForCausalLM', 'text-generation'),
  'classify': ('AutoModelForSequenceClassification', 'text-classification'),
  'tag': ('AutoModelForTokenClassification', 'token-classification'),
  'span': ('AutoModelForQuestionAnswering', 'question-answering'),
  'mlm': ('AutoModelForMaskedLM', 'fill-mask'),
  'choice': ('AutoModelForMultipleChoice', 'multiple-choice'),
  'embed': ('AutoModel', 'sentence-similarity'),
}
_USE = {
  'hf': """from transformers import AutoTokenizer, {auto}

tokenizer = AutoTokenizer.from_pretrained('{name}')
model = {auto}.from_pretrained('{name}')""",
  'peft': """from peft import PeftModel
from transformers import AutoTokenizer, {auto}

tokenizer = AutoTokenizer.from_pretrained('{tokenizer}')
model = {auto}.from_pretrained('{base}'{labels})
model = PeftModel.from_pretrained(model, '{name}')""",
}


def write(output: pathlib.Path, run: Run, workdir: pathlib.Path, *, step: int, format: str, dtype: str) -> None:
  """Writes `output/README.md` about checkpoint `step` of the run in `workdir`."""
  (output / 'README.md').write_text(text(output.name, run, workdir, step=step, format=format, dtype=dtype), 'utf-8')


def text(name: str, run: Run, workdir: pathlib.Path, *, step: int, format: str, dtype: str) -> str:
  """The card; `name` is the folder's."""
  s, env = run.settings, _read(workdir / 'env.json')
  version = env.get('versions', {}).get('ftlib', 'unknown')
  kind, base = run.task.head.form, named(s.model.pretrained)
  base = f'new {run.base.values["model_type"]}' if scratch.notes(run.base) else base
  use = _USE[format] if kind in _AUTO and _library(run) == 'transformers' else ''
  use = use.format(
    name=name,
    base=base,
    auto=_AUTO.get(kind, ('',))[0],
    tokenizer=name if kind == 'lm' else base,
    labels=f', num_labels={run.task.head.classes}' if kind in ('classify', 'tag') else '',
  )
  config = _read(workdir / 'config.json')
  parts = [
    _front(run, format),
    f'# {name}',
    f'`{base}`, fine-tuned on `{named(s.data.path)}` by ftlib {version}: task {s.names["task"]} ({run.task.about}), '
    f'method {s.names["method"]}. {_form(run, format, dtype)} Checkpoint of step {step}.',
    *([f'## Use\n\n```python\n{use}\n```'] if use else []),
    f'## Results\n\n{_results(workdir)}',
    f'## Training\n\n{_table(("", ""), _training(run))}',
    f'## Made by\n\n```\n{_command(env)}\n```\n\n<details><summary>The whole config</summary>\n\n'
    f'```json\n{json.dumps(_clean(config), indent=1, ensure_ascii=False)}\n```\n\n</details>',
  ]
  return '\n\n'.join(parts) + '\n'


def named(place: str) -> str:
  """A model's or a data set's name: hub ids and names of packages as they are, of a path the last part."""
  local = place.startswith(('/', '.', '~')) or pathlib.Path(place).expanduser().exists()
  return pathlib.PurePath(place).name or place if local else place


def _front(run: Run, format: str) -> str:
  """The YAML that hubs read."""
  s = run.settings
  base = s.model.pretrained
  hub = re.fullmatch(r'[\w.-]+(/[\w.-]+)?', base) and not pathlib.Path(base).exists()
  lines = [
    f'library_name: {"peft" if format == "peft" else _library(run)}',
    *([f'base_model: {base}'] if hub else []),
    *([f'pipeline_tag: {_AUTO[run.task.head.form][1]}'] if run.task.head.form in _AUTO else []),
    'tags:',
    *(f'- {json.dumps(t)}' for t in ('ftlib', s.names['task'], s.names['method'])),
  ]
  return '---\n' + '\n'.join(lines) + '\n---'


def _library(run: Run) -> str:
  """Which loads the model, whole."""
  return getattr(run.base.family, 'LIBRARY', 'transformers')


def _form(run: Run, format: str, dtype: str) -> str:
  if format == 'peft':
    return 'The folder holds the adapter alone, in float32, as PEFT loads it onto the base.'
  method = run.settings.names['method']
  merged = 'Adapters are merged into the weights' if method != 'full' else 'The weights are whole'
  return f'{merged}, which are in {dtype}.'


def _results(workdir: pathlib.Path) -> str:
  """A row for each metric, a column for each evaluation that the run folder holds."""
  found = {p.stem: _read(p) for p in sorted((workdir / 'eval').glob('*.json'))}
  found = {n: v for n, v in found.items() if isinstance(v.get('metrics'), Mapping)}
  if not found:
    return 'The run was not evaluated.'
  scalars = {
    n: {k: x for k, x in v['metrics'].items() if isinstance(x, int | float) and not isinstance(x, bool)}
    for n, v in found.items()
  }
  rows = [
    (k, *(_number(m.get(k)) for m in scalars.values())) for k in dict.fromkeys(k for m in scalars.values() for k in m)
  ]
  rows += [('rows', *(f'{v.get("n", 0):,}' for v in found.values()))]
  rows += [('checkpoint', *(str(v.get('checkpoint', '')) for v in found.values()))]
  return _table(('', *found), rows)


def _training(run: Run) -> list[tuple[str, str]]:
  s, counts = run.settings, show.counts(run)
  train = s.train
  share = counts['params_trainable'] / counts['params_total']
  method = ', '.join(f'{k}={v}' for k, v in _fields(s.method).items())
  return [
    ('method', s.names['method'] + (f' ({method})' if method else '')),
    ('parameters', f'{counts["params_total"]:,}'),
    ('of these trained', f'{counts["params_trainable"]:,} ({share:.2%})'),
    (
      'objective',
      s.names['objective'] + ''.join(f', {k}={v}' for k, v in _fields(s.objective).items() if k != 'chunk'),
    ),
    ('optimizer', f'{s.names["optim"]}, learning rate {s.optim.learning_rate:g} ({s.optim.schedule})'),
    ('steps', f'{train.steps}' if train.steps else f'{train.epochs:g} epochs'),
    ('batch', f'{train.batch_size} rows of at most {run.limit} tokens'),
    ('precision', f'{s.precision.compute} compute, {s.precision.frozen} frozen, {s.precision.trainable} trained'),
    ('seed', str(s.seed)),
  ]


def _fields(config: Any) -> dict[str, Any]:
  """The fields of a section that are set, on one line."""
  found = {k: v for k, v in vars(config).items() if v not in ('', None) and isinstance(v, str | int | float)}
  return {k: str(v).replace('|', '\\|') for k, v in found.items()}


def _command(env: Mapping[str, Any]) -> str:
  """The command line of the run, with the last names of its paths."""
  argv = env.get('argv') or ['train.py']
  words = [pathlib.PurePath(argv[0]).name, *(_PATH.sub('', a) for a in argv[1:])]
  return ' '.join(
    ['python', *(w if re.fullmatch(r'[\w./:=,+-]+', w) else "'" + w.replace("'", "'\\''") + "'" for w in words)]
  )


def _clean(values: Any) -> Any:
  """Without machine paths."""
  if isinstance(values, Mapping):
    return {k: _clean(v) for k, v in values.items()}
  return pathlib.PurePath(values).name if isinstance(values, str) and re.match(r'(~|\.{0,2})/', values) else values


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  lines = [head, tuple('---' if i == 0 else '---:' for i in range(len(head))), *rows]
  return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in lines)


def _number(x: Any) -> str:
  return '' if x is None else f'{x:,}' if isinstance(x, int) else f'{x:.4f}'


def _read(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object, {} where the file is absent."""
  found = files.read_json(path) if path.is_file() else {}
  return found if isinstance(found, dict) else {}
