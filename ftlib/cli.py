"""What train.py and eval.py share: flags, the environment before JAX is imported, errors as exit statuses.

Importing this file sets the environment; it must come before anything that imports JAX.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import pathlib
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable
from typing import Any

_DEVICES = '--xla_force_host_platform_device_count'
_PATIENCE = {  # seconds until XLA warns, and until it ends the program
  '--xla_cpu_collective_call_warn_stuck_timeout_seconds': 120,
  '--xla_cpu_collective_call_terminate_timeout_seconds': 24 * 3600,
}
_TRIED = ('0.10.', '0.11.', '0.12.')  # versions of jaxlib that have these flags: one that it does not know ends it
_HELP = ('--help', '-help', '-h', '--helpshort', '--helpfull')
_PATH = 'give a path of the right kind that may be read and written'
_ROOM = 'make room on the disk; a run goes on from its last checkpoint by the same command'
_GONE = 'what reads the output has ended; a run goes on from its last checkpoint by the same command'
_FAULTS = {
  **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR), _PATH),
  **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), _PATH),
  **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
  **dict.fromkeys((errno.EIO, errno.ESTALE), 'the disk or the network folder fails; try another'),
  **dict.fromkeys((errno.EMFILE, errno.ENFILE), 'too many files are open; raise the limit with ulimit -n'),
  errno.EPIPE: _GONE,
}
_MEMORY = (
  'the device has no room: lower train.batch_size and train.eval_batch_size, or raise train.accumulate; '
  'model.remat=full and precision.frozen=bfloat16 save memory too (python -m ftlib.shapes tells how much is needed)'
)
_WRITING = """\
A config is a Python file with get_config(arg), and takes arguments:  --config=FILE.py:argument=value,argument=value
or what a run stored:                                                 --config=runs/NAME/config.json
Its fields are changed, in any order, by                              --config.SECTION.FIELD=VALUE
  --config.train.steps=100  --config.train.patience=none  --config.train.grouped=false  --config.optim.final=0.1
  --config.method.name=NAME and --config.optim.name=NAME take another file of ftlib/peft or ftlib/optim, or a module of
  your own by its dotted name
--config=... --help lists the fields of a config with their values."""


def _prepare() -> None:
  """Host devices for a CPU run, and the compilation cache. Both yield to what the user has set.

  XLA runs a batched product of small matrices on one core, so on a CPU the batch is split over as many host devices as
  there are cores, up to 4 (`docs/architecture.md` has the measurement). These wait for each other, on a busy machine
  longer than the 40 s after which XLA would end the program. The flags do nothing on a GPU or TPU.
  """
  given = os.environ.get('XLA_FLAGS', '')
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  flags = {_DEVICES: min(cores, 4)}
  if importlib.metadata.version('jaxlib').startswith(_TRIED):
    flags |= _PATIENCE
  os.environ['XLA_FLAGS'] = ' '.join([given, *(f'{k}={v}' for k, v in flags.items() if k not in given)]).strip()
  cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME', os.path.expanduser('~/.cache'))) / 'ftlib' / 'jax'
  if cache.is_absolute() and os.access(
    next(p for p in (cache, *cache.parents) if os.path.exists(p)), os.W_OK | os.X_OK
  ):
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache))  # JAX would warn of each program it cannot keep
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')


_prepare()


def huge_pages() -> None:
  """Starts the program anew with malloc asking for huge pages, where Linux gives them to those who ask (`madvise`).

  A step on a CPU writes gigabytes of new memory, and on pages of 4 kB the faults cost a fifth of its time. glibc takes
  the setting from the environment alone, when a process starts; a GLIBC_TUNABLES of the user's stays as it is.
  """
  pages = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
  if sys.platform != 'linux' or 'GLIBC_TUNABLES' in os.environ or 'jax' in sys.modules:
    return
  if pages.is_file() and '[madvise]' in pages.read_text():
    os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def define_config() -> None:
  """Gives the program the flags `--config` and `--config.SECTION.FIELD`; `flags.FLAGS.config` is then a ConfigDict."""
  from absl import flags

  flags.DEFINE_string('config', None, 'FILE.py[:argument=value,...], or a config.json of a run')


def run(main: Callable[[], None], argv: list[str] | None = None) -> int:
  """Parses flags, calls `main()`, and gives the exit status.

  0 done, 2 wrong input or config, or a machine that gives no file or room; 3 diverged, 130 and 143 stopped by a signal;
  1 is a bug in ftlib. What a user can mend is printed on stderr without a traceback, unless `--traceback` is given.
  """
  from absl import flags

  from ftlib.base.errors import FtlibError

  if argv is None:
    huge_pages()
  argv = list(sys.argv if argv is None else argv)
  if 'traceback' not in flags.FLAGS:
    flags.DEFINE_bool('traceback', False, 'show the traceback of an error')
  shows = any(re.fullmatch(r'--?traceback(=(true|1))?', a) for a in argv)
  try:
    wants_help = any(a in _HELP for a in argv)
    _parse(main, [a for a in argv if a not in _HELP])
    if wants_help:
      print(_help(main))
    else:
      main()
  except KeyboardInterrupt:
    print('stopped outside of training; nothing that was saved is lost', file=sys.stderr)
    return 130
  except Exception as e:
    text = str(e) if isinstance(e, FtlibError) else _of_the_machine(e)
    if not text:
      raise
    if isinstance(e, BrokenPipeError):  # Python flushes the output once more at the end
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if shows:
      traceback.print_exception(e)
    print(f'error: {text}', file=sys.stderr)
    return getattr(e, 'exit_code', 2)
  return 0


def _of_the_machine(e: Exception) -> str:
  """What is said of an error that no change of ftlib mends: paths, disk, memory; '' of any other."""
  if isinstance(e, OSError) and e.errno in _FAULTS:
    where = f'{os.fsdecode(e.filename)[:300]}: ' if isinstance(e.filename, str | bytes | os.PathLike) else ''
    return f'{where}{e.strerror}\n  {_FAULTS[e.errno]} (--traceback shows where it came up)'
  if isinstance(e, RuntimeError) and 'RESOURCE_EXHAUSTED' in str(e):  # JAX's
    return f'{" ".join(str(e).split())[:300]}\n  {_MEMORY}'
  return ''


def _parse(main: Callable[[], None], argv: list[str]) -> None:
  """Sets `flags.FLAGS`. Raises `InputError`."""
  from absl import flags

  from ftlib.base.errors import InputError, did_you_mean

  rest, changes = _separated(argv)
  program = pathlib.Path(argv[0]).name
  own = _flags(main)
  try:
    words = flags.FLAGS(rest)[1:]
  except flags.UnrecognizedFlagError as e:
    name = e.flagname.lstrip('-').partition('=')[0]
    fields = '; fields of the config are written --config.SECTION.FIELD=VALUE' if 'config' in own else ''
    listed = ', '.join(f'--{n}' for n in own)
    raise InputError(f'--{name} is no flag of {program}{did_you_mean(name, own)}\n  flags: {listed}{fields}') from e
  except flags.Error as e:
    raise InputError(' '.join(str(e).split())) from e
  if words:
    near = f'; did you mean --config={words[0]}?' if re.search(r'\.(py|json)(:|$)', words[0]) else ''
    raise InputError(f'{words[0]!r} is no flag of {program}{near}\n  flags are written --name=value')
  if 'config' not in own:
    if changes:
      raise InputError(f'--config.{changes[0][0]}: {program} takes no config; the one that the run was made with holds')
  elif flags.FLAGS.config:
    from ftlib import config_file

    flags.FLAGS.config = config_file.load(flags.FLAGS.config, changes)
  elif changes:
    raise InputError(f'--config.{changes[0][0]} changes a config, and there is none; give --config=configs/NAME.py')


def _separated(argv: list[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
  """(other flags, [(field, text)] of the flags `--config.FIELD=TEXT`); TEXT may be the next word."""
  rest, changes = [], []
  words = iter(range(len(argv)))
  for i in words:
    found = re.fullmatch(r'--?(no)?config\.([^=]*)(?:=(.*))?', argv[i], re.S)
    if not found:
      rest.append(argv[i])
      continue
    value = 'false' if found[1] else found[3]
    if value is None and i + 1 < len(argv) and not argv[i + 1].startswith('-'):
      value = argv[next(words)]
    changes.append((found[2], value))
  return rest, changes


def _flags(main: Callable[[], None]) -> dict[str, Any]:
  """The flags that the program and this file define, by name; absl and other libraries have more."""
  from absl import flags

  by_module = flags.FLAGS.flags_by_module_dict()
  program = sys.argv[0] if main.__module__ == '__main__' else main.__module__
  found = [f for name in (program, __name__) for f in by_module.get(name, [])]
  return {f.name: f for f in sorted(found, key=lambda f: f.name == 'traceback')}


def _help(main: Callable[[], None]) -> str:
  """One screen: what the program is for, its flags and how configs are written; with a config, its fields."""
  from absl import flags

  own = _flags(main)
  parts = [(main.__globals__.get('__doc__') or '').strip()]
  lines = [(f'--{n}' + ('=...' if not f.boolean else ''), f.help, f.default) for n, f in own.items()]
  parts.append(
    'Flags\n'
    + '\n'.join(f'  {n:<18} {text}' + (f' (default: {default})' if default else '') for n, text, default in lines)
  )
  config = flags.FLAGS.config if 'config' in own else None
  if config is not None:
    parts.append('Fields, as they stand now: --config.SECTION.FIELD=VALUE\n' + _fields(config.to_dict()))
  elif 'config' in own:
    files = sorted(str(p) for p in pathlib.Path('configs').glob('[a-z]*.py'))
    here = textwrap.fill(f'Configs here: {", ".join(files)}', width=120, subsequent_indent='  ', break_long_words=False)
    parts.append(_WRITING + (f'\n{here}' if files else ''))
  return '\n\n'.join(parts)


def _leaves(section: dict[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
  """The fields of a section, those of a section in the section as 'lora.rank'."""
  out = []
  for name, value in section.items():
    inside = isinstance(value, dict) and value
    out += _leaves(value, f'{prefix}{name}.') if inside else [(f'{prefix}{name}', value)]
  return out


def _fields(config: dict[str, Any]) -> str:
  plain = lambda v: str(v).lower() if v is None or isinstance(v, bool) else v  # noqa: E731 - as they are written
  lines = []
  for section, values in config.items():
    fields = _leaves(values) if isinstance(values, dict) else [('', values)]
    text = '  '.join(f'{k}={plain(v)}'.lstrip('=') for k, v in fields)
    lines.append(
      textwrap.fill(
        f'  {section:<12}{text}',
        width=max(60, min(120, shutil.get_terminal_size().columns)),
        subsequent_indent=' ' * 14,
        break_long_words=False,
        break_on_hyphens=False,
      )
    )
  return '\n'.join(lines)
