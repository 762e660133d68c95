"""--help of a config whose sections have sections: every field as its flag is written."""

from tests.cli.conftest import ROOT

CLASSIFY = f'--config={ROOT / "configs" / "classify.py"}:data=DIR,model=./base,method=lora+bitfit'


def test_methods_that_are_combined(program):
  done = program('train.py', CLASSIFY, '--help', '--config.method.lora.rank=3')
  assert (done.status, done.err) == (0, '')
  words = done.out.split()
  assert 'lora.rank=3' in words
  assert 'name=lora+bitfit' in words
  assert any(w.startswith('bitfit.') for w in words)
  assert 'lora={' not in done.out


def test_groups_of_the_optimizer(program):
  group = """--config.optim.groups={'b': {'pattern': 'adapter/b$', 'learning_rate': 1e-2}}"""
  done = program('train.py', CLASSIFY, '--help', group)
  assert (done.status, done.err) == (0, '')
  assert 'groups.b.learning_rate=0.01' in done.out.split()
  assert 'groups={}' in program('train.py', CLASSIFY, '--help').out.split()
