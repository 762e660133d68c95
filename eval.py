"""Evaluates a trained run: python eval.py --workdir=runs/quickstart --split=test --checkpoint=best

Writes eval/<split>.json, eval/<split>_predictions.jsonl and report.html into the run folder. `--config.data.path=...`
style changes are not taken: the run's own config holds.

With --adapters=a=runs/first,b=peft_folder the base and the data are those of --workdir, and each adapter (a run's best
checkpoint, or a folder of PEFT) is judged on them by its name, without loading the base again: one table with a column
for each, and eval/<split>_<name>.json.

Intervals of the metrics are those of a bootstrap. --slices=length,COLUMN gives the metrics by length and by the values
of a column, --calibrate=validation fits a temperature to the probabilities, --against=runs/other compares with another
run on the same rows, and --file=PATH takes labelled rows of any file instead of a split (docs/evaluation.md).

With --config=configs/x.py instead of --workdir the pretrained model is judged as it is, on the config's task and data
(perplexity, zero-shot scores), or the adapter that --config.model.adapter names; --output=FOLDER takes the files.
"""

import sys

from ftlib import cli

from absl import flags  # isort: skip - cli sets the environment first

cli.define_config()
flags.DEFINE_string('workdir', None, 'the folder that train.py wrote')
flags.DEFINE_string('split', 'test', 'train, validation or test')
flags.DEFINE_string('checkpoint', 'best', 'best, last, or the number of a step')
flags.DEFINE_string('file', None, 'labelled rows to judge instead of a split: .jsonl, .csv, .tsv, ...')
flags.DEFINE_string('on_bad_row', 'error', 'with --file: error, or skip rows that cannot be used')
flags.DEFINE_integer('bootstrap', None, 'samples of the intervals, 0 for none (1000, fewer where they take long)')
flags.DEFINE_list('slices', [], 'length, and columns: metrics of the rows of each length and value')
flags.DEFINE_string('calibrate', '', 'the split that a temperature is fitted on, or, with --file, was')
flags.DEFINE_string('against', '', 'the folder of another run to compare with')
flags.DEFINE_string('output', None, 'with --config: the folder to write to')
flags.DEFINE_string('adapters', None, 'NAME=FOLDER,...: adapters to judge on the base and data of --workdir')


def main() -> None:
  from ftlib import judge, judge_file
  from ftlib.analysis import Options
  from ftlib.base.errors import InputError

  f = flags.FLAGS
  options = Options(f.bootstrap, tuple(f.slices), f.calibrate, f.against)
  more = [f'--{n}' for n in ('bootstrap', 'slices', 'calibrate', 'against', 'file') if f[n].value not in (None, [], '')]
  if more and (f.config is not None or f.adapters is not None):
    raise InputError(f'{more[0]} goes with --workdir alone: it is of a run')
  if f.config is not None:
    if f.workdir or f.adapters or f.checkpoint != 'best':
      raise InputError('--config judges a model before training; --workdir, --adapters and --checkpoint are of runs')
    judge.untrained(f.config, split=f.split, output=f.output)
    return
  if f.output:
    raise InputError('--output goes with --config; the evaluation of a run is written into its folder')
  if f.adapters is not None:
    if f.checkpoint != 'best':
      raise InputError('--checkpoint is of the run in --workdir; --adapters takes the best checkpoint of each')
    judge.compare(f.workdir, split=f.split, adapters=f.adapters)
    return
  if f.on_bad_row not in ('error', 'skip') or (f.on_bad_row == 'skip' and not f.file):
    raise InputError(
      f'--on_bad_row={f.on_bad_row}: with --file, error or skip; of splits, data.on_bad_row of the run holds'
    )
  if f.file:
    if f.split != 'test':
      raise InputError('--split and --file: give one of them')
    judge_file.run(f.workdir, file=f.file, checkpoint=f.checkpoint, skip=f.on_bad_row == 'skip', options=options)
    return
  judge.run(f.workdir, split=f.split, checkpoint=f.checkpoint, options=options)


if __name__ == '__main__':
  sys.exit(cli.run(main))
