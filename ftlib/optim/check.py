"""Tries an optimizer, of ftlib/optim or of your own, before you train with it.

  python -m ftlib.optim.check my_lab.my_opt [FIELD=VALUE ...]

prints a table: jit, state cut as the parameters on 8 fake CPU devices, bfloat16 parameters, masked groups,
accumulation, checkpoint and exact resume, step count, what a larger gradient does, memory, and time over adamw's. A
check that fails says what to change. FIELD=VALUE changes the optimizer's section, as `--config.optim.FIELD=VALUE` does
in train.py. Exit status: 0 all passed, 1 a check failed, 2 wrong input.

This is a program: it may import every folder, and nothing imports it. `ftlib/optimizer_contract.py` has the checks.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

DEVICES = 8
WIDTH = 120


def prepare() -> None:
  """Eight CPU devices, before JAX is imported; what the user set for other programs does not count here."""
  flags = re.sub(r'--xla_force_host_platform_device_count=\S*', '', os.environ.get('XLA_FLAGS', ''))
  os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count={DEVICES}'.strip()
  os.environ['JAX_PLATFORMS'] = 'cpu'


def subject(words: Sequence[str]) -> Any:
  """What the command line names. Raises `InputError`."""
  from ftlib import optimizer_trial
  from ftlib.base import lookup, settings
  from ftlib.base.errors import InputError
  from ftlib.optim import chain

  if not words or any(w in ('-h', '--help') for w in words):
    known = ', '.join(lookup.names('optim'))
    raise InputError(f'name an optimizer: python -m ftlib.optim.check NAME [FIELD=VALUE ...]\n  known: {known}')
  name, *changes = words
  if '/' in name or name.endswith('.py'):
    dotted = re.sub(r'\.py$', '', name).strip('./').replace('/', '.')
    raise InputError(f'{name!r} is a path; an optimizer is named as a module; did you mean "{dotted}"?')
  module = lookup.component('optim', name, field='optimizer')
  values = {}
  for change in changes:
    field, equals, text = change.partition('=')
    if not equals:
      raise InputError(f'{change!r} is no FIELD=VALUE of the optimizer')
    values[field] = settings.from_text(chain.config_of(module), field, text, where='optim')
  out = optimizer_trial.Subject(module, values)
  _ = out.whole  # what the settings and `build` refuse is wrong input, not a failed check
  return out


def table(findings: Iterable[Any], *, write: Callable[[str], Any] = print) -> bool:
  """Writes each finding as it comes; whether all passed."""
  passed = True
  for finding in findings:
    mark = 'FAILED' if finding.mend else 'ok'
    passed = passed and not finding.mend
    write(_line(finding.check, mark, finding.what))
    if finding.mend:
      write(_line('', '', f'what to change: {finding.mend}'))
  return passed


def _line(check: str, mark: str, text: str) -> str:
  lines = [part for line in text.splitlines() for part in textwrap.wrap(line, WIDTH - 29) or ['']]
  return ('\n' + ' ' * 29).join([f'{check:<20} {mark:<7} {lines[0]}', *lines[1:]])


def main(words: Sequence[str]) -> int:
  """The exit status."""
  from ftlib.base.errors import FtlibError

  try:
    from ftlib import optimizer_contract

    tried = subject(words)
    print(f'{words[0]}: learning rate {tried.config.learning_rate:g}, {_fields(tried)}', flush=True)
    show = lambda line: print(line, flush=True)  # noqa: E731
    passed = table((optimizer_contract.found(check, tried) for check in optimizer_contract.CHECKS), write=show)
  except FtlibError as e:
    print(f'error: {e}', file=sys.stderr)
    return e.exit_code
  print('all checks passed' if passed else 'not all checks passed')
  return 0 if passed else 1


def _fields(tried: Any) -> str:
  import dataclasses

  own = {f.name: getattr(tried.config, f.name) for f in dataclasses.fields(tried.module.Config)}
  own.pop('learning_rate', None)
  return ', '.join(f'{name} {value}' for name, value in own.items()) or 'no fields of its own'


if __name__ == '__main__':
  prepare()
  from ftlib import cli  # noqa: F401 - the compilation cache

  sys.exit(main(sys.argv[1:]))
