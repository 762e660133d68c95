"""GLUE as in the LoRA paper (Hu et al. 2022): RoBERTa base and large, rank 8 on queries and values.

  python train.py --config=configs/lora_glue.py:task=mnli,data=MNLI --workdir=runs/mnli
  python train.py --config=configs/lora_glue.py:task=rte,first=runs/mnli --workdir=runs/rte
  python train.py --config=configs/lora_glue.py:task=cola,model=FacebookAI/roberta-large --workdir=runs/cola

Not run here: weights and data cannot be had on this machine. Published, on the validation split (table 2; Matthews'
correlation for CoLA, Pearson's for STS-B, accuracy for the rest, of MNLI over both its validation splits):

| model | trainable | mnli | sst2 | mrpc | cola | qnli | qqp | rte | stsb | mean |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| base | 0.3M | 87.5 ±.3 | 95.1 ±.2 | 89.7 ±.7 | 63.4 ±1.2 | 93.3 ±.3 | 90.8 ±.1 | 86.6 ±.7 | 91.5 ±.2 | 87.2 |
| large | 0.8M | 90.6 ±.2 | 96.2 ±.5 | 90.9 ±1.2 | 68.2 ±1.9 | 94.9 ±.3 | 91.6 ±.1 | 87.4 ±2.5 | 92.6 ±.2 | 89.0 |

Trainable are 294,912 and 786,432 parameters beside the head (of two classes: 592,130 and 1,051,650). Numbers are
medians over 5 seeds of the best epoch of each: `best` is the checkpoint that eval.py takes.

What it takes to repeat them:
- MRPC, RTE and STS-B start from the adapter that MNLI was learnt with: `first` is that run, and the head is new.
  Such intermediate training (Phang et al. 2018) is worth much: without it, VeRA's and GaLore's authors got LoRA to 78.7
  and 79.1 on RTE.
- Batch sizes are those of appendix D. The authors' scripts take as many a device, on 8 (CoLA with RoBERTa base: on 2).
- Alpha is 16 as in the scripts and for RoBERTa large; appendix D says 8 for RoBERTa base, with which the authors' MNLI
  adapter scores 66.6 (microsoft/LoRA, issue 151). Weight decay of 0.1 and no dropout before A are the scripts' too.
- The hub's MNLI has two validation splits and none of that name: `data` is a folder with both in validation.jsonl.

`data` is a source as in `classify.py`, by default the hub's. Other models and methods take the settings of base.
"""

from ftlib import recipe
from ftlib.base.errors import InputError, did_you_mean

COLUMNS = {
  'mnli': ('premise', 'hypothesis'),
  'sst2': ('sentence', ''),
  'mrpc': ('sentence1', 'sentence2'),
  'cola': ('sentence', ''),
  'qnli': ('question', 'sentence'),
  'qqp': ('question1', 'question2'),
  'rte': ('sentence1', 'sentence2'),
  'stsb': ('sentence1', 'sentence2'),
}
BASE = {  # batch size, epochs, learning rate, tokens a row
  'mnli': (16, 30, 5e-4, 512),
  'sst2': (16, 60, 5e-4, 512),
  'mrpc': (16, 30, 4e-4, 512),
  'cola': (32, 80, 4e-4, 512),
  'qnli': (32, 25, 4e-4, 512),
  'qqp': (16, 25, 5e-4, 512),
  'rte': (32, 80, 5e-4, 512),
  'stsb': (16, 40, 4e-4, 512),
}
LARGE = {
  'mnli': (4, 10, 3e-4, 128),
  'sst2': (4, 10, 4e-4, 128),
  'mrpc': (4, 20, 3e-4, 512),
  'cola': (4, 20, 2e-4, 128),
  'qnli': (4, 10, 2e-4, 512),
  'qqp': (4, 20, 3e-4, 512),
  'rte': (8, 20, 4e-4, 512),
  'stsb': (8, 30, 2e-4, 512),
}


def get_config(arg=''):
  model = 'FacebookAI/roberta-base'
  args = recipe.arguments(arg, data='', model=model, method='lora', optim='adamw', task='sst2', first='')
  if args.task not in COLUMNS:
    known = ', '.join(COLUMNS)
    raise InputError(f'task={args.task} is no task of GLUE that is here{did_you_mean(args.task, COLUMNS)}; {known}')
  scores = args.task == 'stsb'
  c = recipe.recipe(task='similarity' if scores else 'classify', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data or ('' if args.task == 'mnli' else f'hf:nyu-mll/glue:{args.task}')
  c.task.text, c.task.pair = COLUMNS[args.task]
  c.task.label = 'label'
  table = LARGE if 'roberta-large' in args.model else BASE
  c.train.batch_size, epochs, c.optim.learning_rate, c.train.max_length = table[args.task]
  c.train.epochs = float(epochs)
  c.optim.weight_decay, c.optim.warmup = 0.1, 0.06
  if args.method == 'lora':
    c.method.rank, c.method.alpha, c.method.dropout = 8, 16.0, 0.0
  if args.method == 'full':
    c.optim.learning_rate = 2e-5
  if args.task == 'cola':
    c.checkpoint.metric = 'mcc'
  if args.first:
    c.model.adapter, c.model.adapter_parts = args.first, 'encoder,adapter'
  return c
