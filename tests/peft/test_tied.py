"""An adapter on a table that is the output matrix as well would be merged into both."""

import jax
import jax.numpy as jnp
import pytest

from ftlib.base.errors import InputError
from ftlib.base.types import Head
from ftlib.models import bert
from ftlib.models.layers import Axis, Embed, normal
from ftlib.peft import lora
from tests import tiny

CONFIG = lora.Config(embeddings='embed/(token|position)')


def model(kind):
  return bert.build(bert.from_hf(tiny.CONFIG), head=Head(kind, 2 if kind == 'classify' else 0))


def test_a_tied_table_is_refused():
  with pytest.raises(InputError, match=r"method\.embeddings='embed/\(token\|position\)': .* \(tied\)"):
    lora.build(CONFIG, model('mlm'))


def test_tables_that_are_not_tied():
  assert any(n.startswith('embed/token/adapter/') for n in lora.build(CONFIG, model('classify')).model.info())
  config = lora.Config(embeddings='embed/position', also='^mlm/')
  assert any(n.startswith('embed/position/adapter/') for n in lora.build(config, model('mlm')).model.info())


def test_whatever_the_family_a_tied_table_with_an_adapter_does_not_compute():
  table = Embed(Axis('vocab', 5), Axis('embed', 3), init=normal(1.0))
  table.table.set_value(jnp.ones((5, 3)))
  assert table.attend(jnp.ones((2, 3))).shape == (2, 5)
  table.adapter = lambda site, ids, y, stream: y
  with pytest.raises(InputError, match='output matrix as well'):
    jax.eval_shape(table.attend, jnp.ones((2, 3)))
