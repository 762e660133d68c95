"""The device mesh, and which axis of which array lies along it.

A mesh has the axes `data` and `fsdp`. The batch is split over both; a parameter is split over `fsdp` along the first
of its logical axes, in the order of `RULES`, that divides; optimizer state follows its parameter.
"""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ftlib.base.errors import InputError, did_you_mean
from ftlib.base.types import ParamInfo

AXES = ('data', 'fsdp')
RULES = (  # logical axis -> mesh axis, by preference
  ('vocab', 'fsdp'),
  ('mlp', 'fsdp'),
  ('embed', 'fsdp'),
  ('embed_out', 'fsdp'),
  ('heads', 'fsdp'),
  ('positions', 'fsdp'),
)


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh and the shardings that follow from it."""

  mesh: Mesh

  @property
  def replicated(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def batch(self) -> NamedSharding:
    """Dimension 0 over all devices."""
    return NamedSharding(self.mesh, PartitionSpec(AXES))

  @property
  def shards(self) -> int:
    """Into how many pieces the batch is cut."""
    return math.prod(self.mesh.shape.values())

  def param(self, info: ParamInfo) -> NamedSharding:
    """The sharding of one parameter."""
    ways = self.mesh.shape['fsdp']
    if ways > 1:
      for logical, mesh_axis in RULES:
        for dim, axis in enumerate(info.axes):
          if axis == logical and info.shape[dim] % ways == 0:
            return NamedSharding(self.mesh, PartitionSpec(*[None] * dim, mesh_axis))
    return self.replicated

  def describe(self) -> str:
    """'data=4, fsdp=2 on 8 cpu devices'."""
    devices = self.mesh.devices.reshape(-1)
    sizes = ', '.join(f'{k}={v}' for k, v in self.mesh.shape.items())
    return f'{sizes} on {len(devices)} {devices[0].device_kind} device{"s" * (len(devices) > 1)}'


def build(shape: str, *, batch: int) -> Layout:
  """The layout of a mesh written 'data=4,fsdp=2' (or '4,2'); '' takes as many devices for `data` as divide `batch`.

  Raises `InputError` where the mesh wants more devices than there are or does not divide the batch.
  """
  devices = jax.devices()
  sizes = _parse(shape) if shape.strip() else {'data': math.gcd(batch, len(devices)), 'fsdp': 1}
  need = math.prod(sizes.values())
  if need > len(devices):
    raise InputError(
      f'mesh.shape={shape!r} wants {need} devices; there {"is" if len(devices) == 1 else "are"} {len(devices)}\n'
      "  lower it, or leave it empty ('') for as many devices as divide the batch"
    )
  if batch % need:
    raise InputError(
      f'a batch of {batch} rows does not divide over mesh.shape={shape!r} ({need} devices); '
      f'change train.batch_size (or train.accumulate) to a multiple of {need}'
    )
  grid = np.asarray(devices[:need]).reshape([sizes[a] for a in AXES])
  return Layout(Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES)))


def fits(shape: str) -> bool:
  """Whether there are as many devices as a mesh wants."""
  return not shape.strip() or math.prod(_parse(shape).values()) <= len(jax.devices())


def _parse(shape: str) -> dict[str, int]:
  sizes, seen = dict.fromkeys(AXES, 1), set()
  parts = [p.strip() for p in re.split(r'[,x]', shape.strip(' ()[]')) if p.strip()]
  for i, part in enumerate(parts):
    name, _, number = part.rpartition('=')
    name = name.strip() or (AXES[i] if i < len(AXES) else '')
    if name not in sizes:
      raise InputError(
        f'mesh.shape={shape!r}: unknown axis {name or part!r}{did_you_mean(name, AXES)}; axes are {AXES}'
      )
    if not number.strip().isdigit() or int(number) < 1:
      raise InputError(f'mesh.shape={shape!r}: {part!r} is no positive size; write it like data=4,fsdp=2')
    if name in seen:
      raise InputError(f'mesh.shape={shape!r}: axis {name!r} stands there twice')
    seen.add(name)
    sizes[name] = int(number)
  return sizes
