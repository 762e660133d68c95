"""One optimizer beside the others, with groups and schedules: the head learns faster and on a schedule of its own.

  python train.py --config=configs/optimizers.py:optim=lion,data=DIR --workdir=runs/lion
  python train.py --config=configs/optimizers.py:optim=muon,data=DIR,method=full --workdir=runs/muon
  python train.py --config=configs/optimizers.py:data=DIR --config.optim.groups.head.learning_rate=1e-2 \\
      --workdir=runs/fast_head

The rate is that of configs/classify.py, or the optimizer file's own default where it has one; it wants tuning. Not
measured: `python benchmarks/tables/optimizers.py` compares them at an equal budget of tuning. docs/optimizers.md has
all optimizers, schedules and fields.
"""

from configs import classify
from ftlib import recipe
from ftlib.optim import chain


def get_config(arg=''):
  c = classify.get_config(arg)
  own = recipe.component_section('optim', c.optim.name).learning_rate
  if own != chain.Common().learning_rate:
    c.optim.learning_rate = own
  c.optim.warmup = 0.1
  c.optim.groups = {'head': {'pattern': '^head/', 'schedule': 'cosine', 'weight_decay': 0.0}}
  c.train.diagnostics = 'norms'
  return c
