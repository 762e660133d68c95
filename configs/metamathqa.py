"""PEFT's own comparison of methods: Llama-3.2-3B learns from MetaMathQA and is asked the test questions of GSM8K.

  python train.py --config=configs/metamathqa.py:data=DIR --workdir=runs/lora
  python train.py --config=configs/metamathqa.py:data=DIR,method=dora --workdir=runs/dora
  python train.py --config=configs/metamathqa.py:data=DIR --workdir=runs/rslora --config.method.rank=64 \\
      --config.method.scaling=rsqrt
  python eval.py --workdir=runs/lora --split=test --checkpoint=last

Not run here: weights and data cannot be had on this machine. Published (huggingface/peft, method_comparison/MetaMathQA,
July 2026, one NVIDIA L40S): the share of the 1,319 test answers that are right, by greedy decoding after step 5000.

| method | in PEFT's table | trainable | right |
| --- | --- | --- | --- |
| sparse | shira/lr_0.0003-random_seed_42 | 9,175,040 | 51.0 % |
| hira | hira/rank32-lr4.5e-3 | 9,175,040 | 51.3 % |
| lora, rank 64, rsqrt | lora/rank64-rslora | 18,350,080 | 51.3 % |
| lora on the MLP, rank 10, alpha 20 | lora/rank10-target-mlp | 9,461,760 | 49.4 % |
| oft | oft/rank32 | 8,171,520 | 49.1 % |
| miss | miss/default | 7,340,032 | 48.7 % |
| lora | lora/rank32 | 9,175,040 | 47.8 % |
| lora, rank 64, alpha 128 | lora/rank64 | 18,350,080 | 47.4 % |
| full | full-finetuning/lr_0.00001 | 3,212,749,824 | 47.2 % |
| dora | lora/rank32-dora | 9,289,728 | 46.9 % |
| lokr | lokr/rank32-factor4-lr0.003 | 2,294,656 | 46.6 % |
| ia3 | ia3/all-attn-5k-lr0.005 | 630,784 | 45.5 % |
| lora_fa | lora/rank32-lorafa (an optimizer of its own) | 3,670,016 | 40.4 % |
| loha | loha/rank32 | 18,350,080 | 39.3 % |
| adalora | adalora/rank32 | 18,353,664 | 37.3 % |
| vera | vera/default | 129,024 | 35.4 % |
| p_tuning | ptuning/default | 28,382,208 | 35.0 % |
| prompt | prompt_tuning/sample_vocab-lr_0.001 | 614,400 | 34.3 % |
| prefix | prefixtuning/lr_0.001 | 11,468,800 | 18.6 % |
| norm | ln_tuning/default | 175,104 | 0.0 % |

`data` is a folder: train with columns `query` and `response` of MetaMathQA, rows of at most 1,300 characters in all;
validation and test with the same columns of GSM8K. Every token counts for the loss, the question's too, as there. Other
than there, full fine-tuning has float32 weights (bfloat16 there), and questions and answers are tokens apart.
"""

from ftlib import recipe

FIELDS = {  # method -> learning rate, its fields
  'adalora': (1e-4, {'init_rank': 64, 'target_rank': 32, 'alpha': 8.0, 'dropout': 0.0, 'total_steps': 5000}),
  'dora': (1e-4, {'rank': 32, 'alpha': 64.0, 'dropout': 0.0}),
  'full': (1e-5, {}),
  'hira': (4.5e-3, {'rank': 32}),
  'ia3': (5e-3, {'target': r'attn/(q|k|v|o)$', 'feedforward': r'mlp/(gate|up|down)$'}),
  'loha': (1e-4, {'rank': 32, 'alpha': 64.0}),
  'lokr': (3e-3, {'rank': 32, 'alpha': 64.0, 'factor': 4}),
  'lora': (1e-4, {'rank': 32, 'alpha': 64.0, 'dropout': 0.0}),
  'lora_fa': (1e-4, {'rank': 32, 'alpha': 64.0, 'dropout': 0.0}),
  'miss': (1e-4, {'rank': 64}),
  'norm': (1e-4, {}),
  'oft': (1e-4, {'blocks': 32, 'neumann_terms': 5}),
  'p_tuning': (1e-4, {'length': 20}),
  'prefix': (1e-3, {'length': 200, 'reparametrise': False, 'std': 1.0}),
  'prompt': (1e-3, {'length': 200, 'init': 'vocab'}),
  'sparse': (3e-4, {'choose': 'random', 'rank': 32, 'target': r'attn/(q|v)$'}),
  'vera': (1e-3, {'rank': 256}),
}


def get_config(arg=''):
  args = recipe.arguments(arg, data='', model='meta-llama/Llama-3.2-3B', method='lora', optim='adamw')
  c = recipe.recipe(task='sft', method=args.method, optim=args.optim)
  c.model.pretrained = args.model
  c.data.path = args.data
  c.task.form, c.task.template = 'prompt', 'bare'
  c.task.prompt, c.task.completion = 'query', 'response'
  c.task.wrap = 'Question: {prompt} Think step by step.\nAnswer:'
  c.task.train_on, c.task.truncate = 'all', 'right'
  c.precision.compute = c.precision.frozen = 'bfloat16'
  c.train.steps, c.train.eval_every = 5000, 250
  c.train.batch_size, c.train.eval_batch_size, c.train.max_length = 4, 50, 768
  c.optim.learning_rate, fields = FIELDS.get(args.method, (1e-4, {}))
  c.optim.weight_decay, c.optim.no_decay = 0.1, ''
  c.optim.schedule, c.optim.warmup = 'cosine', 0.1
  for name, value in fields.items():
    c.method[name] = value
  if args.method == 'adalora':
    c.method.tinit, c.method.tfinal, c.method.interval = 200, 500, 1
  return c
