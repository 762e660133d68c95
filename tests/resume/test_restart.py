"""A run taken up at its fourth step goes on as the run that was never stopped: the same bytes, the same log.

The processes of `test_kill.py` prove the same of real kills; here the checkpoint after the fourth step is all that is
left of a finished run, which takes seconds.
"""

import json
import shutil

import pytest

from ftlib import fine_tune
from ftlib.base.errors import InputError
from tests import tiny

STEPS, SAVED, EVERY = 9, 4, 3


def rows(workdir):
  """The rows without their speed, which is measured."""
  read = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in r.items() if k != 'tokens_per_second'} for r in read]


def ended(workdir):
  return json.loads((workdir / 'summary.json').read_text())['params_sha256']


def recipe(model, data, **more):
  values = {'train__steps': STEPS, 'train__eval_every': STEPS, 'train__log_every': EVERY, 'train__accumulate': 2}
  averages = {'train__ema': 0.9, 'train__swa_start': 0.25, 'train__diagnostics': 'norms'}
  return tiny.config(model, data, checkpoint__every=SAVED, checkpoint__keep_last=9, **{**values, **averages, **more})


@pytest.fixture(scope='module')
def runs(tiny_bert, toy_data, tmp_path_factory):
  """(folder of the whole run, folder of the run that was resumed at step 4)."""
  config = recipe(tiny_bert, toy_data)
  whole, again = (tmp_path_factory.mktemp('restart') / name for name in ('whole', 'again'))
  fine_tune.run(config, str(whole))
  shutil.copytree(whole, again)
  for path in [*(again / 'checkpoints').iterdir(), again / 'summary.json', again / 'report.html', again / 'eval']:
    if path.name != str(SAVED):
      shutil.rmtree(path) if path.is_dir() else path.unlink()
  fine_tune.run(config, str(again))
  return whole, again


def test_the_end_is_the_same_to_the_bit(runs):
  whole, again = runs
  assert ended(again) == ended(whole)


def test_the_rows_of_the_log_are_the_same(runs):
  """Also the row at step 6, a mean over step 4 before the restart and steps 5 and 6 after it, and those of averages."""
  whole, again = runs
  of = lambda split: [r['step'] for r in rows(whole) if r['split'] == split]  # noqa: E731
  assert of('train') == [3, 6, 9]
  assert of('validation') == of('validation_ema') == of('validation_swa') == [9]
  assert rows(again) == rows(whole)


def test_an_equal_mean_that_began_cannot_begin_elsewhere(runs, tiny_bert, toy_data, tmp_path):
  """It held the parameters from step 3 on; of 7 steps it would hold those from 2 on."""
  shutil.copytree(runs[0], tmp_path / 'w')
  with pytest.raises(InputError, match='of 7 steps the equal mean would hold those from 2 on, and at step 9 it holds'):
    fine_tune.run(recipe(tiny_bert, toy_data, train__steps=7), str(tmp_path / 'w'))
