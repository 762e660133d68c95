"""What eval.py prints below the metrics: intervals, slices, calibration, and the other run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_WIDEST = 40  # characters of a slice's name


def lines(more: Mapping[str, Any], metric: str) -> list[str]:
  """Of what `ftlib/analysis.py` found; slices are shown by `metric`."""
  out = []
  if 'bootstrap' in more:
    samples, level, without = (more['bootstrap'].get(n) for n in ('samples', 'level', 'without'))
    said = f'in brackets: {level:.0%} intervals of {samples} bootstrap samples'
    out.append(f'  {said}' if samples else '  no intervals: they would take long; --bootstrap=1000 takes that time')
    out += [f'  no interval, for the samples do not say how far it may be off: {", ".join(without)}'] if without else []
  for by, slices in more.get('slices', {}).items():
    out += _slices(by, slices, metric)
  out += _calibration(more.get('calibration'), more.get('calibrated'))
  return out + (_against(more['against']) if 'against' in more else [])


def _slices(by: str, slices: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
  width = min(_WIDEST, max(len(s['slice']) for s in slices))
  out = [f'by {by}: {metric}']
  for one in slices:
    value, spread = one['metrics'].get(metric), one.get('intervals', {}).get(metric)
    number = '     -' if value is None else f'{value:.4f}'
    bounds = '' if spread is None else '  [{:.4f}, {:.4f}]'.format(*spread)
    out.append(f'  {one["slice"][:width]:<{width}}  {one["n"]:>7,}  {number}{bounds}')
  return out


def _calibration(before: Mapping[str, float] | None, after: Mapping[str, Any] | None) -> list[str]:
  if before is None:
    return []
  names = ('ece', 'ece_adaptive', 'brier', 'nll')
  out = ['calibration  ' + '  '.join(f'{n} {before[n]:.4f}' for n in names)]
  if after is not None:
    said = '  '.join(f'{n} {after[n]:.4f}' for n in names)
    out.append(f'  at temperature {after["temperature"]:.3f} ({after["split"]})  {said}')
    out += [f'      note  {note}' for note in after.get('notes', ())]
  return out


def _against(found: Mapping[str, Any]) -> list[str]:
  out = [f'against {found["run"]}, on the same rows']
  width = max(map(len, found['metrics']), default=0)
  out.append(f'  {"":<{width}}      here     there  difference  interval            p (bootstrap)  p (randomization)')
  for name, one in found['metrics'].items():
    line = f'  {name:<{width}}  {one["here"]:8.4f}  {one["there"]:8.4f}  {one["difference"]:+10.4f}'
    if 'interval' in one:
      line += '  [{:+.4f}, {:+.4f}]'.format(*one['interval'])
      line += f'  {one["p_bootstrap"]:13.4f}  {one["p_randomization"]:17.4f}'
    out.append(line)
  if 'mcnemar' in found:
    test = found['mcnemar']
    said = f'right in one alone: {test["only_here"]} here, {test["only_there"]} there'
    out.append(f'  McNemar (exact)  {said}, p {test["p"]:.4f}')
  return out
