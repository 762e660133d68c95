"""Hugging Face folders: safetensors in, safetensors out. No pickle is ever read.

`resolve` finds a model, `Weights` reads its tensors lazily, `match` pairs them with our names, `save` writes a folder
that transformers loads with no missing and no unexpected key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from ftlib.base.errors import InputError, did_you_mean, listing

_FILES = ['*.json', '*.safetensors', '*.txt', '*.model', '*.jinja']
_BUFFERS = re.compile(  # what models compute and old files hold nevertheless
  r'(^|\.)(position_ids|token_type_ids|rotary_emb\.inv_freq|h\.\d+\.attn\.(masked_)?bias)$'
)
_OTHER_HEADS = re.compile(
  r'^(cls|lm_head|predictions|classifier|pre_classifier|qa_outputs|score|logits_proj|mlm|'
  r'vocab_(transform|layer_norm|projector)|discriminator_predictions|generator_predictions|generator_lm_head|'
  r'lm_loss|sequence_summary|lm_predictions|mask_predictions|head\.(dense|norm))\.'
  r'|(^|\.)pooler\.|^lm_head$|^ernie_mlm|^sop_classifier|^seq_relationship|^decoder\.(weight|bias)$'
  r'|^embeddings\.position_embeddings\.weight$'  # DeBERTa v3's files have what it does not read
)
_OTHER_PREFIX = 'transformer.'  # of a Llama that answers questions, whose base is called model. everywhere else
_SAMPLE_BYTES = 1 << 28
# ours: Sentence-Transformers'
POOLING = {'cls': 'cls_token', 'mean': 'mean_tokens', 'max': 'max_tokens', 'last': 'lasttoken'}


def resolve(pretrained: str) -> pathlib.Path:
  """The folder or GGUF file of a model: a path, `package:import_name/path` (found, never imported), or a hub id
  (downloaded). A folder without safetensors that holds one GGUF file is that file."""
  if not pretrained:
    raise InputError('model.pretrained is empty; give a hub id, a folder or package:import_name/path')
  if pretrained.startswith('package:'):
    return _package(pretrained)
  path = pathlib.Path(pretrained).expanduser()
  if path.exists():
    return _model(path, pretrained)
  if pretrained.startswith(('/', './', '../', '~')) or pretrained.count('/') > 1 or '\\' in pretrained:
    near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ''
    raise InputError(f'model.pretrained={pretrained!r}: there is no such folder{near}')
  return _hub(pretrained)


def _package(pretrained: str) -> pathlib.Path:
  name, _, inside = pretrained.removeprefix('package:').partition('/')
  top, *below = name.split('.')  # to find a.b, importlib would import a
  try:
    spec = importlib.util.find_spec(top)
  except (ImportError, ValueError):
    spec = None
  if spec is None or not spec.submodule_search_locations:
    raise InputError(f'model.pretrained={pretrained!r}: no package {name!r} is installed')
  path = pathlib.Path(next(iter(spec.submodule_search_locations)), *below, inside)
  if not path.exists():
    there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise InputError(
      f'model.pretrained={pretrained!r}: {path} is no folder and no file{did_you_mean(path.name, there)}'
    )
  return _model(path, pretrained)


def _model(path: pathlib.Path, pretrained: str) -> pathlib.Path:
  """A folder, or the GGUF file that a path means."""
  if path.is_dir():
    files = sorted(path.glob('*.gguf'))
    if not files or next(path.glob('*.safetensors'), None) or (path / 'model.safetensors.index.json').exists():
      return path
    if len(files) > 1:
      names = listing([p.name for p in files])
      raise InputError(f'model.pretrained={pretrained!r} holds several GGUF files; give the path of one:\n{names}')
    return files[0]
  if path.suffix != '.gguf':
    raise InputError(
      f'model.pretrained={pretrained!r} is a file; give the folder that holds config.json, or a .gguf file'
    )
  return path


def _hub(pretrained: str) -> pathlib.Path:
  import huggingface_hub

  try:
    return pathlib.Path(huggingface_hub.snapshot_download(pretrained, allow_patterns=_FILES))
  except Exception as e:  # the hub client raises many kinds: network, 401, 404, a malformed id
    first = str(e).strip().splitlines()[0] if str(e).strip() else ''
    path = pathlib.Path(pretrained)
    near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ''
    raise InputError(
      f'model.pretrained={pretrained!r} is no folder here{near or ","} and could not be had from the '
      f'Hugging Face hub:\n  {type(e).__name__}: {first}'
    ) from e


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """The folder's `config.json`."""
  path = folder / 'config.json'
  if not path.exists():
    raise InputError(f'{folder} holds no config.json; is it a Hugging Face model folder?')
  try:
    values = json.loads(path.read_text(encoding='utf-8'))
  except (json.JSONDecodeError, UnicodeDecodeError) as e:
    raise InputError(f'{path} is not JSON: {e}') from e
  if not isinstance(values, dict) or not isinstance(values.get('model_type'), str):
    raise InputError(f'{path} has no "model_type"')
  return values


def read_pooling(folder: pathlib.Path, values: Mapping[str, Any]) -> str:
  """What of a text stands for it where the folder says so: 'cls', 'mean', 'max', 'last', or ''.

  An export of ours says what its head was trained on (`ftlib_pooling` of `config.json`, whose `values` these are), a
  folder of Sentence-Transformers what its vectors are (`1_Pooling/config.json`). Raises `InputError` where that is no
  JSON.
  """
  path = folder / '1_Pooling' / 'config.json'
  if isinstance(own := values.get('ftlib_pooling'), str) or not path.is_file():
    return own or ''
  try:
    said = json.loads(path.read_text(encoding='utf-8'))
  except (json.JSONDecodeError, UnicodeDecodeError) as e:
    raise InputError(f'{path} is not JSON: {e}') from e
  modes = [
    ours for ours, theirs in POOLING.items() if isinstance(said, dict) and said.get(f'pooling_mode_{theirs}') is True
  ]
  return modes[0] if len(modes) == 1 else ''


def read_generation_config(folder: pathlib.Path) -> dict[str, Any]:
  """The folder's `generation_config.json`, {} where there is none (or the folder is a file). Raises `InputError` where
  it is no object, or names as the end of a text what is no token id."""
  path = folder / 'generation_config.json'
  if not path.is_file():
    return {}
  try:
    values = json.loads(path.read_text(encoding='utf-8'))
  except (ValueError, OSError) as e:
    raise InputError(f'{path} is not JSON: {e}') from e
  if not isinstance(values, dict):
    raise InputError(f'{path} holds no object, but {repr(values)[:60]}')
  end = values.get('eos_token_id')
  if any(type(i) is not int for i in (end if isinstance(end, list) else [end])) and end is not None:
    raise InputError(f'{path}: eos_token_id={end!r} is no token id and no list of them')
  return values


class Weights:
  """The tensors of a folder, read on demand: one `model.safetensors`, or shards with an index.

  Raises `InputError` for pickled weights, a missing shard, a truncated or foreign file, and duplicate names.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.files = _weight_files(folder)
    self._open: dict[pathlib.Path, Any] = {}
    self.where: dict[str, pathlib.Path] = {}
    for path in self.files:
      try:
        handle = safetensors.safe_open(path, framework='numpy')
        keys = list(handle.keys())
      except (safetensors.SafetensorError, OSError) as e:
        raise InputError(_bad_file(path, e)) from e
      self._open[path] = handle
      for key in keys:
        if key in self.where:
          raise InputError(f'{path.name} and {self.where[key].name} both hold the tensor {key}')
        self.where[key] = path

  def shape(self, key: str) -> tuple[int, ...]:
    return tuple(self._open[self.where[key]].get_slice(key).get_shape())

  def read(self, key: str) -> np.ndarray:
    """The tensor in float32 (integers as they are). Raises `InputError` for a NaN or an infinity in it."""
    try:
      value = self._open[self.where[key]].get_tensor(key)
    except (safetensors.SafetensorError, AttributeError, TypeError) as e:
      raise InputError(f'{self.where[key]}: tensor {key} cannot be read: {e}') from e
    if value.dtype.kind in 'iub':
      return value
    value = value.astype(np.float32)
    if not np.isfinite(value).all():
      raise InputError(f'{self.where[key]}: tensor {key} holds NaN or infinity')
    return value

  def fingerprint(self) -> str:
    """SHA-256 of the files (of samples of a file above 256 MB), independent of where the folder lies."""
    h = hashlib.sha256()
    for path in self.files:
      digest(h, path)
    return h.hexdigest()


def digest(h: Any, path: pathlib.Path) -> None:
  """Updates a hash with a file's size and bytes, or samples of these where the file is above 256 MB."""
  size = path.stat().st_size
  h.update(str(size).encode())
  with path.open('rb') as f:
    if size <= _SAMPLE_BYTES:
      h.update(f.read())
    else:
      for offset in range(0, size, size // 256):
        f.seek(offset)
        h.update(f.read(1 << 20))


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  index = folder / 'model.safetensors.index.json'
  if index.exists():
    try:
      names = sorted(set(json.loads(index.read_text(encoding='utf-8'))['weight_map'].values()))
      bad = [n for n in names if pathlib.PurePath(n).name != n]
    except (ValueError, KeyError, AttributeError, TypeError) as e:
      raise InputError(f'{index} is no safetensors index: {e!r}') from e
    if bad:
      raise InputError(f'{index} names files outside its folder: {bad[0]!r}')
    absent = [n for n in names if not (folder / n).is_file()]
    if absent:
      raise InputError(f'{index.name} lists shards that are not in {folder}:\n{listing(absent)}')
    return [folder / n for n in names]
  if (folder / 'model.safetensors').exists():
    return [folder / 'model.safetensors']
  found = sorted(folder.glob('*.safetensors'))
  if len(found) == 1:
    return found
  pickled = sorted(p.name for ext in ('bin', 'pt', 'pth', 'ckpt', 'msgpack', 'h5') for p in folder.glob(f'*.{ext}'))
  if pickled:
    raise InputError(
      f'{folder} holds only {pickled[0]}: pickled weights can run code and are refused. Convert it once with '
      'transformers: AutoModel.from_pretrained(...).save_pretrained(..., safe_serialization=True)'
    )
  raise InputError(f'{folder} holds no model.safetensors and no model.safetensors.index.json')


def _bad_file(path: pathlib.Path, error: Exception) -> str:
  with path.open('rb') as f:
    head = f.read(64)
  size = path.stat().st_size
  if head.startswith(b'version https://git-lfs'):
    return f'{path} is a git-lfs pointer, not the weights; run `git lfs pull` in its folder'
  if head[8:9] != b'{' and (head[:2] == b'PK' or (head[:1] == b'\x80' and head[1:2] in b'\2\3\4\5')):
    return f'{path} is a pickle named .safetensors; pickled weights can run code and are refused'
  length = int.from_bytes(head[:8], 'little') if len(head) >= 8 else 0
  if 8 + length > size:
    return f'{path} is truncated or no safetensors file ({size} bytes): {error}'
  return f'{path} ({size} bytes) cannot be read as safetensors, it may be truncated: {error}'


@dataclasses.dataclass(frozen=True)
class Match:
  """`pairs` {our name: tensor name in the files}; `fresh`: ours that the files lack and may; `unused`: theirs."""

  pairs: dict[str, str]
  fresh: list[str]
  unused: list[str]


def match(
  weights: Weights,
  table: Mapping[str, str],
  shapes: Mapping[str, tuple[int, ...]],
  *,
  prefix: str,
  tied: Mapping[str, str] | None = None,
) -> Match:
  """Pairs our names with a folder's tensors; `table` {our name: Hugging Face name}, `shapes` {our name: HF shape}.

  Several of ours may be parts of one tensor. `tied` {Hugging Face name: our name}: what a folder may hold besides if it
  equals the tensor of our name.

  A base model's tensors may come with or without the `prefix` ('bert.'), and layer norms under their old names gamma
  and beta. Heads (`head/`, `mlm/`, `pooler/`) may be absent or of another shape: they are then `fresh`. Everything else
  missing, surplus, of another shape or there twice is an `InputError` with all lists.
  """
  wanted: dict[str, list[str]] = {}
  for ours, hf in table.items():
    wanted.setdefault(hf, []).append(ours)
  pairs: dict[str, str] = {}
  surplus, twice = [], []
  for key in sorted(weights.where, key=lambda k: _tied(k) == k):  # of tied tensors, that of the output layer first
    name = re.sub(r'\.beta$', '.bias', re.sub(r'\.gamma$', '.weight', key))
    bare = name.removeprefix(prefix if name.startswith(prefix) else _OTHER_PREFIX)
    names = name, _tied(name), prefix + name, prefix + bare, _OTHER_PREFIX + bare
    full = next((n for n in names if n in wanted), prefix + name)
    if full in wanted and wanted[full][0] not in pairs:
      pairs |= dict.fromkeys(wanted[full], key)
    elif full in wanted and _tied(pairs[wanted[full][0]]) != key:
      twice.append(f'{key} and {pairs[wanted[full][0]]}')
    elif full not in wanted and key not in (tied or {}) and not _BUFFERS.search(name):
      surplus.append(key)
  unused = [k for k in surplus if _OTHER_HEADS.search(k.removeprefix(prefix))]
  surplus = [k for k in surplus if k not in unused]
  optional = re.compile(r'^(head|mlm|pooler)/')
  misshapen: dict[str, None] = {}
  for ours, key in list(pairs.items()):
    if weights.shape(key) != tuple(shapes[ours]):
      if ours.startswith('head/'):
        unused.append(pairs.pop(ours))
      else:
        misshapen[f'{key} is {list(weights.shape(key))}, wanted {list(shapes[ours])}'] = None
  other = [k for k, ours in (tied or {}).items() if k in weights.where and ours in pairs]
  other = [k for k in other if not np.array_equal(weights.read(k), weights.read(pairs[tied[k]]))]
  absent = [n for n in table if n not in pairs]
  missing = [*dict.fromkeys(table[n] for n in absent if not optional.search(n))]
  problems = {'missing': missing, 'surplus': surplus, 'of another shape': [*misshapen], 'there under two names': twice}
  problems['tied to another by config.json, and unlike it (tie_word_embeddings)'] = other
  if any(problems.values()):
    parts = [f'{weights.folder}: the weights do not fit the model of its config.json']
    for title, names in problems.items():
      if names:
        parts.append(f'{len(names)} {title}:\n{listing(sorted(names))}')
    raise InputError('\n'.join(parts))
  return Match(pairs, [n for n in absent if optional.search(n)], sorted(unused))


def _tied(name: str) -> str:
  """transformers stores the bias of a tied output layer under either of two names, and adds `decoder.bias` if both."""
  return name.replace('decoder.bias', 'bias')


def save(
  folder: pathlib.Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], *, shard_bytes: int = 5 * 10**9
) -> None:
  """Writes `config.json` and `model.safetensors`, or several files with an index where tensors have more than
  `shard_bytes`, and reads the tensors back to compare.

  safetensors 0.8 writes arrays that are not C-contiguous wrongly (issue 825), hence the copy and the comparison.
  """
  folder.mkdir(parents=True, exist_ok=True)
  shards = _shards({k: v.nbytes for k, v in tensors.items()}, shard_bytes)
  count = len(shards)
  names = [f'model-{i:05}-of-{count:05}.safetensors' for i in range(1, count + 1)]
  names = names if count > 1 else ['model.safetensors']
  for name, keys in zip(names, shards, strict=True):
    part = {k: np.asarray(tensors[k], order='C') for k in keys}
    safetensors.numpy.save_file(part, folder / name, metadata={'format': 'pt'})
    back = safetensors.numpy.load_file(folder / name)
    wrong = [k for k in part if k not in back or not np.array_equal(back[k], part[k])]
    if wrong:
      raise RuntimeError(f'{folder / name} does not read back as written:\n{listing(wrong)}')
  if count > 1:
    places = {k: name for name, keys in zip(names, shards, strict=True) for k in keys}
    total = sum(v.nbytes for v in tensors.values())
    index = {'metadata': {'total_size': total}, 'weight_map': dict(sorted(places.items()))}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index, indent=2) + '\n', encoding='utf-8')
  (folder / 'config.json').write_text(json.dumps(dict(config), indent=2) + '\n', encoding='utf-8')


def _shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
  """The names in their order, as many together as `limit` bytes hold; one that is larger is alone."""
  shards: list[list[str]] = [[]]
  used = 0
  for name, size in sizes.items():
    if shards[-1] and used + size > limit:
      shards.append([])
      used = 0
    shards[-1].append(name)
    used += size
  return shards
