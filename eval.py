"""Evaluates a trained run: python eval.py --workdir=runs/quickstart --split=test --checkpoint=best

Writes eval/<split>.json, eval/<split>_predictions.jsonl and report.html into the run folder. `--config.data.path=...`
style changes are not taken: the run's own config holds.

With --adapters=a=runs/first,b=peft_folder the base and the data are those of --workdir, and each adapter (a run's best
checkpoint, or a folder of PEFT) is judged on them by its name, without loading the base again: one table with a column
for each, and eval/<split>_<name>.json.

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
flags.DEFINE_string('output', None, 'with --config: the folder to write to')
flags.DEFINE_string('adapters', None, 'NAME=FOLDER,...: adapters to judge on the base and data of --workdir')


def main() -> None:
  from ftlib import judge
  from ftlib.base.errors import InputError

  if flags.FLAGS.config is not None:
    if flags.FLAGS.workdir or flags.FLAGS.adapters or flags.FLAGS.checkpoint != 'best':
      raise InputError('--config judges a model before training; --workdir, --adapters and --checkpoint are of runs')
    judge.untrained(flags.FLAGS.config, split=flags.FLAGS.split, output=flags.FLAGS.output)
    return
  if flags.FLAGS.output:
    raise InputError('--output goes with --config; the evaluation of a run is written into its folder')
  if flags.FLAGS.adapters is not None:
    if flags.FLAGS.checkpoint != 'best':
      raise InputError('--checkpoint is of the run in --workdir; --adapters takes the best checkpoint of each')
    judge.compare(flags.FLAGS.workdir, split=flags.FLAGS.split, adapters=flags.FLAGS.adapters)
    return
  judge.run(flags.FLAGS.workdir, split=flags.FLAGS.split, checkpoint=flags.FLAGS.checkpoint)


if __name__ == '__main__':
  sys.exit(cli.run(main))
