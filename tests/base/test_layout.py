"""Meshes as they are written, and which axis of a parameter is cut."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from ftlib.base import layout
from ftlib.base.errors import InputError
from ftlib.base.types import ParamInfo


def sizes(shape: str, batch: int = 64) -> dict[str, int]:
  return dict(layout.build(shape, batch=batch).mesh.shape)


@pytest.mark.parametrize(
  ('shape', 'wanted'),
  [
    ('data=4,fsdp=2', (4, 2)),
    ('fsdp=2,data=4', (4, 2)),
    ('fsdp=8', (1, 8)),
    ('data=1', (1, 1)),
    ('4,2', (4, 2)),
    ('4x2', (4, 2)),
    ('(4, 2)', (4, 2)),
    (' data = 2 , fsdp = 1 ', (2, 1)),
    ('8', (8, 1)),
  ],
)
def test_forms(shape, wanted):
  assert sizes(shape) == dict(zip(('data', 'fsdp'), wanted, strict=True))


@pytest.mark.parametrize(('batch', 'data'), [(64, 8), (12, 4), (6, 2), (7, 1), (1, 1)])
def test_no_shape_takes_the_devices_that_divide_the_batch(batch, data):
  assert sizes('', batch) == {'data': data, 'fsdp': 1}


@pytest.mark.parametrize(
  ('shape', 'batch', 'words'),
  [
    ('data=16', 16, 'wants 16 devices; there are 8'),
    ('data=4', 6, 'a batch of 6 rows does not divide'),
    ('data=4,fsdp=2', 12, 'multiple of 8'),
    ('dat=4', 8, 'did you mean "data"'),
    ('data=x', 8, 'no positive size'),
    ('data=0', 8, 'no positive size'),
    ('data=-2', 8, 'no positive size'),
    ('2,2,2', 8, 'unknown axis'),
    ('data=2,data=4', 8, "'data' stands there twice"),
  ],
)
def test_errors_name_the_field(shape, batch, words):
  with pytest.raises(InputError) as e:
    layout.build(shape, batch=batch)
  assert words in str(e.value)
  assert 'mesh.shape' in str(e.value)


def spec(info: ParamInfo, shape: str = 'data=4,fsdp=2') -> PartitionSpec:
  return layout.build(shape, batch=64).param(info).spec


@pytest.mark.parametrize(
  ('shape', 'axes', 'wanted'),
  [
    ((32, 64), ('embed', 'mlp'), PartitionSpec(None, 'fsdp')),  # mlp is preferred to embed
    ((64, 32), ('mlp', 'embed'), PartitionSpec('fsdp')),
    ((32, 4, 8), ('embed', 'heads', 'head_dim'), PartitionSpec('fsdp')),
    ((30522, 31), ('vocab', 'embed'), PartitionSpec('fsdp')),
    ((2, 32, 63), ('layers', 'embed', 'mlp'), PartitionSpec(None, 'fsdp')),  # mlp does not divide: embed
    ((63, 31), ('mlp', 'embed'), PartitionSpec()),  # nothing divides: whole everywhere
    ((4, 8), ('head_dim', 'rank'), PartitionSpec()),
    ((32, 8), ('embed', 'rank'), PartitionSpec('fsdp')),
  ],
)
def test_the_first_rule_that_divides_wins(shape, axes, wanted):
  assert spec(ParamInfo(shape, jnp.float32, axes)) == wanted


def test_one_way_is_replicated():
  assert spec(ParamInfo((32, 64), jnp.float32, ('embed', 'mlp')), 'data=8') == PartitionSpec()


def test_what_lies_on_a_device():
  placed = layout.build('data=4,fsdp=2', batch=16)
  assert placed.shards == 8
  assert 'data=4, fsdp=2 on 8' in placed.describe()
  x = jax.device_put(jnp.zeros((16, 3)), placed.batch)
  assert {s.data.shape for s in x.addressable_shards} == {(2, 3)}
  info = ParamInfo((32, 64), jnp.float32, ('embed', 'mlp'))
  p = jax.device_put(jnp.zeros(info.shape), placed.param(info))
  assert {s.data.shape for s in p.addressable_shards} == {(32, 32)}
  assert jax.device_put(1.0, placed.replicated).sharding.is_fully_replicated
