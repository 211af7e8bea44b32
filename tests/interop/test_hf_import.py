"""An imported model has the vectors, logits and tokens of transformers; all commands accept it."""

import json
import pathlib
import re
import shutil
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from minilm_jax.cli import main
from minilm_jax.core import files, run_dir
from minilm_jax.core.corpus_config import PAD_ID
from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer, wrapped_tokenizer
from minilm_jax.evaluation import inference
from minilm_jax.interop import hf_import, hf_weights
from minilm_jax.model import heads
from minilm_jax.tasks import task_data
from minilm_jax.tasks.examples import Examples
from minilm_jax.training import checkpoint, pretrained
from tests import fake_hf_folders
from tests.run_files import read_times

LINES = [
  'the dog sleeps near the tree .',
  'A good film , a bad film .',
  'a naïve café – the end of it !',
] * 3
FIRST = ('The dog sleeps .', 'a good Film', 'naïve', 'the tree , the café near a dog !')
SECOND = ('a tree near', 'bad', 'The end of it !', 'sleeps')
CLASSES = {'roberta': 'Roberta', 'xlm-roberta': 'XLMRoberta', 'bert': 'Bert', 'electra': 'Electra'}


@pytest.fixture(scope='module')
def library():
  return pytest.importorskip('tokenizers', reason='needs tokenizers, which is of the extra [hf]')


def make_hf_tokenizer(library: Any, transformers: Any, like_bert: bool) -> Any:
  """Returns a small tokenizer of transformers, with special tokens around texts and pairs."""
  names = hf_weights.FAMILIES['bert' if like_bert else 'roberta'].special_pieces
  begin, pad, end, unknown, mask = names
  if like_bert:
    library_tokenizer = library.BertWordPieceTokenizer()
    library_tokenizer.train_from_iterator(
      LINES, vocab_size=300, show_progress=False, special_tokens=[pad, unknown, begin, end, mask]
    )
    pair = f'{begin} $A {end} $B:1 {end}:1'
  else:
    library_tokenizer = library.ByteLevelBPETokenizer()
    library_tokenizer.train_from_iterator(
      LINES, vocab_size=500, special_tokens=[begin, pad, end, unknown], show_progress=False
    )
    # RoBERTa has <mask> as the last id.
    library_tokenizer.add_special_tokens([library.AddedToken(mask, lstrip=True)])
    pair = f'{begin} $A {end} {end} $B {end}'
  core = library_tokenizer._tokenizer
  core.post_processor = library.processors.TemplateProcessing(
    single=f'{begin} $A {end}',
    pair=pair,
    special_tokens=[(name, core.token_to_id(name)) for name in (begin, end)],
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=core,
    cls_token=begin,
    pad_token=pad,
    sep_token=end,
    unk_token=unknown,
    mask_token=mask,
    model_input_names=['input_ids', *['token_type_ids'] * like_bert, 'attention_mask'],
  )


def make_hf_model(
  transformers: Any, kind: str, ending: str, vocabulary: int, **changes: Any
) -> Any:
  """Returns a small model with noise: biases of zero and gains of one would hide mistakes."""
  import torch

  torch.manual_seed(0)
  like_bert = kind in ('bert', 'electra')
  config = getattr(transformers, f'{CLASSES[kind]}Config')(
    **{
      'vocab_size': vocabulary,
      'hidden_size': 16,
      'num_hidden_layers': 2,
      'num_attention_heads': 4,
      'intermediate_size': 24,
      'max_position_embeddings': 40,
      'type_vocab_size': 2 if like_bert else 1,
      'pad_token_id': 0 if like_bert else 1,
      **({'embedding_size': 8} if kind == 'electra' else {}),
      **changes,
    }
  )
  model = getattr(transformers, f'{CLASSES[kind]}{ending}')(config).eval()
  with torch.no_grad():
    for p in model.parameters():
      p.add_(0.1 * torch.randn_like(p))
  return model


def convert_ids(ids: np.ndarray, workdir: pathlib.Path) -> np.ndarray:
  """Returns the ids of a run for ids of transformers."""
  order = pretrained.load_tokenizer(workdir)._processor.order
  return np.argsort(order)[ids]


def encode(workdir: pathlib.Path, tokens: np.ndarray) -> np.ndarray:
  """Returns the vectors of the encoder of a run."""
  config = pretrained.load_single_config(workdir).model
  shapes = jax.eval_shape(
    lambda: heads.init_masked_language_model(config, jax.random.key(0)).encoder
  )
  encoder = checkpoint.restore_part(workdir, shapes, 'model.encoder')
  return np.asarray(
    jax.jit(lambda model, x: model(x, x != tokenizer.PAD_ID))(encoder, jnp.asarray(tokens))
  )


@pytest.mark.parametrize(
  'kind, ending, changes',
  [
    ('roberta', 'ForMaskedLM', {'layer_norm_eps': 1e-5}),
    ('roberta', 'ForMaskedLM', {'hidden_act': 'relu'}),
    ('xlm-roberta', 'ForMaskedLM', {'tie_word_embeddings': False}),
    ('bert', 'ForMaskedLM', {}),
    ('bert', 'ForPreTraining', {'hidden_act': 'gelu_new'}),
    ('bert', 'Model', {'layer_norm_eps': 1e-3}),
    ('electra', 'ForPreTraining', {}),
    ('electra', 'Model', {'embedding_size': 16}),
    ('electra', 'ForMaskedLM', {}),
    ('electra', 'ForMaskedLM', {'embedding_size': 16}),
  ],
)
def test_vectors_and_logits_equal_those_of_transformers(
  kind: str, ending: str, changes: dict[str, Any], transformers, library, tmp_path: pathlib.Path
):
  """Rows have a text or a pair and pads; both tokenizers give the same tokens."""
  import torch

  like_bert = kind in ('bert', 'electra')
  hf_tokenizer = make_hf_tokenizer(library, transformers, like_bert)
  hf_model = make_hf_model(transformers, kind, ending, len(hf_tokenizer), **changes)
  for part in (hf_tokenizer, hf_model):
    part.save_pretrained(tmp_path / 'source')
  result = hf_import.import_model(tmp_path / 'source', tmp_path / 'run')

  tokenizer = pretrained.load_tokenizer(tmp_path / 'run')
  config = pretrained.load_single_config(tmp_path / 'run').model
  examples = Examples(FIRST + FIRST, ('',) * len(FIRST) + SECOND, np.zeros(8, np.int32))
  texts = task_data.encode_examples(
    Examples(FIRST, (), np.zeros(4, np.int32)), tokenizer, config.max_length
  )[0]
  pairs = task_data.encode_examples(examples, tokenizer, config.max_length)[0][len(FIRST) :]
  padding = {'padding': 'max_length', 'max_length': 30, 'return_tensors': 'np'}
  hf_texts = hf_tokenizer([*FIRST], **padding)
  hf_pairs = hf_tokenizer([*FIRST], [*SECOND], **padding)
  ids = np.concatenate([hf_texts['input_ids'], hf_pairs['input_ids']])
  tokens = task_data.build_task_rows([*texts, *pairs], np.zeros(8, np.int32), 30).tokens
  np.testing.assert_array_equal(tokens, convert_ids(ids, tmp_path / 'run'))

  inputs = {'input_ids': ids, 'attention_mask': (tokens != PAD_ID).astype(np.int64)}
  if like_bert:
    segments = [hf_texts['token_type_ids'], hf_pairs['token_type_ids']]
    inputs['token_type_ids'] = np.concatenate(segments)
    assert inputs['token_type_ids'].any()
  real = tokens != PAD_ID
  body = getattr(hf_model, hf_model.base_model_prefix, hf_model)
  with torch.no_grad():
    expected = body(
      **{name: torch.from_numpy(value) for name, value in inputs.items()}
    ).last_hidden_state.numpy()
  np.testing.assert_allclose(encode(tmp_path / 'run', tokens)[real], expected[real], atol=1e-4)
  assert np.abs(expected[real]).max() > 1

  head = ending == 'ForMaskedLM' or (kind, ending) == ('bert', 'ForPreTraining')
  head = head and not config.projection and (kind == 'bert' or config.activation == 'gelu')
  assert result['head'] == head and bool(result['left_out']) == (
    ending != 'ForMaskedLM' or not head
  ) - (kind == 'electra' and ending == 'Model')
  if not head:
    with pytest.raises(InputError, match='BertForMaskedLM'):
      inference.LanguageModel(tmp_path / 'run').fill_mask('the <mask> .', 3)
    return
  with torch.no_grad():
    outputs = hf_model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
  expected = (outputs.prediction_logits if ending == 'ForPreTraining' else outputs.logits).numpy()
  order = tokenizer._processor.order
  positions = jnp.broadcast_to(jnp.arange(30), tokens.shape)
  model = pretrained.load(tmp_path / 'run').model
  result = np.asarray(
    jax.jit(lambda model, x: model(x, x != PAD_ID, positions))(model, jnp.asarray(tokens))
  )
  np.testing.assert_allclose(result[real], expected[real][:, order], atol=1e-4)


def test_masks_are_filled_as_in_transformers(transformers, library, tmp_path: pathlib.Path):
  """`<mask>` of RoBERTa includes the space before it."""
  import torch

  hf_tokenizer = make_hf_tokenizer(library, transformers, like_bert=False)
  hf_model = make_hf_model(transformers, 'roberta', 'ForMaskedLM', len(hf_tokenizer))
  for part in (hf_tokenizer, hf_model):
    part.save_pretrained(tmp_path / 'source')
  hf_import.import_model(tmp_path / 'source', tmp_path / 'run')
  text = 'The dog <mask> near the <mask> .'
  inputs = hf_tokenizer(text, return_tensors='pt')
  with torch.no_grad():
    probabilities = hf_model(input_ids=inputs['input_ids']).logits.softmax(-1)[0][
      inputs['input_ids'][0] == hf_tokenizer.mask_token_id
    ]
  order = pretrained.load_tokenizer(tmp_path / 'run')._processor.order
  expected = np.sort(probabilities.numpy()[:, order[5:]], axis=1)[:, ::-1][:, :3]
  result = inference.LanguageModel(tmp_path / 'run').fill_mask(text, 3)
  np.testing.assert_allclose([guess.probability for guess in result], expected.ravel(), atol=1e-5)


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A folder with a small BERT; tests change only copies of the folder."""
  return fake_hf_folders.write_folder(tmp_path_factory.mktemp('hugging') / 'source')


@pytest.fixture(scope='module')
def imported_run(
  source: pathlib.Path, library, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
  """The imported run of the folder; tests change only copies of the run."""
  workdir = tmp_path_factory.mktemp('imported') / 'run'
  assert main.main(['import', f'--from={source}', f'--workdir={workdir}']) == 0
  return workdir


def run_command(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
  capsys.readouterr()
  status = main.main(list(arguments))
  return status, *capsys.readouterr()


def test_the_manifest_records_the_source(source: pathlib.Path, imported_run: pathlib.Path):
  manifest = json.loads((imported_run / run_dir.MANIFEST).read_text())
  assert (
    manifest['imported']['from'] == str(source) and manifest['imported']['model_type'] == 'bert'
  )
  assert manifest['imported']['files'] == {
    name: files.hash_file(source / name)
    for name in ('config.json', 'model.safetensors', 'vocab.txt')
  }
  (omitted,) = manifest['imported']['left_out']
  assert '(bert.pooler.*)' in omitted and manifest['imported']['head'] is True
  assert json.loads((imported_run / run_dir.CONFIG).read_text())['kind'] == 'imported'
  assert checkpoint.list_steps(imported_run) == [0] and not checkpoint.verify(imported_run, 0)
  result = json.loads((imported_run / run_dir.RESULT).read_text())
  expected = sum(
    array.size
    for name, array in fake_hf_folders.draw_bert_weights().items()
    if 'pooler' not in name
  )
  assert (
    result['imported'] is True
    and result['parameters'] == manifest['parameters']['total'] == expected
  )
  assert manifest['tokenizer'] == files.hash_file(imported_run / 'tokenizer.model')


def test_every_command_accepts_an_imported_run(
  imported_run: pathlib.Path, tmp_path: pathlib.Path, capsys
):
  status, out, _ = run_command(
    capsys, 'fill-mask', f'--checkpoint={imported_run}', '--text=The <mask> was good .', '--json'
  )
  assert status == 0 and len(json.loads(out)['guesses']) == 5
  status, out, _ = run_command(
    capsys, 'evaluate', f'--checkpoint={imported_run}', '--text=the dog was good .'
  )
  assert status == 0 and json.loads(out)['tokens'] == 5 and json.loads(out)['pseudo_perplexity'] > 1
  status, out, _ = run_command(capsys, 'show', f'--checkpoint={imported_run}', '--json')
  facts = json.loads(out)
  assert status == 0 and facts['imported']['model_type'] == 'bert'
  assert facts['recipe']['model']['segment_embeddings_for_pairs']
  assert (
    facts['parameters'] == json.loads((imported_run / run_dir.RESULT).read_text())['parameters']
  )

  rows = [
    f'{first} {noun} was {word},{label}'
    for first in ('the', 'a')
    for noun in ('film', 'dog', 'cat')
    for word, label in (('good', 1), ('bad', 0))
  ]
  for split in ('train', 'validation'):
    (tmp_path / f'{split}.csv').write_text('\n'.join(['sentence,label', *rows * 4]))
  status, out, err = run_command(
    capsys,
    'finetune',
    '--config=configs/paper1_tasks.py:sst2',
    f'--config.task.folder={tmp_path}',
    '--config.seeds=0,1',
    '--config.epochs=12',
    '--config.batch_size=8',
    '--config.optimizer.learning_rate=1e-2',
    '--config.save_classifiers=True',
    f'--checkpoint={imported_run}',
    f'--workdir={tmp_path / "task"}',
  )
  assert status == 0, err
  scores = [
    line['value']
    for line in run_dir.read_lines(tmp_path / 'task' / run_dir.SCORES)
    if line['headline']
  ]
  assert len(scores) == 2 and min(scores) > 0.9  # labels depend on the words
  status, out, err = run_command(
    capsys,
    'predict',
    f'--classifier={tmp_path / "task" / "classifier-0"}',
    '--text=The DOG was good',
    '--json',
  )
  assert status == 0 and json.loads(out)['label'] == 'positive', (out, err)


def test_an_imported_run_is_not_pretrained(
  imported_run: pathlib.Path, tiny_corpus: pathlib.Path, capsys
):
  status, _, err = run_command(
    capsys,
    'pretrain',
    '--config=configs/tiny.py',
    f'--config.corpus={tiny_corpus}',
    f'--workdir={imported_run}',
  )
  assert status == 2 and f'finetune --checkpoint={imported_run}' in err
  status, _, err = run_command(capsys, 'evaluate', f'--checkpoint={imported_run}')
  assert status == 2 and str(imported_run) in err
  status, _, err = run_command(
    capsys, 'show', f'--checkpoint={imported_run}', '--config=configs/tiny.py'
  )
  assert status == 2 and '--config' in err


def test_an_imported_run_is_continued(imported_run: pathlib.Path, tmp_path: pathlib.Path, capsys):
  """An error gives the fields of the model as flags; the new run is one of this package."""
  status, _, err = run_command(
    capsys,
    'corpus',
    '--config=configs/tiny.py:corpus',
    '--config.documents.sources=microworld:200',
    f'--config.tokenizer.path={imported_run / "tokenizer.model"}',
    '--config.rows.length=32',
    '--config.workers=1',
    f'--workdir={tmp_path / "corpus"}',
  )
  assert status == 0, err
  command = (
    'pretrain',
    '--config=configs/tiny.py',
    f'--config.corpus={tmp_path / "corpus"}',
    '--config.num_steps=20',
    '--config.mesh.data=1',
    f'--init_from={imported_run}',
    f'--workdir={tmp_path / "run"}',
  )
  status, _, err = run_command(capsys, *command)
  found, remedy = err.splitlines()[-2:]
  assert status == 2 and 'model.vocab_size=' in found and not (tmp_path / 'run').exists()
  fields = re.findall(r'--config\.model\.\S+', remedy)
  status, out, err = run_command(capsys, *command, *fields)
  assert status == 0, err
  assert json.loads(out)['origin'] == f'{imported_run}@0'
  origin, manifest = (
    run_dir.read_origin(tmp_path / 'run'),
    json.loads((tmp_path / 'run' / run_dir.MANIFEST).read_text()),
  )
  assert origin['weights'] == pretrained.hash_weights(pretrained.load(imported_run).model)
  assert manifest['tokenizer'] == files.hash_file(imported_run / 'tokenizer.model')
  assert run_command(capsys, *command, *fields, '--init_optimizer')[0] == 2  # another origin
  new_folder = (*command[:-1], f'--workdir={tmp_path / "other"}')
  status, _, err = run_command(capsys, *new_folder, *fields, '--init_optimizer')
  assert status == 2 and 'omit --init_optimizer' in err and not (tmp_path / 'other').exists()


def test_a_repeated_import_changes_nothing_and_completes_an_interrupted_import(
  source, imported_run, tmp_path: pathlib.Path, capsys
):
  workdir = tmp_path / 'run'
  shutil.copytree(imported_run, workdir)
  before = read_times(workdir)
  status, out, err = run_command(capsys, 'import', f'--from={source}', f'--workdir={workdir}')
  assert status == 0 and str(workdir) in err and json.loads(out)['model_type'] == 'bert'
  assert read_times(workdir) == before
  (workdir / run_dir.RESULT).unlink()
  shutil.rmtree(workdir / checkpoint.FOLDER)
  (workdir / run_dir.CONFIG).unlink()
  assert run_command(capsys, 'import', f'--from={source}', f'--workdir={workdir}')[0] == 0
  assert (workdir / run_dir.RESULT).read_bytes() == (imported_run / run_dir.RESULT).read_bytes()
  assert checkpoint.list_steps(workdir) == [0]


def test_a_folder_with_other_files_is_not_changed(
  source, imported_run, tmp_path: pathlib.Path, library
):
  folder = tmp_path / 'other'
  folder.mkdir()
  (folder / 'letter.txt').write_text('dear')
  with pytest.raises(InputError, match='letter.txt'):
    hf_import.import_model(source, folder)
  assert [path.name for path in folder.iterdir()] == ['letter.txt']
  with pytest.raises(InputError, match='letter.txt'):
    hf_import.import_model(source, folder / 'letter.txt')
  other_folder = fake_hf_folders.write_folder(
    tmp_path / 'source', fake_hf_folders.draw_bert_weights(seed=1)
  )
  shutil.copytree(imported_run, tmp_path / 'run')
  with pytest.raises(InputError, match='--workdir'):
    hf_import.import_model(other_folder, tmp_path / 'run')


def test_names_of_older_files_are_accepted(library, tmp_path: pathlib.Path, source):
  """An encoder without a head lacks the prefix of its family; old norms have gamma and beta."""
  old = {
    name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
      'LayerNorm.bias', 'LayerNorm.beta'
    ): array
    for name, array in fake_hf_folders.draw_bert_weights().items()
  }
  old['bert.embeddings.position_ids'] = np.arange(32.0)
  old['cls.predictions.decoder.weight'] = old['bert.embeddings.word_embeddings.weight']
  headless = {
    name[5:]: array
    for name, array in fake_hf_folders.draw_bert_weights().items()
    if name.startswith('bert.')
  }
  tokens = np.array([[0, 40, 41, 42, 2, 43, 2, 1]])
  runs = {}
  for name, weights in (('old', old), ('single', headless), ('current', None)):
    fake_hf_folders.write_folder(tmp_path / name, weights)
    hf_import.import_model(tmp_path / name, tmp_path / f'{name} run')
    runs[name] = encode(tmp_path / f'{name} run', tokens)
  np.testing.assert_array_equal(runs['old'], runs['current'])
  np.testing.assert_array_equal(runs['single'], runs['current'])


def test_settings_of_a_tokenizer_apply(library, tmp_path: pathlib.Path):
  folder = epath.Path(fake_hf_folders.write_folder(tmp_path / 'source'))
  kind = hf_weights.FAMILIES['bert']
  lowered = hf_import._read_tokenizer(folder, kind)
  assert lowered.encode(['The dög']) == lowered.encode(['the dog'])
  (folder / 'tokenizer_config.json').write_text(
    json.dumps({'do_lower_case': False, 'mask_token': {'content': 'film'}})
  )
  cased = hf_import._read_tokenizer(folder, kind)
  assert cased.encode(['The']) == [[tokenizer.UNKNOWN_ID]]
  assert cased._processor.order[tokenizer.MASK_ID] == fake_hf_folders.WORDS.index('film')


def test_only_line_feeds_divide_a_word_list(library, tmp_path: pathlib.Path):
  folder = epath.Path(fake_hf_folders.write_folder(tmp_path / 'source'))
  words = [*fake_hf_folders.WORDS, '\x0c', '\x85', '\u2028', 'last']
  (folder / 'vocab.txt').write_bytes('\r\n'.join(words).encode())
  imported = hf_import._read_tokenizer(folder, hf_weights.FAMILIES['bert'])
  assert imported.size == len(words)
  assert imported._processor.order[imported.id('\u2581last')] == len(words) - 1


def write(name: str, data: bytes | str):
  return lambda folder: (folder / name).write_bytes(
    data.encode() if isinstance(data, str) else data
  )


def remove(*names: str):
  return lambda folder: [(folder / name).unlink() for name in names]


def change_config(**changes: Any):
  return write(
    'config.json',
    json.dumps({k: v for k, v in (fake_hf_folders.BERT | changes).items() if v is not None}),
  )


def change_weights(**changes: Any):
  """Returns a function that changes weights, with `__` for dots in names; None removes a weight."""
  result = fake_hf_folders.draw_bert_weights() | {
    name.replace('__', '.'): array for name, array in changes.items()
  }
  return write(
    'model.safetensors',
    fake_hf_folders.pack_tensors({k: v for k, v in result.items() if v is not None}),
  )


def shard(folder: pathlib.Path) -> None:
  (folder / 'model.safetensors').rename(folder / 'model-00001-of-00002.safetensors')
  (folder / 'model.safetensors.index.json').write_text('{}')


REFUSED_WITHOUT_LIBRARY = (
  (shutil.rmtree, 'config.json'),
  (remove('config.json'), 'config.json'),
  (write('config.json', '{'), 'config.json.*JSON'),
  (write('config.json', '[]'), 'config.json'),
  (remove('model.safetensors'), 'model.safetensors'),
  (
    lambda folder: (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin'),
    'pytorch_model.bin\nto do: .*AutoModelForPreTraining',
  ),
  (shard, "model.safetensors.index.json\nto do: .*max_shard_size='2GB'"),
  (change_config(model_type='gpt2'), "model_type='gpt2'"),
  (change_config(model_type='berd'), "'bert'"),
  (change_config(model_type=None), 'model_type=None\nto do: .*"model_type": "bert"'),
  (change_config(model_type=7), 'model_type=7'),
  (change_config(position_embedding_type='relative_key'), "position_embedding_type='relative_key'"),
  (change_config(is_decoder=True), 'is_decoder=True'),
  (change_config(auto_map={'AutoModel': 'x.Y'}), 'auto_map'),
  (change_config(pruned_heads={'0': [1]}), 'pruned_heads'),
  (change_config(architectures=['BertForSequenceClassification']), 'BertForSequenceClassification'),
  (change_config(architectures=[7]), r'architectures\[0\] is 7'),
)
REFUSED = (
  (change_config(hidden_act='mish'), "hidden_act='mish'"),
  (change_config(hidden_act=[1]), 'hidden_act'),
  (change_config(hidden_size=None), 'hidden_size'),
  (change_config(hidden_size=-16), 'hidden_size is -16'),
  (change_config(num_attention_heads=3), 'heads'),
  (change_config(num_hidden_layers=0), 'layers'),
  (change_config(max_position_embeddings=3), 'max_position_embeddings=3'),
  (change_config(layer_norm_eps='x'), 'layer_norm_eps'),
  (change_config(vocab_size=10**12), 'pieces|vocab'),
  (change_config(vocab_size=len(fake_hf_folders.WORDS) - 1), 'vocab_size'),
  (change_config(vocab_size=len(fake_hf_folders.WORDS) + 1000), 'vocab_size'),
  (change_config(num_hidden_layers=2), 'bert.encoder.layer.1'),
  (change_config(intermediate_size=32), r'intermediate.dense.* \(24, 16\), not \(32, 16\)'),
  (change_config(type_vocab_size=1), r'token_type_embeddings.* \(2, 16\), not \(1, 16\)'),
  (change_config(vocab_size=len(fake_hf_folders.WORDS) + 1), 'word_embeddings'),
  (change_config(tie_word_embeddings=False), 'cls.predictions.decoder'),
  (change_weights(bert__pooler__dense__weight=None, more=np.zeros(2)), 'more'),
  (change_weights(bert__embeddings__LayerNorm__bias=None), 'bert.embeddings.LayerNorm.bias'),
  (
    change_weights(bert__embeddings__LayerNorm__bias=np.zeros(15)),
    r'bert.embeddings.LayerNorm.bias \(15,\), not \(16,\)',
  ),
  (
    change_weights(bert__embeddings__LayerNorm__bias=np.full(16, np.nan)),
    'finite.*bert.embeddings.LayerNorm.bias',
  ),
  (
    lambda folder: (folder / 'model.safetensors').write_bytes(
      (folder / 'model.safetensors').read_bytes()[:-9]
    ),
    'model.safetensors',
  ),
  (remove('vocab.txt'), 'tokenizer.json.*vocab.txt'),
  (write('vocab.txt', b'\xff'), 'vocab.txt.*UTF-8'),
  (write('vocab.txt', 'a\nb\n'), r"cls_token '\[CLS\]', pad_token"),
  (write('tokenizer.json', '{'), 'tokenizer.json.*JSON'),
  (write('tokenizer.json', '{}'), 'tokenizer'),
  (write('tokenizer_config.json', '7'), 'tokenizer_config.json'),
  (write('tokenizer.json', '{"model": {"type": "Magic"}}'), 'tokenizers'),
  (write('tokenizer_config.json', '{"mask_token": 7}'), 'mask_token=7'),
  (write('tokenizer_config.json', '{"mask_token": "[NO]"}'), r"mask_token '\[NO\]'"),
)


def check_refused(
  source: pathlib.Path, damage: Any, value: str, folder: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
  """Damages a copy of the folder, and checks the error of `minilm import`."""
  shutil.copytree(source, folder / 'source')
  damage(folder / 'source')
  status, out, err = run_command(
    capsys, 'import', f'--from={folder / "source"}', f'--workdir={folder / "run"}'
  )
  assert status == 2 and not out and re.search(value, err), err
  assert [line.partition(':')[0] for line in err.splitlines()] == ['asked', 'found', 'to do']
  assert not (folder / 'run').exists()


@pytest.mark.parametrize('damage, value', REFUSED_WITHOUT_LIBRARY)
def test_other_folders_are_refused(damage, value: str, source, tmp_path: pathlib.Path, capsys):
  check_refused(source, damage, value, tmp_path, capsys)


@pytest.mark.parametrize('damage, value', REFUSED)
def test_files_that_do_not_fit_are_refused(
  damage, value: str, source, library, tmp_path: pathlib.Path, capsys
):
  check_refused(source, damage, value, tmp_path, capsys)


def test_a_missing_library_is_named(source, tmp_path: pathlib.Path, monkeypatch, capsys):
  monkeypatch.setattr(
    wrapped_tokenizer,
    'build_wrapper',
    lambda result: (_ for _ in ()).throw(InputError('a', 'not installed', 'pip')),
  )
  check_refused(source, lambda folder: None, 'not installed', tmp_path, capsys)


def test_config_and_tokenizer_must_have_the_same_pad(tmp_path: pathlib.Path, source, library):
  """Positions of RoBERTa start after the id of the pad."""
  folder = fake_hf_folders.write_folder(tmp_path / 'source', model_type='roberta', pad_token_id=1)
  roles = zip(hf_import._ROLES, hf_weights.FAMILIES['bert'].special_pieces, strict=True)
  (folder / 'tokenizer_config.json').write_text(json.dumps(dict(roles)))
  with pytest.raises(InputError, match='pad_token_id=1.* 0 '):
    hf_import.import_model(folder, tmp_path / 'run')


def test_every_family_names_every_parameter_once():
  for kind in hf_weights.FAMILIES.values():
    modules = kind.mlm_modules
    assert len(set(modules.values())) == len(modules)
    assert modules.keys() >= hf_weights._ENCODER_MODULES.keys()


ARRAYS = {
  'b': np.arange(6, dtype=np.float32).reshape(2, 3),
  'a': np.ones((4,), np.float32),
  'none': np.zeros((0, 2), np.float32),
  'number': np.float32(7).reshape(()),
}
TWO = {'a': np.ones(4), 'b': np.zeros(4)}
VALID = fake_hf_folders.pack_tensors(TWO)


@pytest.fixture
def safetensors():
  return pytest.importorskip(
    'safetensors.numpy', reason='needs safetensors, which is of the extra [hf]'
  )


def make_entry(first: int, end: int, shape: Any = (4,), kind: Any = 'F32') -> dict[str, Any]:
  return {'dtype': kind, 'shape': list(shape), 'data_offsets': [first, end]}


def test_arrays_of_a_file_are_read(safetensors, tmp_path: pathlib.Path):
  """Files have float32 arrays, every type of numpy, or bfloat16."""
  (tmp_path / 'x').write_bytes(fake_hf_folders.pack_tensors(ARRAYS))
  arrays_read = hf_import._read_weights(epath.Path(tmp_path / 'x'))
  assert arrays_read.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(arrays_read[name], array)
    assert arrays_read[name].shape == array.shape and arrays_read[name].dtype == np.float32
  kinds = ('float32', 'float16', 'float64', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool')
  arrays = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in kinds}
  safetensors.save_file(arrays, tmp_path / 'y', metadata={'format': 'np'})
  for name, array in hf_import._read_weights(epath.Path(tmp_path / 'y')).items():
    np.testing.assert_array_equal(array, arrays[name])
    assert array.dtype == arrays[name].dtype
  text = json.dumps({'x': make_entry(0, 4, (2,), 'BF16')}).encode()
  (tmp_path / 'z').write_bytes(
    struct.pack('<Q', len(text)) + text + np.array([1.5, -2], jnp.bfloat16).tobytes()
  )
  (array,) = hf_import._read_weights(epath.Path(tmp_path / 'z')).values()
  assert array.dtype == jnp.bfloat16 and array.tolist() == [1.5, -2]


@pytest.mark.parametrize(
  'data',
  [
    b'',
    VALID[:7],
    VALID[:40],
    VALID[:-1],
    VALID + b'x',
    struct.pack('<Q', 2**63) + VALID[8:],
    struct.pack('<Q', 2) + b'[]',
    struct.pack('<Q', 4) + b'{"a"',
    struct.pack('<Q', 9) + b'{"a": NaN',
    struct.pack('<Q', 3) + b'{\xff}',
    *(
      fake_hf_folders.pack_tensors(TWO, b=header)
      for header in (
        make_entry(0, 16),
        make_entry(8, 24),
        make_entry(16, 32, (5,)),
        make_entry(16, 32, (2**62, 2**62)),
        make_entry(16, 16, (0,)),
        make_entry(20, 32, (3,)),
        make_entry(16, 32, (16,), 'F8_E4M3'),
        make_entry(16, 32, [1] * 70 + [4]),
        make_entry(16, 32, (-4,)),
        make_entry(16, 32, (True,)),
        make_entry(16, 32, (4,), 'no'),
        7,
        {'dtype': 'F32', 'shape': [4]},
        {'dtype': 'F32', 'shape': [4], 'data_offsets': [16]},
      )
    ),
  ],
)
def test_a_malformed_file_of_weights_is_refused(data: bytes, safetensors, tmp_path: pathlib.Path):
  (tmp_path / 'x').write_bytes(data)
  with pytest.raises(InputError) as error:
    hf_import._read_weights(epath.Path(tmp_path / 'x'))
  assert str(tmp_path / 'x') in error.value.asked


def test_missing_and_large_weights_and_a_missing_library_are_refused(
  safetensors, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  path = epath.Path(tmp_path / 'x')
  with pytest.raises(InputError):
    hf_import._read_weights(path)
  path.write_bytes(VALID)
  assert hf_import._read_weights(path).keys() == TWO.keys()
  monkeypatch.setattr(hf_import, 'MAX_WEIGHT_BYTES', len(VALID) - 1)
  with pytest.raises(InputError) as error:
    hf_import._read_weights(path)
  assert f'{len(VALID):,}' in error.value.found
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(InputError) as error:
    hf_import._read_weights(path)
  assert 'safetensors' in error.value.found and 'minilm_jax[hf]' in error.value.remedy
