"""A folder of Hugging Face's as a run: the same vectors, logits and pieces as theirs, and every
verb takes it.
"""

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
from minilm_jax.interop import hf_config, hf_import, hf_weights
from minilm_jax.model import heads
from minilm_jax.tasks import task_data
from minilm_jax.tasks.examples import Examples
from minilm_jax.training import checkpoint, pretrained
from tests import fake_hf_folders, fast_jit

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


@pytest.fixture(scope='module')
def transformers(library):
  pytest.importorskip('torch', reason='needs PyTorch, which is of the extra [hf]').set_num_threads(
    1
  )
  return pytest.importorskip(
    'transformers', reason='needs transformers, which is of the extra [hf]'
  )


def their_tokenizer(library: Any, transformers: Any, like_bert: bool) -> Any:
  """A small tokenizer as one of theirs, with their marks around one text and between two."""
  names = hf_config.HF_FAMILIES['bert' if like_bert else 'roberta'].special
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
    # the last of all, as in theirs
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


def their_model(transformers: Any, kind: str, ending: str, vocabulary: int, **changes: Any) -> Any:
  """A small model of theirs, every weight random: biases of zero and gains of one would hide
  mistakes.
  """
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


def ours_of(ids: np.ndarray, workdir: pathlib.Path) -> np.ndarray:
  """Their ids under our numbers."""
  order = pretrained.load_tokenizer(workdir)._processor.order
  return np.argsort(order)[ids]


def vectors(workdir: pathlib.Path, tokens: np.ndarray) -> np.ndarray:
  """What the encoder of a run makes of tokens."""
  config = pretrained.load_single_config(workdir).model
  shapes = jax.eval_shape(
    lambda: heads.init_masked_language_model(config, jax.random.key(0)).encoder
  )
  encoder = checkpoint.restore_part(workdir, shapes, 'model.encoder')
  return np.asarray(
    fast_jit.jit(lambda model, x: model(x, x != tokenizer.PAD_ID))(encoder, jnp.asarray(tokens))
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
def test_vectors_and_logits_are_theirs(
  kind: str, ending: str, changes: dict[str, Any], transformers, library, tmp_path: pathlib.Path
):
  """Of padded rows of one text and of two, read by either tokenizer."""
  import torch

  like_bert = kind in ('bert', 'electra')
  reads = their_tokenizer(library, transformers, like_bert)
  model = their_model(transformers, kind, ending, len(reads), **changes)
  for part in (reads, model):
    part.save_pretrained(tmp_path / 'theirs')
  result = hf_import.import_model(tmp_path / 'theirs', tmp_path / 'run')

  tokenizer = pretrained.load_tokenizer(tmp_path / 'run')
  config = pretrained.load_single_config(tmp_path / 'run').model
  examples = Examples(FIRST + FIRST, ('',) * len(FIRST) + SECOND, np.zeros(8, np.int32))
  alone = task_data.encode_examples(
    Examples(FIRST, (), np.zeros(4, np.int32)), tokenizer, config.max_length
  )[0]
  both = task_data.encode_examples(examples, tokenizer, config.max_length)[0][len(FIRST) :]
  padding = {'padding': 'max_length', 'max_length': 30, 'return_tensors': 'np'}
  theirs, pairs = reads([*FIRST], **padding), reads([*FIRST], [*SECOND], **padding)
  ids = np.concatenate([theirs['input_ids'], pairs['input_ids']])
  tokens = task_data.build_task_rows([*alone, *both], np.zeros(8, np.int32), 30).tokens
  np.testing.assert_array_equal(tokens, ours_of(ids, tmp_path / 'run'))

  inputs = {'input_ids': ids, 'attention_mask': (tokens != PAD_ID).astype(np.int64)}
  if like_bert:
    inputs['token_type_ids'] = np.concatenate([theirs['token_type_ids'], pairs['token_type_ids']])
    assert inputs['token_type_ids'].any()
  real = tokens != PAD_ID
  body = getattr(model, model.base_model_prefix, model)
  with torch.no_grad():
    expected = body(
      **{name: torch.from_numpy(value) for name, value in inputs.items()}
    ).last_hidden_state.numpy()
  np.testing.assert_allclose(vectors(tmp_path / 'run', tokens)[real], expected[real], atol=1e-4)
  assert np.abs(expected[real]).max() > 1  # and that is much more than the tolerance

  head = ending == 'ForMaskedLM' or (kind, ending) == ('bert', 'ForPreTraining')
  head = head and not config.projection and (kind == 'bert' or config.activation == 'gelu')
  assert result['head'] == head and bool(result['left_out']) == (
    ending != 'ForMaskedLM' or not head
  ) - (kind == 'electra' and ending == 'Model')
  if not head:
    with pytest.raises(InputError, match='BertForMaskedLM'):
      inference.fill_mask(tmp_path / 'run', 'the <mask> .', 3)
    return
  with torch.no_grad():
    message = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
  expected = (message.prediction_logits if ending == 'ForPreTraining' else message.logits).numpy()
  order = tokenizer._processor.order
  everywhere = jnp.broadcast_to(jnp.arange(30), tokens.shape)
  ours = pretrained.load(tmp_path / 'run').model
  result = np.asarray(
    fast_jit.jit(lambda model, x: model(x, x != PAD_ID, everywhere))(ours, jnp.asarray(tokens))
  )
  np.testing.assert_allclose(result[real], expected[real][:, order], atol=1e-4)


def test_holes_are_filled_as_theirs_are(transformers, library, tmp_path: pathlib.Path):
  """A space before a hole is no piece, as their `<mask>` takes it in."""
  import torch

  reads = their_tokenizer(library, transformers, like_bert=False)
  model = their_model(transformers, 'roberta', 'ForMaskedLM', len(reads))
  for part in (reads, model):
    part.save_pretrained(tmp_path / 'theirs')
  hf_import.import_model(tmp_path / 'theirs', tmp_path / 'run')
  text = 'The dog <mask> near the <mask> .'
  inputs = reads(text, return_tensors='pt')
  with torch.no_grad():
    shares = model(input_ids=inputs['input_ids']).logits.softmax(-1)[0][
      inputs['input_ids'][0] == reads.mask_token_id
    ]
  order = pretrained.load_tokenizer(tmp_path / 'run')._processor.order
  expected = np.sort(shares.numpy()[:, order[5:]], axis=1)[:, ::-1][:, :3]
  result = inference.fill_mask(tmp_path / 'run', text, 3)
  np.testing.assert_allclose([guess.probability for guess in result], expected.ravel(), atol=1e-5)


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A folder with a small BERT, made by hand; copy it before changing anything in it."""
  return fake_hf_folders.write_folder(tmp_path_factory.mktemp('hugging') / 'theirs')


@pytest.fixture(scope='module')
def brought(
  source: pathlib.Path, library, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
  """The run that it makes; copy it before changing anything in it."""
  workdir = tmp_path_factory.mktemp('brought') / 'run'
  assert main.main(['import', f'--from={source}', f'--workdir={workdir}']) == 0
  return workdir


def run_command(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
  capsys.readouterr()
  status = main.main(list(arguments))
  return status, *capsys.readouterr()


def test_the_run_says_where_it_came_from(source: pathlib.Path, brought: pathlib.Path):
  manifest = json.loads((brought / run_dir.MANIFEST).read_text())
  assert (
    manifest['imported']['from'] == str(source) and manifest['imported']['model_type'] == 'bert'
  )
  assert manifest['imported']['files'] == {
    name: files.hash_file(source / name)
    for name in ('config.json', 'model.safetensors', 'vocab.txt')
  }
  assert (
    manifest['imported']['left_out'] == ['the pooler (bert.pooler.*)']
    and manifest['imported']['head'] is True
  )
  assert json.loads((brought / run_dir.CONFIG).read_text())['kind'] == 'imported'
  assert checkpoint.list_steps(brought) == [0] and not checkpoint.verify(brought, 0)
  result = json.loads((brought / run_dir.RESULT).read_text())
  expected = sum(
    array.size
    for name, array in fake_hf_folders.draw_bert_weights().items()
    if 'pooler' not in name
  )
  assert (
    result['imported'] is True
    and result['parameters'] == manifest['parameters']['total'] == expected
  )
  assert manifest['tokenizer'] == files.hash_file(brought / 'tokenizer.model')


def test_every_verb_takes_it(brought: pathlib.Path, tmp_path: pathlib.Path, capsys):
  status, out, _ = run_command(
    capsys, 'fill-mask', f'--checkpoint={brought}', '--text=The <mask> was good .', '--json'
  )
  assert status == 0 and len(json.loads(out)['guesses']) == 5
  status, out, _ = run_command(
    capsys, 'evaluate', f'--checkpoint={brought}', '--text=the dog was good .'
  )
  assert status == 0 and json.loads(out)['tokens'] == 5 and json.loads(out)['pseudo_perplexity'] > 1
  status, out, _ = run_command(capsys, 'show', f'--checkpoint={brought}', '--json')
  shown = json.loads(out)
  assert (
    status == 0
    and shown['imported']['model_type'] == 'bert'
    and shown['recipe']['model']['segment_embeddings_for_pairs']
  )
  assert shown['parameters'] == json.loads((brought / run_dir.RESULT).read_text())['parameters']

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
    '--config=configs/glue.py:sst2',
    f'--config.task.folder={tmp_path}',
    '--config.seeds=0,1',
    '--config.epochs=12',
    '--config.batch_size=8',
    '--config.optimizer.learning_rate=1e-2',
    '--config.save_classifiers=True',
    f'--checkpoint={brought}',
    f'--workdir={tmp_path / "task"}',
  )
  assert status == 0, err
  scores = [
    line['value']
    for line in run_dir.read_lines(tmp_path / 'task' / run_dir.SCORES)
    if line['headline']
  ]
  assert len(scores) == 2 and min(scores) > 0.9  # which words are in a row is what labels hang on
  status, out, err = run_command(
    capsys,
    'predict',
    f'--classifier={tmp_path / "task" / "classifier-0"}',
    '--text=The DOG was good',
    '--json',
  )
  assert status == 0 and json.loads(out)['label'] == 'positive', (out, err)


def test_it_is_not_taken_for_pre_training(brought: pathlib.Path, tiny_corpus: pathlib.Path, capsys):
  status, _, err = run_command(
    capsys,
    'pretrain',
    '--config=configs/tiny.py',
    f'--config.corpus={tiny_corpus}',
    f'--workdir={brought}',
  )
  assert status == 2 and 'it holds a model that was imported from' in err
  status, _, err = run_command(capsys, 'evaluate', f'--checkpoint={brought}')
  assert status == 2 and 'it was imported, and has no corpus of its own' in err
  status, _, err = run_command(
    capsys, 'show', f'--checkpoint={brought}', '--config=configs/tiny.py'
  )
  assert status == 2 and 'a recipe and a run' in err


def test_importing_again_does_nothing_and_goes_on_after_a_stop(
  source, brought, tmp_path: pathlib.Path, capsys
):
  workdir = tmp_path / 'run'
  shutil.copytree(brought, workdir)
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
  status, out, err = run_command(capsys, 'import', f'--from={source}', f'--workdir={workdir}')
  assert status == 0 and 'nothing to do' in err and json.loads(out)['model_type'] == 'bert'
  assert {path: path.stat().st_mtime_ns for path in workdir.rglob('*')} == before
  (workdir / run_dir.RESULT).unlink()
  shutil.rmtree(workdir / checkpoint.FOLDER)
  (workdir / run_dir.CONFIG).unlink()
  assert run_command(capsys, 'import', f'--from={source}', f'--workdir={workdir}')[0] == 0
  assert (workdir / run_dir.RESULT).read_bytes() == (brought / run_dir.RESULT).read_bytes()
  assert checkpoint.list_steps(workdir) == [0]


def test_a_folder_with_something_else_is_left_alone(
  source, brought, tmp_path: pathlib.Path, library
):
  mine = tmp_path / 'mine'
  mine.mkdir()
  (mine / 'letter.txt').write_text('dear')
  with pytest.raises(InputError, match='letter.txt'):
    hf_import.import_model(source, mine)
  assert [path.name for path in mine.iterdir()] == ['letter.txt']
  with pytest.raises(InputError, match='letter.txt'):
    hf_import.import_model(source, mine / 'letter.txt')
  other_folder = fake_hf_folders.write_folder(
    tmp_path / 'theirs', fake_hf_folders.draw_bert_weights(seed=1)
  )
  shutil.copytree(brought, tmp_path / 'run')
  with pytest.raises(InputError, match='--workdir'):
    hf_import.import_model(other_folder, tmp_path / 'run')


def test_names_of_older_files_are_taken(library, tmp_path: pathlib.Path, source):
  """A model that was saved alone has no family in front, and the first BERTs have norms of gamma
  and beta.
  """
  old = {
    name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
      'LayerNorm.bias', 'LayerNorm.beta'
    ): array
    for name, array in fake_hf_folders.draw_bert_weights().items()
  }
  old['bert.embeddings.position_ids'] = np.arange(32.0)
  old['cls.predictions.decoder.weight'] = old['bert.embeddings.word_embeddings.weight']
  alone = {
    name[5:]: array
    for name, array in fake_hf_folders.draw_bert_weights().items()
    if name.startswith('bert.')
  }
  tokens = np.array([[0, 40, 41, 42, 2, 43, 2, 1]])
  runs = {}
  for name, weights in (('old', old), ('single', alone), ('today', None)):
    fake_hf_folders.write_folder(tmp_path / name, weights)
    hf_import.import_model(tmp_path / name, tmp_path / f'{name} run')
    runs[name] = vectors(tmp_path / f'{name} run', tokens)
  np.testing.assert_array_equal(runs['old'], runs['today'])
  np.testing.assert_array_equal(runs['single'], runs['today'])


def test_settings_of_a_vocabulary_are_followed(library, tmp_path: pathlib.Path):
  theirs = epath.Path(fake_hf_folders.write_folder(tmp_path / 'theirs'))
  kind = hf_config.HF_FAMILIES['bert']
  lowered = hf_import._read_tokenizer(theirs, kind)
  assert lowered.encode(['The dög']) == lowered.encode(['the dog'])
  (theirs / 'tokenizer_config.json').write_text(
    json.dumps({'do_lower_case': False, 'mask_token': {'content': 'film'}})
  )
  cased = hf_import._read_tokenizer(theirs, kind)
  assert cased.encode(['The']) == [[tokenizer.UNKNOWN_ID]]
  assert cased._processor.order[tokenizer.MASK_ID] == fake_hf_folders.WORDS.index('film')


def written(name: str, data: bytes | str):
  return lambda folder: (folder / name).write_bytes(
    data.encode() if isinstance(data, str) else data
  )


def removed(*names: str):
  return lambda folder: [(folder / name).unlink() for name in names]


def config(**changes: Any):
  return written(
    'config.json',
    json.dumps({k: v for k, v in (fake_hf_folders.BERT | changes).items() if v is not None}),
  )


def weights(**changes: Any):
  """Changes of weights, with `_` for the dots of their names; None leaves one out."""
  result = fake_hf_folders.draw_bert_weights() | {
    name.replace('__', '.'): array for name, array in changes.items()
  }
  return written(
    'model.safetensors',
    fake_hf_folders.pack_tensors({k: v for k, v in result.items() if v is not None}),
  )


def sharded(folder: pathlib.Path) -> None:
  (folder / 'model.safetensors').rename(folder / 'model-00001-of-00002.safetensors')
  (folder / 'model.safetensors.index.json').write_text('{}')


WITHOUT = (  # the library of tokenizers
  (shutil.rmtree, 'no such folder'),
  (removed('config.json'), 'no file'),
  (written('config.json', '{'), 'is not JSON'),
  (written('config.json', '[]'), 'not an object'),
  (removed('model.safetensors'), 'no model.safetensors'),
  (
    lambda folder: (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin'),
    'no model.safetensors but pytorch_model.bin\nto do: .*AutoModelForPreTraining',
  ),
  (sharded, "but model.safetensors.index.json\nto do: .*max_shard_size='2GB'"),
  (config(model_type='gpt2'), "model_type='gpt2'"),
  (config(model_type='berd'), "did you mean 'bert'"),
  (config(model_type=None), 'model_type=None\nto do: name it'),
  (config(model_type=7), 'model_type=7'),
  (config(position_embedding_type='relative_key'), "position_embedding_type='relative_key'"),
  (config(is_decoder=True), 'is_decoder=True'),
  (config(add_cross_attention=True), 'add_cross_attention=True'),
  (config(chunk_size_feed_forward=4), 'chunk_size_feed_forward=4'),
  (config(auto_map={'AutoModel': 'x.Y'}), 'auto_map'),
  (config(quantization_config={'bits': 4}), 'quantization_config'),
  (config(pruned_heads={'0': [1]}), 'pruned_heads'),
  (config(architectures=['BertForSequenceClassification']), 'a head that is no part of ours'),
  (config(architectures=[7]), r'architectures\[0\] is 7'),
)
WITH = (
  (config(hidden_act='mish'), "hidden_act='mish'"),
  (config(hidden_act=[1]), 'hidden_act is'),
  (config(hidden_size=None), 'no hidden_size'),
  (config(hidden_size=-16), 'hidden_size is -16'),
  (config(num_attention_heads=3), 'not a multiple'),
  (config(num_hidden_layers=0), 'layers'),
  (config(max_position_embeddings=3), 'longer rows'),
  (config(layer_norm_eps='x'), 'layer_norm_eps is'),
  (config(vocab_size=10**12), 'pieces|vocab'),
  (config(vocab_size=len(fake_hf_folders.WORDS) - 1), 'a tokenizer of'),
  (config(vocab_size=len(fake_hf_folders.WORDS) + 1000), 'a tokenizer of'),
  (config(num_hidden_layers=2), 'missing: bert.encoder'),
  (config(intermediate_size=32), 'of another shape'),
  (config(type_vocab_size=1), 'of another shape'),
  (config(vocab_size=len(fake_hf_folders.WORDS) + 1), 'of another shape'),
  (config(tie_word_embeddings=False), 'missing: cls'),
  (weights(bert__pooler__dense__weight=None, more=np.zeros(2)), 'left over: more'),
  (weights(bert__embeddings__LayerNorm__bias=None), 'missing: bert.embeddings.LayerNorm.bias'),
  (
    weights(bert__embeddings__LayerNorm__bias=np.zeros(15)),
    'of another shape: bert.embeddings.LayerNorm.bias',
  ),
  (
    weights(bert__embeddings__LayerNorm__bias=np.full(16, np.nan)),
    'not finite: bert.embeddings.LayerNorm.bias',
  ),
  (
    lambda folder: (folder / 'model.safetensors').write_bytes(
      (folder / 'model.safetensors').read_bytes()[:-9]
    ),
    'no valid safetensors file',
  ),
  (removed('vocab.txt'), 'neither tokenizer.json nor vocab.txt'),
  (written('vocab.txt', b'\xff'), 'not UTF-8'),
  (written('vocab.txt', 'a\nb\n'), r"no cls_token '\[CLS\]', pad_token"),
  (written('tokenizer.json', '{'), 'is not JSON'),
  (written('tokenizer.json', '{}'), 'library tokenizers reports|no model'),
  (written('tokenizer_config.json', '7'), 'not an object'),
  (written('tokenizer.json', '{"model": {"type": "Magic"}}'), 'library tokenizers reports'),
  (written('tokenizer_config.json', '{"mask_token": 7}'), 'mask_token=7'),
  (written('tokenizer_config.json', '{"mask_token": "[NO]"}'), r"no mask_token '\[NO\]'"),
)


def refused(
  source: pathlib.Path,
  spoil: Any,
  message: str,
  folder: pathlib.Path,
  capsys: pytest.CaptureFixture,
) -> None:
  shutil.copytree(source, folder / 'theirs')
  spoil(folder / 'theirs')
  status, out, err = run_command(
    capsys, 'import', f'--from={folder / "theirs"}', f'--workdir={folder / "run"}'
  )
  assert status == 2 and not out and re.search(message, err), err
  assert [line.partition(':')[0] for line in err.splitlines()] == ['asked', 'found', 'to do']
  assert not (folder / 'run').exists()


@pytest.mark.parametrize('spoil, message', WITHOUT)
def test_what_cannot_be_a_model_is_refused(
  spoil, message: str, source, tmp_path: pathlib.Path, capsys
):
  refused(source, spoil, message, tmp_path, capsys)


@pytest.mark.parametrize('spoil, message', WITH)
def test_what_does_not_fit_is_refused(
  spoil, message: str, source, library, tmp_path: pathlib.Path, capsys
):
  refused(source, spoil, message, tmp_path, capsys)


def test_without_the_library_it_is_named(source, tmp_path: pathlib.Path, monkeypatch, capsys):
  monkeypatch.setattr(
    wrapped_tokenizer,
    'build_wrapper',
    lambda result: (_ for _ in ()).throw(InputError('a', 'not installed', 'pip')),
  )
  refused(source, lambda folder: None, 'not installed', tmp_path, capsys)


def test_pads_are_where_both_say(tmp_path: pathlib.Path, source, library):
  """Of a RoBERTa positions count from the pad, so that config.json and tokenizer must mean the same
  one.
  """
  theirs = fake_hf_folders.write_folder(tmp_path / 'theirs', model_type='roberta', pad_token_id=1)
  (theirs / 'tokenizer_config.json').write_text(
    json.dumps(dict(zip(hf_import._ROLES, hf_config.HF_FAMILIES['bert'].special, strict=True)))
  )
  with pytest.raises(InputError, match='pad_token_id=1.* 0 '):
    hf_import.import_model(theirs, tmp_path / 'run')


def test_every_family_names_every_parameter():
  """Two parameters never have one weight, whichever switches are on."""
  for kind in hf_config.HF_FAMILIES.values():
    names = [name for name in kind.family.masked.values()]
    assert len(set(names)) == len(names) and set(kind.family.masked) >= set(
      hf_weights._ENCODER_MODULES.keys()
    )


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


def entry(first: int, end: int, shape: Any = (4,), kind: Any = 'F32') -> dict[str, Any]:
  return {'dtype': kind, 'shape': list(shape), 'data_offsets': [first, end]}


def test_arrays_of_a_file_come_back(safetensors, tmp_path: pathlib.Path):
  """Those written by hand, those of their library in every type of numpy, and bfloat16."""
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
  text = json.dumps({'x': entry(0, 4, (2,), 'BF16')}).encode()
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
      fake_hf_folders.pack_tensors(TWO, b=b)
      for b in (
        entry(0, 16),
        entry(8, 24),
        entry(16, 32, (5,)),
        entry(16, 32, (2**62, 2**62)),
        entry(16, 16, (0,)),
        entry(20, 32, (3,)),
        entry(16, 32, (16,), 'F8_E4M3'),
        entry(16, 32, [1] * 70 + [4]),
        entry(16, 32, (-4,)),
        entry(16, 32, (True,)),
        entry(16, 32, (4,), 'no'),
        7,
        {'dtype': 'F32', 'shape': [4]},
        {'dtype': 'F32', 'shape': [4], 'data_offsets': [16]},
      )
    ),
  ],
)
def test_a_malformed_file_of_weights_is_refused(data: bytes, safetensors, tmp_path: pathlib.Path):
  (tmp_path / 'x').write_bytes(data)
  with pytest.raises(InputError) as refusal:
    hf_import._read_weights(epath.Path(tmp_path / 'x'))
  assert str(tmp_path / 'x') in refusal.value.asked


def test_weights_that_are_missing_too_large_or_without_their_library_are_refused(
  safetensors, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  path = epath.Path(tmp_path / 'x')
  with pytest.raises(InputError):
    hf_import._read_weights(path)
  path.write_bytes(VALID)
  assert hf_import._read_weights(path).keys() == TWO.keys()
  monkeypatch.setattr(hf_import, 'MAX_WEIGHT_BYTES', len(VALID) - 1)
  with pytest.raises(InputError) as refusal:
    hf_import._read_weights(path)
  assert f'{len(VALID):,}' in refusal.value.found
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(InputError) as refusal:
    hf_import._read_weights(path)
  assert 'safetensors' in refusal.value.found and 'minilm_jax[hf]' in refusal.value.remedy
