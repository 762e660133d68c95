"""A method on a tiny model here and the same one of PEFT there, for the tests beside it."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from folders import Loaded, batch_of, load
from numpy.testing import assert_allclose, assert_array_equal
from reference import CLASSES, inputs
from test_reference import fresh, outputs

from ftlib.base import trees
from ftlib.base.types import Flat, Head
from ftlib.models.layers import Embed
from ftlib.peft.method import Method, added

ALL = 'attn/(q|v|o)$|mlp/(up|down)$'


def drawn(method: Method, *, size: float = 0.3) -> Flat:
  """Random values of every adapter parameter: of that size, and around 1 for scales."""
  rng, info = np.random.default_rng(0), method.model.info()
  near = lambda n: float(n.endswith('_scale'))  # noqa: E731
  return {n: np.float32(near(n) + size * rng.normal(size=i.shape)) for n, i in info.items() if added(n)}


def close(logits: Any, theirs: np.ndarray, part: float) -> None:
  """Within this part of the largest logit (or of 1), and never further apart than 1e-4."""
  assert_allclose(logits, theirs, rtol=0, atol=min(1e-4, part * max(1, np.abs(theirs).max())))


def logits_of(method: Method, here: Loaded, adapters: Flat, values: Mapping[str, Any]):
  """What ftlib computes with these adapters."""
  return method.model.apply(trees.unflatten({**trees.flatten(here.params), **adapters}), batch_of(values)).logits


@dataclasses.dataclass(frozen=True)
class Pair:
  """`method` of `module` by `config` on the model `here`, PEFT's model `there`, and {site: its module there}."""

  module: ModuleType
  config: Any
  method: Method
  here: Loaded
  there: Any
  names: dict[str, str]

  @functools.cached_property
  def slots(self) -> dict[str, Any]:
    return {**self.method.model.sites(), **self.method.model.sites(Embed)}

  def own(self, flat: Mapping[str, Any], site: str) -> Flat:
    """A site's parameters by leaf."""
    return {n.rpartition('/')[2]: np.asarray(x) for n, x in flat.items() if n.startswith(f'{site}/adapter/')}

  def state(self) -> dict[str, np.ndarray]:
    """What PEFT saves."""
    import peft

    return {n: x.numpy() for n, x in peft.get_peft_model_state_dict(self.there, save_embedding_layers=False).items()}

  def tensors(self, site: str) -> dict[str, np.ndarray]:
    """What it saves of a site, by suffix."""
    prefix = f'base_model.model.{self.names[site]}.'
    return {n.removeprefix(prefix): x for n, x in self.state().items() if n.startswith(prefix)}

  def to_peft(self, flat: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """{site: {suffix: tensor}}."""
    return {s: self.module.to_peft(self.config, self.own(flat, s), self.slots[s]) for s in self.names}

  def from_peft(self, method: Method | None = None) -> Flat:
    """The parameters in PEFT's model, which are just those that the method (or this one) has."""
    leaves = {s: self.module.from_peft(self.config, self.tensors(s), self.slots[s]) for s in self.names}
    flat = {f'{s}/adapter/{n}': x for s, of in leaves.items() for n, x in of.items()}
    info = (method or self.method).model.info()
    assert {n: x.shape for n, x in flat.items()} == {n: i.shape for n, i in info.items() if added(n)}
    return flat

  def read(self, folder: pathlib.Path) -> Any:
    """The Config that PEFT's folder stands for."""
    values = json.loads((folder / 'adapter_config.json').read_text())
    assert values['peft_type'] == self.module.PEFT_TYPE
    fields = dict(self.module.config_of_peft(values))
    if hasattr(self.module, 'patterns_of_peft'):
      fields |= self.module.patterns_of_peft(values, self.names)
    modules = {f: getattr(self.config, f) for f in ('target', 'also', 'embeddings') if hasattr(self.config, f)}
    return self.module.Config(**fields, **modules)

  def same(self, adapters: Flat, *, method: Method | None = None, there: Any = None) -> np.ndarray:
    """PEFT's logits, which the adapted model and the merged one have too, and the plain model has not."""
    values, method = inputs('bert'), method or self.method
    logits, theirs = logits_of(method, self.here, adapters, values), outputs(there or self.there, values)['logits']
    close(logits, theirs, 1e-5)
    params = trees.unflatten({**trees.flatten(self.here.params), **adapters})
    merged = self.here.model.apply(method.merge(params), batch_of(values)).logits
    close(merged, theirs, 2e-5)
    assert np.abs(logits - self.here.run(batch_of(values)).logits).max() > 0.02
    return theirs


def pair_of(module: ModuleType, fields: Mapping[str, Any], folder: pathlib.Path) -> Pair:
  """The method by `fields` of its Config, nothing of the base trained beside it; `folder` gets the base model."""
  import peft

  config = module.Config(**fields, also='')
  model = fresh('bert', 'classify')
  model.save_pretrained(folder / 'base')
  here = load(folder / 'base', Head('classify', CLASSES))
  method = module.build(config, here.model)
  hf = here.model.hf_names()
  names = {s: (hf.get(f'{s}/kernel') or hf[f'{s}/table']).removesuffix('.weight') for s in method.shown}
  more = module.peft_config(config)
  if hasattr(module, 'peft_patterns'):
    more |= module.peft_patterns(config, names)
  if module.PEFT_TYPE == 'IA3':
    more['feedforward_modules'] = [n for s, n in names.items() if f'{s}/adapter/in_scale' in method.model.info()]
  make = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[module.PEFT_TYPE]
  made = make(**more, target_modules=list(names.values()), task_type='FEATURE_EXTRACTION')
  return Pair(module, config, method, here, peft.get_peft_model(model, made).eval(), names)


def check_from_here(pair: Pair, folder: pathlib.Path, *, size: float = 0.3) -> None:
  """Drawn here, PEFT computes the same: at once, from the folder it then saves, and merged."""
  import peft
  import torch

  adapters = drawn(pair.method, size=size)
  tensors = {
    f'base_model.model.{pair.names[s]}.{n}': x for s, of in pair.to_peft(adapters).items() for n, x in of.items()
  }
  if hasattr(pair.module, 'shared_to_peft'):
    tensors |= pair.module.shared_to_peft(pair.config, pair.slots[next(iter(pair.names))])
  assert {n: x.shape for n, x in tensors.items()} == {n: x.shape for n, x in pair.state().items()}
  state = {n: torch.from_numpy(np.array(x, order='C')) for n, x in tensors.items()}
  assert not peft.set_peft_model_state_dict(pair.there, state).unexpected_keys
  theirs = pair.same(adapters)
  pair.there.save_pretrained(folder / 'adapter', save_embedding_layers=False)
  again = peft.PeftModel.from_pretrained(fresh('bert', 'classify'), folder / 'adapter').eval()
  assert_array_equal(outputs(again, inputs('bert'))['logits'], theirs)
  merged = outputs(pair.there.merge_and_unload(), inputs('bert'))['logits']
  close(merged, theirs, 2e-5)


def check_from_there(pair: Pair, folder: pathlib.Path, *, size: float = 0.3) -> Any:
  """Drawn there, it is the same here, by the settings that PEFT writes, which are returned."""
  import torch

  torch.manual_seed(1)
  with torch.no_grad():
    for name, p in pair.there.named_parameters():
      if p.requires_grad:
        assert any(n in name for n in pair.names.values()), name
        p.add_(size * torch.randn_like(p))
  pair.there.save_pretrained(folder / 'adapter', save_embedding_layers=False)
  config = pair.read(folder / 'adapter')
  method = pair.module.build(config, pair.here.model)
  pair.same(pair.from_peft(method), method=method)
  return config
