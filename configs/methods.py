"""One method beside the others: the same model, data, batches and schedule, and a learning rate of the method's own.

  python train.py --config=configs/methods.py:method=dora,data=DIR --workdir=runs/dora
  python benchmarks/tables/methods.py                        (all of them, 3 seeds, beside PEFT)

The rates are first guesses, of the size that the papers use for encoders; they are not tuned yet, and the table is not
measured yet (`benchmarks/README.md` has it when it is).
"""

from configs import classify

RATES = {
  'full': 1e-4,
  'last_n': 3e-4,
  'head': 1e-2,
  'bitfit': 5e-3,
  'norm': 5e-3,
  'ia3': 2e-2,
  'prefix': 1e-2,
  'p_tuning_v2': 1e-2,
  'prompt': 3e-2,
  'p_tuning': 1e-2,
  'vera': 1e-2,
  'oft': 1e-3,
  'sparse': 3e-3,
  'compacter': 5e-3,
  'gradual': 2e-4,
}


def get_config(arg=''):
  c = classify.get_config(arg)
  c.train.buckets = 2
  c.optim.learning_rate = RATES.get(c.method.name, 3e-3)
  return c
