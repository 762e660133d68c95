"""Answers that are generated and scored: trained as `ftlib/tasks/sft.py`, and at each evaluation the model answers the
rows' prompts, and its answers are compared with theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.settings import setting
from ftlib.data.labels import Columns
from ftlib.evals import text_metrics
from ftlib.generation import settings as generation
from ftlib.tasks import sft
from ftlib.tasks.lm import HEADLESS as HEADLESS
from ftlib.tasks.lm import METRICS

OBJECTIVE = 'language'


@dataclasses.dataclass(frozen=True)
class Config(sft.Config):
  """Fields of `ftlib/tasks/sft.py`, then: `metrics`: groups of `ftlib/evals/text_metrics.py`, with commas between.
  `best`: the scalar of these that "best" means, '' for the first. `answered`: how many rows of a split are answered,
  from its first on, 0 for all. The rest as in `ftlib/generation/settings.py`; `stop`: one text, '' for none."""

  metrics: str = 'rouge,length'
  best: str = ''
  answered: int = setting(0, low=0)
  max_new_tokens: int = setting(128, low=1)
  sample: bool = False
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  num_beams: int = setting(1, low=1)
  length_penalty: float = 1.0
  stop: str = ''
  batch_size: int = setting(16, low=1)

  @property
  def generation(self) -> generation.Settings:
    """What a generator is asked for."""
    own = {f.name for f in dataclasses.fields(self)} - {'stop'}
    same = {f.name: getattr(self, f.name) for f in dataclasses.fields(generation.Settings) if f.name in own}
    return generation.Settings(**same, stop=(self.stop,) if self.stop else ())


def columns(config: Config) -> Columns:
  """What is read of the data."""
  return sft.columns(config)


def build(config: Config, *, train: Sequence[Mapping[str, Any]] | None, known: list | None) -> Generate:
  """The task. Raises `InputError` for unknown metrics and settings of generation that are wrong."""
  generation.check(config.generation, field='task.')
  scalars = _scalars(config)
  best = config.best or next((n for n, higher in scalars.items() if higher is not None), 'perplexity')
  if best not in {**METRICS, **scalars}:
    raise InputError(
      f'task.best={best} is no metric of task.metrics={config.metrics}{did_you_mean(best, scalars)}\n'
      f'  known: {", ".join([*scalars, *METRICS])}'
    )
  return Generate(config, metric=best)


def _scalars(config: Config) -> dict[str, bool | None]:
  found = [text_metrics.GROUPS[g][1] for g in text_metrics.groups(config.metrics)]
  return {n: higher for scalars in found for n, higher in scalars.items()}


@dataclasses.dataclass(frozen=True)
class Generate(sft.Sft):
  """The task; see `ftlib/tasks/task.py`. `prediction` is, among predictions, the answer to each row, None for rows that
  were not asked."""

  @property
  def about(self) -> str:
    return f'{super().about}, scored by {self.config.metrics}'

  @property
  def metric_names(self) -> dict[str, bool]:
    return {**METRICS, **{n: h for n, h in _scalars(self.config).items() if h is not None}}

  @property
  def generation(self) -> generation.Settings:
    """What a generator is asked for at an evaluation."""
    return self.config.generation

  def asked(self, rows: int) -> int:
    """How many of so many rows are answered."""
    return min(rows, self.config.answered or rows)

  def judged(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> dict[str, float]:
    """The scalars of `task.metrics` over rows and the answers to them."""
    names = text_metrics.groups(self.config.metrics)
    return text_metrics.scores(names, [a.strip() for a in answers], [self.references(row) for row in rows])

  def references(self, row: Mapping[str, Any]) -> list[str]:
    """The right answers to a row."""
    given = row.get(self.config.references) if self.config.references else None
    found = [given] if isinstance(given, str) else list(given or [])
    return [r.strip() for r in found] or [self.answer(row).strip()]

  def records(self, rows: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray]) -> Iterator[dict]:
    for i, row in enumerate(rows):
      yield {
        'id': row.get('id', i),
        'prompt': self.question(row),
        'prediction': predictions['prediction'][i],
        'reference': self.answer(row),
        **self._scores(predictions, i),
      }
