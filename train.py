"""Fine-tunes: python train.py --config=configs/quickstart.py --workdir=runs/quickstart

The same command again resumes. Exit status: 0 done, 2 wrong input or config, 3 diverged, 130 and 143 stopped by a
signal after saving.
"""

import sys

from ftlib import cli

from absl import flags  # isort: skip - cli sets the environment first

cli.define_config()
flags.DEFINE_string('workdir', None, 'the folder that the run writes to, and resumes from')
flags.DEFINE_integer('preview', None, 'prints so many training rows with supervised tokens marked, and ends')


def main() -> None:
  from ftlib import fine_tune

  if flags.FLAGS.preview is not None:
    fine_tune.preview(flags.FLAGS.config, flags.FLAGS.preview)
    return
  fine_tune.run(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == '__main__':
  sys.exit(cli.run(main))
