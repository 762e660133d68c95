"""Language models exported: what stands in the folder, in which numbers, and that it is compared before it is done."""

import json
import pathlib
import struct

import numpy as np
import pytest
import safetensors.numpy

from ftlib import export, fine_tune, judge, language_files, model_card, recipe
from ftlib import run as runs
from ftlib.base.errors import InputError
from ftlib.data import tokens
from ftlib.io import hf
from tests import tiny


def rows(count, seed):
  """Prompts that are answered by their own kind of word."""
  rng = np.random.default_rng(seed)
  kinds = [(tiny.GOOD, 'warm'), (tiny.BAD, 'cold')]
  pick = lambda words: ' '.join(rng.choice(words, 3))  # noqa: E731
  return [{'prompt': pick(kinds[i % 2][0]), 'completion': kinds[i % 2][1]} for i in range(count)]


def config_of(model, folder, **values):
  made = tiny.config(model, folder, train__steps=4, train__eval_every=4, optim__learning_rate=3e-2)
  made.task, made.objective = (recipe.component_section(s, n) for s, n in (('task', 'sft'), ('objective', 'language')))
  made.task.form, made.task.template, made.method.also, made.train.max_length = 'prompt', 'chat', '', 64
  for name, value in values.items():
    section, field = name.split('__')
    made[section][field] = value
  return made


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  """By config.json and tokenizer a text ends with <|endoftext|>; by the template, a turn does with <|im_end|>."""
  folder = tiny.llama_folder(tmp_path_factory.mktemp('llama'), eos_token_id=0)
  file = folder / 'tokenizer_config.json'
  file.write_text(json.dumps({**json.loads(file.read_text()), 'eos_token': '<|endoftext|>'}))
  (folder / 'generation_config.json').write_text(json.dumps({'temperature': 0.6, 'do_sample': True}))
  return folder


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('questions')
  for seed, (name, count) in enumerate((('train', 32), ('validation', 16), ('test', 8))):
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows(count, seed)))
  return folder


@pytest.fixture(scope='module')
def sft(llama, data, no_report, tmp_path_factory):
  where = tmp_path_factory.mktemp('sft') / 'run'
  fine_tune.run(config_of(llama, data), str(where))
  judge.run(str(where), split='test', checkpoint='best')
  return where


@pytest.fixture(scope='module')
def exported(sft, tmp_path_factory):
  folder = tmp_path_factory.mktemp('out') / 'warm-llama'
  assert export.export(sft, folder) < 1e-4
  return folder


def test_the_files(exported):
  names = {p.name for p in exported.iterdir()}
  assert {'config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json', 'README.md'} <= names
  config = json.loads((exported / 'config.json').read_text())
  assert config['architectures'] == ['LlamaForCausalLM']
  assert config['dtype'] == 'float32'
  assert not {'id2label', 'num_labels', 'ftlib_pooling', 'torch_dtype'} & set(config)


def test_tied_weights_are_written_once(exported):
  there = safetensors.numpy.load_file(exported / 'model.safetensors')
  assert 'model.embed_tokens.weight' in there
  assert 'lm_head.weight' not in there
  assert not any('lora' in k for k in there)


def test_the_merged_weights_are_the_trained_ones(exported, llama):
  before, after = (safetensors.numpy.load_file(f / 'model.safetensors') for f in (llama, exported))
  assert before.keys() == after.keys()
  moved = {k for k in before if not np.array_equal(before[k], after[k])}
  assert moved == {f'model.layers.{i}.self_attn.{x}_proj.weight' for i in (0, 1) for x in 'qv'}


def test_it_ends_where_the_template_ends_a_turn(exported):
  values = json.loads((exported / 'generation_config.json').read_text())
  assert values['eos_token_id'] == [0, 2]  # config.json's, and <|im_end|>
  assert (values['temperature'], values['do_sample'], values['pad_token_id']) == (0.6, True, 0)


def test_the_tokenizer_asks_as_it_was_trained(exported, llama):
  before, after = tokens.load(llama), tokens.load(exported)
  conversation = [{'role': 'user', 'content': 'is it good'}]
  asked = [t.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False) for t in (before, after)]
  assert asked[0] == asked[1] == '<|im_start|>user\nis it good<|im_end|>\n<|im_start|>assistant\n'


def test_a_template_of_the_run_goes_along(llama, data, tmp_path):
  file = tmp_path / 'own.jinja'
  file.write_text(
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ': ' + m['content'] + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
  )
  fine_tune.run(config_of(llama, data, task__chat_template=str(file)), str(tmp_path / 'run'))
  export.export(tmp_path / 'run', tmp_path / 'out')
  tokenizer = tokens.load(tmp_path / 'out')
  assert tokenizer.chat_template == file.read_text()
  assert language_files.turn_end(tokenizer) == 0


def test_bfloat16(sft, exported, tmp_path):
  difference = export.export(sft, tmp_path / 'out', dtype='bfloat16')
  assert 1e-4 < difference < 0.2
  assert json.loads((tmp_path / 'out' / 'config.json').read_text())['dtype'] == 'bfloat16'
  with (tmp_path / 'out' / 'model.safetensors').open('rb') as f:
    header = json.loads(f.read(struct.unpack('<Q', f.read(8))[0]))
  assert {v['dtype'] for k, v in header.items() if k != '__metadata__'} == {'BF16'}
  whole, half = hf.Weights(exported), hf.Weights(tmp_path / 'out')
  for key in whole.where:
    np.testing.assert_allclose(half.read(key), whole.read(key), rtol=2**-8, atol=0)


def test_a_run_whose_data_are_gone(sft, data, llama, tmp_path, capsys, monkeypatch):
  data.rename(tmp_path / 'gone')
  try:
    assert export.export(sft, tmp_path / 'out') < 1e-4
    said = capsys.readouterr().out
    assert 'note: logits are compared on drawn token ids, for the data cannot be read' in said
    assert str(data) in said
    save = hf.save
    spoil = lambda t: {k: v * (1.01 if 'layers.1.mlp.up' in k else 1) for k, v in t.items()}  # noqa: E731
    monkeypatch.setattr(hf, 'save', lambda folder, t, config, **o: save(folder, spoil(t), config, **o))
    with pytest.raises(RuntimeError, match='logits differ from the run by'):
      export.export(sft, tmp_path / 'spoilt')
    llama.rename(tmp_path / 'base')  # then the model is what is said to be missing
    with pytest.raises(InputError, match=r'model\.pretrained|' + llama.name):
      export.export(sft, tmp_path / 'none')
  finally:
    (tmp_path / 'gone').rename(data)
    if (tmp_path / 'base').exists():
      (tmp_path / 'base').rename(llama)


def test_shards(tmp_path, exported):
  values = safetensors.numpy.load_file(exported / 'model.safetensors')
  hf.save(tmp_path / 'out', values, {'model_type': 'llama'}, shard_bytes=30_000)
  files = sorted(p.name for p in (tmp_path / 'out').glob('*.safetensors'))
  assert len(files) > 2
  assert files[0] == f'model-00001-of-{len(files):05}.safetensors'
  index = json.loads((tmp_path / 'out' / 'model.safetensors.index.json').read_text())
  assert index['metadata']['total_size'] == sum(v.nbytes for v in values.values())
  assert index['weight_map'].keys() == values.keys()
  held = {p: safetensors.numpy.load_file(tmp_path / 'out' / p) for p in files}
  for key, name in index['weight_map'].items():
    np.testing.assert_array_equal(held[name][key], values[key])
  assert all(sum(v.nbytes for v in h.values()) <= 30_000 or len(h) == 1 for h in held.values())
  back = hf.Weights(tmp_path / 'out')
  assert back.where.keys() == values.keys()


def test_the_card(exported, sft, llama, data):
  text = (exported / 'README.md').read_text()
  assert text.startswith('---\nlibrary_name: transformers\npipeline_tag: text-generation\n')
  assert '# warm-llama' in text
  assert "AutoModelForCausalLM.from_pretrained('warm-llama')" in text
  assert f'`{llama.name}`, fine-tuned on `{data.name}`' in text
  for split in ('validation', 'test'):
    metrics = json.loads((sft / 'eval' / f'{split}.json').read_text())['metrics']
    assert f'{metrics["perplexity"]:.4f}' in text
  built = runs.build(json.loads((sft / 'config.json').read_text()))
  assert f'{sum(i.size for i in built.train_info.values()):,} (' in text
  assert 'rank=8' in text
  assert '"learning_rate": 0.03' in text
  assert 'Checkpoint of step 4' in text
  for place in (llama, data, sft):
    assert str(place.parent) not in text


@pytest.mark.parametrize(
  ('argv', 'want'),
  [
    (['/usr/local/train.py', '--workdir=/home/me/runs/x'], 'python train.py --workdir=x'),
    (
      ['train.py', '--config=configs/sft.py:data=/data/my set,model=~/m/tiny', '--config.method.target=attn/(q|v)$'],
      "python train.py '--config=configs/sft.py:data=my set,model=tiny' '--config.method.target=attn/(q|v)$'",
    ),
    (['train.py', '--config=../my/configs/a.py', '--workdir', './runs/b'], 'python train.py --config=a.py --workdir b'),
  ],
)
def test_the_command_has_no_paths_of_the_machine(argv, want):
  assert model_card._command({'argv': argv}) == want


@pytest.mark.parametrize(
  ('place', 'name'),
  [
    ('HuggingFaceTB/SmolLM2-135M', 'HuggingFaceTB/SmolLM2-135M'),
    ('package:a/b.gguf', 'package:a/b.gguf'),
    ('/home/me/models/tiny', 'tiny'),
    ('~/tiny', 'tiny'),
    ('tfds:glue/sst2', 'tfds:glue/sst2'),
  ],
)
def test_names(place, name):
  assert model_card.named(place) == name


# --- nothing is called done that is not the same


def test_other_weights_are_noticed(sft, tmp_path, monkeypatch):
  save = hf.save
  spoil = lambda t: {k: v * (1.01 if 'layers.1.mlp.up' in k else 1) for k, v in t.items()}  # noqa: E731
  monkeypatch.setattr(hf, 'save', lambda folder, t, config, **o: save(folder, spoil(t), config, **o))
  with pytest.raises(RuntimeError, match='logits differ from the run by'):
    export.export(sft, tmp_path / 'out')
  assert not (tmp_path / 'out' / 'README.md').exists()


def test_bfloat16_that_is_too_far_off(sft, tmp_path, monkeypatch):
  save = hf.save
  spoil = lambda t: {k: v * 2 if 'layers.1.mlp' in k else v for k, v in t.items()}  # noqa: E731
  monkeypatch.setattr(hf, 'save', lambda folder, t, config, **o: save(folder, spoil(t), config, **o))
  with pytest.raises(RuntimeError, match='logits differ from the run by'):
    export.export(sft, tmp_path / 'out', dtype='bfloat16')


def test_another_tokenizer_is_noticed(llama, tmp_path, monkeypatch):
  tokenizer, load = tokens.load(llama), tokens.load
  language_files.save_tokenizer(tokenizer, tmp_path / 'same')

  def lacking(folder):
    back = load(folder)
    back.add_special_tokens({'additional_special_tokens': ['fox']})
    return back

  monkeypatch.setattr(tokens, 'load', lacking)
  with pytest.raises(RuntimeError, match='gives other ids'):
    language_files.save_tokenizer(tokenizer, tmp_path / 'other')

  def silent(folder):
    back = load(folder)
    back.chat_template = "{{ messages[0]['content'] }}"
    return back

  monkeypatch.setattr(tokens, 'load', silent)
  with pytest.raises(RuntimeError, match='gives another text'):
    language_files.save_tokenizer(tokenizer, tmp_path / 'third')


def test_ends_of_turns(llama):
  tokenizer = tokens.load(llama)
  assert language_files.turn_end(tokenizer) == 2
  for template, want in (
    ("{% for m in messages %}{{ m['content'] + '\\n<|endoftext|>' }}{% endfor %}", 0),
    ("{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}", None),
    ("{% for m in messages %}{{ m['content'] + '\\nEnd. <|im_end|>' }}{% endfor %}", None),
    ("{{ raise_exception('never') }}", None),
    (None, None),
  ):
    tokenizer.chat_template = template
    assert language_files.turn_end(tokenizer) == want, template


def test_flags(sft, tmp_path):
  with pytest.raises(InputError, match=r'--dtype=bf16 is none of float32, bfloat16'):
    export.export(sft, tmp_path / 'a', dtype='bf16')
  with pytest.raises(InputError, match='is of merged weights'):
    export.export(sft, tmp_path / 'a', dtype='bfloat16', format='peft')
  assert not pathlib.Path(tmp_path / 'a').exists()


def test_an_encoder_has_a_card_too(trained, tmp_path):
  assert export.export(trained.folder, tmp_path / 'sentiment') < 1e-5
  text = (tmp_path / 'sentiment' / 'README.md').read_text()
  assert 'pipeline_tag: text-classification' in text
  assert "AutoModelForSequenceClassification.from_pretrained('sentiment')" in text
  assert '| accuracy |' in text
  assert not (tmp_path / 'sentiment' / 'generation_config.json').exists()


def test_a_gguf_base(llama, data, tmp_path):
  gguf_files = pytest.importorskip('tests.io.gguf_files')
  file = gguf_files.of_folder(tmp_path / 'tiny.gguf', llama)
  fine_tune.run(config_of(file, data), str(tmp_path / 'run'))
  assert export.export(tmp_path / 'run', tmp_path / 'merged') < 1e-4
  assert (
    tokens.load(tmp_path / 'merged')('good <|im_end|>')['input_ids']
    == tokens.load(file)('good <|im_end|>')['input_ids']
  )
  assert json.loads((tmp_path / 'merged' / 'config.json').read_text())['architectures'] == ['LlamaForCausalLM']
  assert export.export(tmp_path / 'run', tmp_path / 'adapter', format='peft') < 1e-4
  values = json.loads((tmp_path / 'adapter' / 'adapter_config.json').read_text())
  assert values['base_model_name_or_path'] == str(tmp_path / 'adapter' / 'base')
  assert values['task_type'] == 'CAUSAL_LM'
  there, base = (safetensors.numpy.load_file(f / 'model.safetensors') for f in (llama, tmp_path / 'adapter' / 'base'))
  assert there.keys() == base.keys()
  for key in there:
    np.testing.assert_array_equal(base[key], there[key], err_msg=key)
