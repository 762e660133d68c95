"""Writes `data/entity_cases.json`: what seqeval 1.2.2 says of drawn tags, for `test_entities.py`.

  pip install --no-deps seqeval --target DIR && PYTHONPATH=DIR python -m tests.evals.make_entity_cases

With --check=N nothing is written, but N drawn cases are compared with ftlib there and then.
"""

from __future__ import annotations

import json
import pathlib
import random
import sys
import warnings

DATA = pathlib.Path(__file__).parent / 'data' / 'entity_cases.json'
LETTERS = {'bio': 'BI', 'bioes': 'BIES'}
TYPES = ('LOC', 'PER', 'LOC-GPE')
NAMES = ('precision', 'recall', 'f1')


def drawn(seed: int) -> tuple[str, list[list[str]], list[list[str]]]:
  """(scheme, true rows, predicted rows): broken as well as sound ones, the predictions near the truth."""
  rng = random.Random(seed)
  scheme = rng.choice(('bio', 'bioes'))
  tags = ['O', *(f'{letter}-{t}' for t in TYPES[: rng.randint(1, 3)] for letter in LETTERS[scheme])]
  weights = [rng.choice((1, 2, 6)), *[1] * (len(tags) - 1)]
  gold = [rng.choices(tags, weights, k=rng.randint(1, 9)) for _ in range(rng.randint(1, 5))]
  slip = rng.choice((0, 0.1, 0.3, 0.9))
  return scheme, gold, [[rng.choice(tags) if rng.random() < slip else t for t in row] for row in gold]


def theirs(scheme: str, gold: list[list[str]], said: list[list[str]]) -> dict:
  """{'default' or 'strict': {'micro', 'macro', 'weighted': [precision, recall, f1], 'types': {type: the same and how
  many}}} as seqeval has them."""
  from seqeval import metrics
  from seqeval.scheme import IOB2, IOBES

  out = {}
  for mode, options in (
    ('default', {}),
    ('strict', {'mode': 'strict', 'scheme': {'bio': IOB2, 'bioes': IOBES}[scheme]}),
  ):
    report = metrics.classification_report(gold, said, output_dict=True, zero_division=0, **options)
    plain = lambda r: [float(r[n]) for n in ('precision', 'recall', 'f1-score')]  # noqa: E731
    if not set(report) - {f'{a} avg' for a in ('micro', 'macro', 'weighted')}:  # without an entity, its means are NaN
      continue
    out[mode] = {a: plain(report.pop(f'{a} avg')) for a in ('micro', 'macro', 'weighted')}
    out[mode]['types'] = {t: [*plain(r), int(r['support'])] for t, r in report.items()}
    out[mode]['f1'] = float(metrics.f1_score(gold, said, zero_division=0, **options))
  return out


def main() -> None:
  warnings.simplefilter('ignore')
  count = next((int(a.partition('=')[2]) for a in sys.argv[1:] if a.startswith('--check=')), 0)
  cases = []
  for seed in range(count or 120):
    scheme, gold, said = drawn(seed)
    cases.append({'scheme': scheme, 'gold': gold, 'said': said, 'expected': theirs(scheme, gold, said)})
  if count:
    from tests.evals.test_entities import compare

    for case in cases:
      compare(case)
    print(f'{len(cases)} of {count} cases compared')
    return
  lines = ',\n'.join(json.dumps(c, separators=(',', ':')) for c in cases)
  DATA.write_text(f'[\n{lines}\n]\n')
  print(f'{len(cases)} cases written to {DATA}')


if __name__ == '__main__':
  main()
