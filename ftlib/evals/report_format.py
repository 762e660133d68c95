"""Numbers as people read them: short, with units, thousands set apart by a narrow space."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

_SPACE = '\N{NARROW NO-BREAK SPACE}'


def decimal(value: float) -> str:
  """Four decimals for what lies near [-1, 1], four significant digits beyond, whole numbers as they are."""
  if not math.isfinite(value):
    return str(value)
  if abs(value) <= 1.0:
    return f'{value:.4f}'
  if abs(value) >= 1e6:
    return scaled(value)
  return integer(value) if float(value).is_integer() else f'{value:,.4g}'.replace(',', _SPACE)


def integer(value: float) -> str:
  return f'{round(value):,}'.replace(',', _SPACE)


def percent(share: float) -> str:
  """A share as a percentage of two significant digits, so that 0.08 % does not read 0 %."""
  value = 100 * share
  return f'{value:.0f}{_SPACE}%' if value >= 10 or value == 0 else f'{value:.2g}{_SPACE}%'


def scaled(value: float) -> str:
  """A large count with its power of a thousand: 66 995 716 is '67.0 M'."""
  for power, unit in ((12, 'T'), (9, 'B'), (6, 'M')):
    if abs(value) >= 10**power:
      return f'{value / 10**power:.1f}{_SPACE}{unit}'
  return integer(value)


def size(count: float) -> str:
  """Bytes with a decimal prefix."""
  for power, unit in ((12, 'TB'), (9, 'GB'), (6, 'MB'), (3, 'kB')):
    if abs(count) >= 10**power:
      return f'{count / 10**power:.1f}{_SPACE}{unit}'
  return f'{integer(count)}{_SPACE}B'


def duration(seconds: float) -> str:
  if seconds < 60:
    return f'{seconds:.1f}{_SPACE}s'
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}{_SPACE}h {minutes:02d}{_SPACE}min' if hours else f'{minutes}{_SPACE}min {rest:02d}{_SPACE}s'


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
  """The 95 % interval of a share seen in n draws (Wilson 1927): inside [0, 1] and honest for small n."""
  middle = share + z * z / (2 * n)
  half = z * math.sqrt(max(share * (1 - share), 0) / n + z * z / (4 * n * n))
  return max((middle - half) / (1 + z * z / n), 0.0), min((middle + half) / (1 + z * z / n), 1.0)


def interval(share: float, n: int | None) -> str:
  """'95 % interval 0.8741 to 0.9114', or '' where it is not defined."""
  if not n or n < 1 or not 0 <= share <= 1:
    return ''
  return bounds(*wilson(share, n))


def bounds(low: float, high: float, *, level: float = 0.95) -> str:
  """'95 % interval 0.8741 to 0.9114', each number as a metric is shown."""
  return f'{100 * level:.0f}{_SPACE}% interval {decimal(low)} to {decimal(high)}'


def plain(value: object) -> str:
  """A JSON value in one line, text without quotes."""
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def leaves(tree: Mapping, prefix: str = '') -> dict[str, object]:
  """Nested dicts as one, keys joined by dots."""
  out: dict[str, object] = {}
  for key, value in tree.items():
    name = f'{prefix}{key}'
    out |= leaves(value, f'{name}.') if isinstance(value, Mapping) and value else {name: value}
  return out
