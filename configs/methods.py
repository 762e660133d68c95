"""One method beside the others: the same model, data, batches and schedule, and a learning rate of the method's own.

  python train.py --config=configs/methods.py:method=dora,data=DIR --workdir=runs/dora
  python benchmarks/tables/methods.py                        (all of them, 3 seeds, beside PEFT)

The command reads the first token (`task.pooling=cls`), as PEFT's side does; this recipe alone reads what the model's
folder says. The rates come from `--tune` of that command (1,000 rows of sst2, one epoch in batches of 16, one seed,
and rows apart from the table's), with the accuracy that they reached; benchmarks/results/methods_rates.jsonl has all
that was tried. After these 63 steps prefix, p_tuning, prompt and sparse are hardly above the larger class, 0.552. The
accuracies of the table, after 125 steps of 8 rows, stand in the README.
"""

from configs import classify
from ftlib import recipe

RATES = {
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
  'last_n': 9e-4,  # 0.772
  'loha': 9e-3,  # 0.787
  'lokr': 2.7e-2,  # 0.782
  'lora': 3e-3,  # 0.777
  'lora_fa': 2.7e-2,  # 0.777
  'loreft': 9e-3,  # 0.705
  'miss': 3e-3,  # 0.787
  'norm': 5e-3,  # 0.782
  'oft': 3e-3,  # 0.802
  'p_tuning': 3.3e-3,  # 0.560
  'p_tuning_v2': 9e-2,  # 0.730
  'parallel': 1e-3,  # 0.787
  'pfeiffer': 3e-3,  # 0.807
  'prefix': 1.1e-3,  # 0.552
  'prompt': 3e-2,  # 0.588
  'sparse': 1e-3,  # 0.618
  'vera': 9e-2,  # 0.800
}


def get_config(arg=''):
  c = classify.get_config(arg)
  c.train.buckets = 2
  recipe.set_rate(c, RATES.get(c.method.name, 3e-3))
  return c
