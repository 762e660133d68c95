"""Evaluates a trained run: python eval.py --workdir=runs/quickstart --split=test --checkpoint=best

Writes eval/<split>.json, eval/<split>_predictions.jsonl and report.html into the run folder. `--config.data.path=...`
style changes are not taken: the run's own config holds.
"""

import sys

from ftlib import cli

from absl import flags  # isort: skip - cli sets the environment first

flags.DEFINE_string('workdir', None, 'the folder that train.py wrote')
flags.DEFINE_string('split', 'test', 'train, validation or test')
flags.DEFINE_string('checkpoint', 'best', 'best, last, or the number of a step')


def main() -> None:
  from ftlib import judge

  judge.run(flags.FLAGS.workdir, split=flags.FLAGS.split, checkpoint=flags.FLAGS.checkpoint)


if __name__ == '__main__':
  sys.exit(cli.run(main))
