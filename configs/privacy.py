"""Texts classified with differential privacy: what is published of a row is bounded, whatever the row is (DP-SGD).

  pip install 'ftlib[privacy]'
  python train.py --config=configs/privacy.py:data=DIR --workdir=runs/private --config.privacy.delta=1e-6

The gradient of each row is cut to a norm, and noise is added to the sum; epsilon stands on the screen, in summary.json
and in the report (`docs/regularisation.md` says what it means). Large batches and adapters lose the least: the noise is
the same however many rows are in the sum, and grows with the number of what trains. `data` as in `classify.py`;
`delta` is to be well below 1 / rows. Not tuned.

Measured on SST-2 with `--config.data.limit=2000 --config.privacy.delta=1e-4` (40 steps): epsilon 4.93, and an accuracy
of 0.498 on test, which is chance: under this noise so few rows and steps teach LoRA nothing. All 6,909 rows (135 steps)
have epsilon 2.94 at delta 1e-5; what they teach is not measured.
"""

from configs import classify


def get_config(arg=''):
  c = classify.get_config(arg)
  c.train.batch_size = 256
  c.train.epochs = 5.0
  c.train.buckets = 1
  c.optim.clip_norm = 0.0
  c.privacy.noise_multiplier = 1.0
  c.privacy.clip_norm = 0.1
  c.privacy.microbatch = 16
  return c
