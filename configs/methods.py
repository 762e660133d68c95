"""One method beside the others: the same model, data, batches and schedule, and a learning rate of the method's own.

  python train.py --config=configs/methods.py:method=dora,data=DIR --workdir=runs/dora
  python benchmarks/tables/methods.py                        (all of them, 3 seeds, beside PEFT)

The rates under "tuned" come from `--tune` of that command (1,000 rows of sst2, one epoch in batches of 16, one seed,
rows apart from the table's), with the accuracy that they reached; benchmarks/results/methods_rates.jsonl has all that
was tried. The others are first guesses, of the size that the papers use for encoders. The table itself is not measured
yet.
"""

from configs import classify

RATES = {
  # tuned
  'adalora': 2.7e-2,  # 0.800
  'bitfit': 5e-3,  # 0.745
  'compacter': 5e-3,  # 0.782
  'dora': 3e-3,  # 0.777
  'full': 3e-4,  # 0.823
  'gradual': 1.8e-3,  # 0.765
  'head': 0.27,  # 0.670
  'hira': 2.7e-2,  # 0.797
  'houlsby': 3e-3,  # 0.780
  'ia3': 6e-2,  # 0.795
  # not yet
  'last_n': 3e-4,
  'norm': 5e-3,
  'prefix': 1e-2,
  'p_tuning_v2': 1e-2,
  'prompt': 3e-2,
  'p_tuning': 1e-2,
  'vera': 1e-2,
  'oft': 1e-3,
  'sparse': 3e-3,
}


def get_config(arg=''):
  c = classify.get_config(arg)
  c.train.buckets = 2
  c.optim.learning_rate = RATES.get(c.method.name, 3e-3)
  return c
