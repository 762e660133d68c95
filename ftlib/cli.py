"""What train.py and eval.py share: flags, the environment before JAX is imported, errors as exit statuses.

Importing this file sets the environment; it must come before anything that imports JAX.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable

_DEVICES = '--xla_force_host_platform_device_count'


def _prepare() -> None:
  """Host devices for a CPU run, and the compilation cache. Both yield to what the user has set.

  XLA runs a batched product of small matrices on one core, so on a CPU the batch is split over as many host devices as
  there are cores, up to 4 (`docs/architecture.md` has the measurement). The flag does nothing on a GPU or TPU.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  if _DEVICES not in flags:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    os.environ['XLA_FLAGS'] = f'{flags} {_DEVICES}={min(cores, 4)}'.strip()
  cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME', pathlib.Path.home() / '.cache')) / 'ftlib' / 'jax'
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache))
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')


_prepare()


def run(main: Callable[[], None], argv: list[str] | None = None) -> int:
  """Parses flags, calls `main()`, and gives the exit status.

  0 done, 2 wrong input or config, 3 diverged, 130 and 143 stopped by a signal; 1 is a bug in ftlib. What a user can
  mend is printed on stderr without a traceback, unless `--traceback` is given.
  """
  from absl import flags
  from ml_collections import config_flags

  from ftlib.base.errors import FtlibError, InputError

  argv = list(sys.argv if argv is None else argv)
  show = '--traceback' in argv
  if not any(f == 'traceback' for f in flags.FLAGS):
    flags.DEFINE_bool('traceback', False, 'show the traceback of an error')
    config_flags.DEFINE_config_file('config', None, 'a file of configs/, with :argument=value,... behind it')
  try:
    try:
      rest = flags.FLAGS(_components_as_arguments(argv))
    except FtlibError:
      raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError, SyntaxError) as e:
      raise InputError(_flag_error(e, argv)) from e
    if len(rest) > 1:
      raise InputError(f'{rest[1]!r} is no flag; flags are written --name=value')
    main()
  except FtlibError as e:
    _print(e, show)
    return e.exit_code
  except KeyboardInterrupt:
    print('stopped before training began; nothing was lost', file=sys.stderr)
    return 130
  return 0


def _components_as_arguments(argv: list[str]) -> list[str]:
  """`--config.method.name=dora` as the recipe's argument `method=dora`, which fills the section."""
  names = {}
  rest = []
  for arg in argv:
    found = re.fullmatch(r'--?config\.(method|optim)\.name=(.+)', arg)
    if found:
      names[found[1]] = found[2]
    else:
      rest.append(arg)
  if not names:
    return argv
  extra = ','.join(f'{k}={v}' for k, v in names.items())
  out = []
  for arg in rest:
    found = re.fullmatch(r'(--?config=.*?\.py)(:(.*))?', arg)
    out.append(f'{found[1]}:{found[3]},{extra}' if found and found[3] else f'{found[1]}:{extra}' if found else arg)
  return out


def _flag_error(e: Exception, argv: list[str]) -> str:
  """One line for what absl and ml_collections raise, with the config key in question."""
  from ml_collections import config_flags  # noqa: F401 - its errors are parsed here

  text = str(e).strip() or type(e).__name__
  text = re.sub(r'^(Error|Failed) parsing.*?: ', '', text.split('\nUsage')[0])
  paths = [a.split('=', 1)[1].split(':')[0] for a in argv if re.match(r'--?config=', a)]
  if not paths and 'config' in text:
    return 'give a config: --config=configs/quickstart.py'
  if paths and not pathlib.Path(paths[0]).exists():
    folder = pathlib.Path(paths[0]).parent
    from ftlib.base.errors import did_you_mean

    near = did_you_mean(pathlib.Path(paths[0]).name, [p.name for p in folder.glob('*.py')]) if folder.is_dir() else ''
    return f'--config={paths[0]}: there is no such file{near}'
  return text


def _print(e: Exception, show: bool) -> None:
  if show:
    traceback.print_exception(e)
  print(f'error: {e}', file=sys.stderr)
