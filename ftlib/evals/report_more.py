"""The report on what an evaluation says besides its metrics: slices, calibration, another run, attributed tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ftlib.evals import report_format as fmt
from ftlib.evals.report_data import Split, label, named, number
from ftlib.evals.report_page import bar, block, grid, table, text, word

_MEASURES = {
  'ece': 'Expected calibration error',
  'ece_adaptive': 'The same, bins of equally many examples',
  'brier': 'Brier score',
  'nll': 'Negative log-likelihood',
}
_ROWS = 20  # attributed rows shown


def blocks(split: Split) -> str:
  """All of these as a grid; '' without any."""
  return grid(calibration(split), *slices(split), against(split), attributed(split))


def bounds(split: Split, key: str, of_class: str | None = None) -> tuple[float, float] | None:
  """The stored interval of a metric, or of one of a class."""
  found = _mapping(split.more.get('intervals'))
  if of_class is not None:
    found = _mapping(_mapping(found.get('per_class')).get(of_class))
  return _pair(found.get(key))


def level(split: Split) -> float:
  """The share of the samples between the bounds of an interval."""
  return number(_mapping(split.more.get('bootstrap')).get('level')) or 0.95


def slices(split: Split) -> list[str]:
  """A table for each column or length: of each slice its examples, the main metric and its interval."""
  key, out = str(split.more.get('metric') or 'accuracy'), []
  for by, found in _mapping(split.more.get('slices')).items():
    rows = []
    for one in found if isinstance(found, list) else ():
      one = _mapping(one)
      value, n = number(_mapping(one.get('metrics')).get(key)), number(one.get('n'))
      spread = _pair(_mapping(one.get('intervals')).get(key))
      shown = '–' if value is None else bar(value) if 0 <= value <= 1 else fmt.decimal(value)
      rows.append((word(one.get('slice')), '–' if n is None else fmt.integer(n), shown, _spread(spread)))
    note = 'Intervals are wide where a slice has few examples.'
    out.append(block(f'By {by}', table(('Slice', 'Examples', label(key), _level(split)), rows), note=note))
  return out


def calibration(split: Split) -> str:
  """How far probabilities are off, before and after a temperature."""
  before, after = (_mapping(split.more.get(k)) for k in ('calibration', 'calibrated'))
  rows = []
  for key, name in _MEASURES.items():
    values = [number(m.get(key)) for m in (before, after)]
    if values[0] is not None:
      rows.append((text(name), *(fmt.decimal(v) for v in values if v is not None)))
  head, note = ['Measure', 'Model'], ''
  if after:
    head.append(f'T = {number(after.get("temperature")) or 0:.3g}')
    note = f'T is the temperature at which {after.get("split")} is likeliest; it changes no prediction.'
    notes = after.get('notes')
    note += ''.join(f' {str(n)[:1].upper()}{str(n)[1:]}.' for n in (notes if isinstance(notes, list) else ()))
  return block('Probabilities', table(head, rows), note=note)


def against(split: Split) -> str:
  """The other run's metrics on the same rows, and whether the difference is more than chance."""
  found = _mapping(split.more.get('against'))
  rows = []
  for key, one in _mapping(found.get('metrics')).items():
    one = _mapping(one)
    here, there, apart = (number(one.get(k)) for k in ('here', 'there', 'difference'))
    if None not in (here, there, apart):
      ps = [number(one.get(k)) for k in ('p_bootstrap', 'p_randomization')]
      cells = [fmt.decimal(here), fmt.decimal(there), f'{apart:+.4f}', _spread(_pair(one.get('interval')), signed=True)]
      rows.append((text(named(split, key)), *cells, *('–' if p is None else f'{p:.3g}' for p in ps)))
  test, note = _mapping(found.get('mcnemar')), 'Both runs on the same examples; the difference is here minus there.'
  if number(test.get('p')) is not None:
    note += (
      f' Right in one alone: {test.get("only_here")} here, {test.get("only_there")} there;'
      f" McNemar's exact test gives p = {test['p']:.3g}."
    )
  head = ('Metric', 'Here', 'There', 'Difference', _level(split), 'p (bootstrap)', 'p (randomization)')
  return block(f'Against {found.get("run")}', table(head, rows), note=note, kind='wide')


def attributed(split: Split) -> str:
  """Rows whose tokens are coloured by what they do for the answer."""
  lines = []
  for record in split.attribution[:_ROWS]:
    tokens = record.get('tokens') if isinstance(record.get('tokens'), list) else []
    tokens = [t for t in tokens if isinstance(t, list) and len(t) == 2 and number(t[1]) is not None]
    top = max((abs(w) for _, w in tokens), default=0) or 1.0
    facts = [f'row {record.get("row")}', str(record.get('target')), str(record.get('method')).replace('_', ' ')]
    if number(record.get('completeness')) is not None:
      facts.append(f'sum off by {record["completeness"]:.2%}')
    body = ''.join(_token(t, w / top) for t, w in tokens)
    lines.append(f'<p class="note">{text(", ".join(facts))}</p><p class="tokens" dir="auto">{body}</p>')
  note = (
    'Integrated gradients: blue speaks for the class that is named, orange against it. Rollout: the darker, the more '
    'comes from the token. Point at a token for its share of the greatest.'
  )
  if (total := len(split.attribution)) > _ROWS:
    note = f'The first {_ROWS} of {fmt.integer(total)} rows; all are in eval/{split.name}_attribution.jsonl. {note}'
  return block('What answers hang on', '\n'.join(lines), note=note, kind='wide')


def _token(value: object, share: float) -> str:
  color = '43,92,138' if share > 0 else '181,83,42'
  return f'<span style="background:rgba({color},{0.55 * abs(share):.3f})" title="{share:+.2f}">{text(value)}</span>'


def _spread(pair: tuple[float, float] | None, *, signed: bool = False) -> str:
  form = '{:+.4f}' if signed else '{:.4f}'
  return '–' if pair is None else f'{form.format(pair[0])} to {form.format(pair[1])}'


def _level(split: Split) -> str:
  return f'{100 * level(split):.0f} % interval'


def _pair(value: object) -> tuple[float, float] | None:
  both = [number(v) for v in value] if isinstance(value, Sequence) and len(value) == 2 else []
  return (both[0], both[1]) if both and None not in both else None


def _mapping(value: object) -> Mapping:
  return value if isinstance(value, Mapping) else {}
