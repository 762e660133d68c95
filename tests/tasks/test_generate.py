"""What generated answers are judged by: the right answers of their rows, one or several."""

from __future__ import annotations

import pytest

from ftlib.tasks import generate

ENGLISH = [
  ['The 3 red foxes sleep under the old tree.', 'There are 3 red foxes asleep below an old tree.'],
  ['It costs 12 euros a day.', 'One day of it is 12 euros.', 'You pay 12 euros for every day.'],
  ['She has 7 brothers and no sister at all.'],
]
CHINESE = [
  ['三只红狐狸睡在老树下面。', '老树下睡着三只红色的狐狸。'],
  ['每天的价钱是十二欧元。', '一天要付十二欧元。', '十二欧元一天。'],
  ['她有七个兄弟，没有姐妹。'],
]


@pytest.mark.parametrize(
  ('metrics', 'references', 'perfect'),
  [
    ('bleu,chrf,ter,rouge,exact,f1,number', ENGLISH, {'bleu': 100, 'chrf': 100, 'ter': 0}),
    ('bleu_zh,chrf,ter_zh,rouge_zh,exact,f1_zh', CHINESE, {'bleu_zh': 100, 'chrf': 100, 'ter_zh': 0}),
  ],
)
def test_any_right_answer_scores_perfectly(metrics, references, perfect):
  config = generate.Config(form='prompt', references='references', metrics=metrics)
  task = generate.build(config, train=None, known=None)
  higher = {n: h for n, h in task.metric_names.items() if n not in generate.METRICS}
  rows = [{'prompt': 'x', 'completion': r[0], 'references': r} for r in references[:2]]
  rows.append({'prompt': 'x', 'completion': references[2][0]})  # one answer, that of the completion
  for k in (0, -1):
    gold = [f' {r[k]}\n' for r in references]
    got = task.judged(rows, gold)
    assert got == {n: pytest.approx(perfect.get(n, 1)) for n in higher}
    wrong = task.judged(rows, [gold[1], gold[2], gold[0]])
    for name, up in higher.items():
      assert (wrong[name] < got[name]) is up, name
