"""One optimizer beside the others, with groups and schedules: the head has a schedule of its own and does not decay.

  python train.py --config=configs/optimizers.py:optim=lion,data=DIR --workdir=runs/lion
  python train.py --config=configs/optimizers.py:optim=muon,data=DIR,method=full --workdir=runs/muon
  python train.py --config=configs/optimizers.py:data=DIR --config.optim.groups.head.learning_rate=1e-2 \\
      --workdir=runs/fast_head

The rate is that of configs/classify.py, more for optimizers that want more (`recipe.set_rate`); it wants tuning. An
optimizer with a schedule of its own (schedule-free, l-bfgs) keeps it. docs/optimizers.md has all optimizers,
schedules and fields.

Measured on SST-2 (6,909 rows) with optim=lion and `--config.train.epochs=1`: accuracy 0.860 on validation, 0.858 on
test (95 % interval: 0.842 to 0.874). `python benchmarks/tables/optimizers.py` compares optimizers at an equal budget of
tuning.
"""

import dataclasses

from configs import classify
from ftlib import recipe


def get_config(arg=''):
  c = classify.get_config(arg)
  head = {'pattern': '^head/', 'weight_decay': 0.0}
  own = {f.name for f in dataclasses.fields(recipe.component('optim', c.optim.name).Config)}
  if 'schedule' not in own:
    c.optim.warmup, head['schedule'] = 0.1, 'cosine'
  c.optim.groups = {'head': head}
  c.train.diagnostics = 'norms'
  return c
