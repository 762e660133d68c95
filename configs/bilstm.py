"""The baseline that has read nothing before: a BiLSTM over the words of your texts, trained from nothing.

  python train.py --config=configs/bilstm.py:data=DIR --workdir=runs/bilstm
  python train.py --config=configs/bilstm.py:data=DIR --workdir=runs/glove \\
      --config.model.scratch.vectors=glove.6B.100d.txt
  python train.py --config=configs/bilstm.py:data=DIR,task=tag --workdir=runs/bilstm_ner \\
      --config.model.scratch.tokens=blanks

Data as for configs/classify.py, or as `task` reads them. The vocabulary is that of the training rows; of Chinese text
every character is a word. With `method=head` the vectors of a file stay as they are, and all else trains. `model` is a
folder that such a run was exported to, to go on from; without one a new model is made.

Measured on SST-2 (6,909 rows): accuracy 0.810 on validation, 0.818 on test (95 % interval: 0.799 to 0.835); two minutes
of a core after compiling. On ChnSentiCorp (7,114 Chinese reviews): 0.860 and 0.851 (0.831 to 0.873), five minutes.
"""

from ftlib import recipe


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model='', method='full', optim='adamw', task='classify')
  c = recipe.recipe(task=args.task, method=args.method, optim=args.optim)
  c.model.pretrained, c.model.family = args.model, '' if args.model else 'bilstm'
  c.data.path = args.data
  c.train.epochs = 8.0
  c.train.patience = 3
  c.train.max_length = 256
  recipe.set_rate(c, 2e-3)
  return c
