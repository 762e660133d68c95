"""E2E NLG as in the LoRA paper (Hu et al. 2022): GPT-2 medium and large, rank 4 on queries and values.

  python train.py --config=configs/lora_e2e.py:data=DIR --workdir=runs/e2e
  python train.py --config=configs/lora_e2e.py:data=DIR,model=openai-community/gpt2-large --workdir=runs/e2e_large

Not run here: weights cannot be had on this machine. Published, on the test split (table 3):

| model | method | trainable | BLEU | NIST | METEOR | ROUGE-L | CIDEr |
| --- | --- | --- | --- | --- | --- | --- | --- |
| medium | LoRA | 0.35M | 70.4 ±.1 | 8.85 ±.02 | 46.8 ±.2 | 71.8 ±.1 | 2.53 ±.02 |
| medium | full | 354.92M | 68.2 | 8.62 | 46.2 | 71.0 | 2.47 |
| large | LoRA | 0.77M | 70.4 ±.1 | 8.89 ±.02 | 46.8 ±.2 | 72.0 ±.2 | 2.47 ±.02 |
| large | full | 774.03M | 68.5 | 8.78 | 46.0 | 69.9 | 2.45 |

Rank 4 on queries and values is 393,216 and 737,280 parameters by the paper's own formula, not the 0.35M and 0.77M it
prints. Texts are made by beam search: 10 beams, length penalty 0.8 (0.9 in appendix D), no 4-gram twice, at most 64
tokens; the numbers are those of the E2E challenge's own scripts, over all references of an attribute list.

The settings are those of the authors' README and appendix D, but that a line break stands between attributes and
sentence in place of the token <|endoftext|>. `data` is as in `e2e.py`.
"""

from ftlib import recipe


def get_config(arg=''):
  model = 'openai-community/gpt2-medium'
  args = recipe.arguments(arg, data='', model=model, method='lora', optim='adamw')
  c = recipe.recipe(task='sft', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  c.task.form, c.task.template = 'prompt', 'plain'
  c.task.prompt, c.task.completion, c.task.references = 'mr', 'reference', 'references'
  c.train.epochs = 5.0
  c.train.batch_size, c.train.max_length = 8, 512
  c.optim.learning_rate, c.optim.weight_decay = 2e-4, 0.01
  c.optim.warmup_steps, c.optim.clip_norm = 500, 0.0
  c.objective.label_smoothing = 0.1
  if args.method == 'lora':
    c.method.rank, c.method.alpha, c.method.dropout = 4, 32.0, 0.1
  return c
