"""Eight fake devices before JAX is imported; strict JAX; the compilation cache; tiny models shared by all tests."""

import importlib.metadata
import os
import pathlib

# Little models are compiled far more often than they run: without optimisation a compilation takes a third of the time.
# XLA ends a program that gives it a flag it does not know, so these are for the versions that were tried; and one whose
# devices wait for each other for 40 s.
_FLAGS = {'--xla_force_host_platform_device_count': 8}
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS |= {
    '--xla_backend_optimization_level': 0,
    '--xla_cpu_use_fusion_emitters': 'false',
    '--xla_cpu_parallel_codegen_split_count': 1,
    '--xla_cpu_collective_call_terminate_timeout_seconds': 3600,
  }
_GIVEN = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = ' '.join([*(f'{k}={v}' for k, v in _FLAGS.items() if k not in _GIVEN), _GIVEN]).strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(pathlib.Path.home() / '.cache' / 'ftlib' / 'jax-tests'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
os.environ.setdefault('JAX_NUMPY_RANK_PROMOTION', 'allow')

import jax  # noqa: E402
import pytest  # noqa: E402

from tests import tiny  # noqa: E402
from tests.slow import slow  # noqa: E402

jax.config.update('jax_default_matmul_precision', 'highest')
_LONG = ('tests/contract/test_methods.py', 'tests/resume/test_kill.py')


def pytest_collection_modifyitems(items):
  """The longest files first: several processes take whole files in this order (`make test`), and end together."""
  for item in items:
    if slow(item.nodeid):
      item.add_marker(pytest.mark.slow)
  items.sort(key=lambda item: not item.nodeid.startswith(_LONG))


@pytest.fixture(scope='session')
def tiny_bert(tmp_path_factory) -> pathlib.Path:
  """A Hugging Face folder of a 2-layer BERT with random weights and a WordPiece tokenizer."""
  return tiny.bert_folder(tmp_path_factory.mktemp('tiny_bert'))


@pytest.fixture(scope='session')
def toy_data(tmp_path_factory) -> pathlib.Path:
  """train/validation/test.jsonl whose label a tiny model can learn from single words."""
  return tiny.data_folder(tmp_path_factory.mktemp('toy_data'))


@pytest.fixture
def config(tiny_bert, toy_data):
  """A config on the tiny model and the toy data; `config(method='bitfit', train__steps=3)`."""

  def make(*, method='lora', optim='adamw', data=None, **values):
    return tiny.config(tiny_bert, data or toy_data, method=method, optim=optim, **values)

  return make
