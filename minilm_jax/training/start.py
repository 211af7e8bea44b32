"""What must hold before the first chunk: the corpus fits the model, and the work directory is this run's."""

from typing import Any

import jax
from etils import epath

from minilm_jax import progress, recipe, run, untrusted
from minilm_jax.config import RunConfig, completed
from minilm_jax.corpus_config import CorpusConfig
from minilm_jax.errors import InputError
from minilm_jax.language import build, documents, subset
from minilm_jax.language import corpus as corpora
from minilm_jax.language import tokenizer as pieces
from minilm_jax.language.tokenizer import Tokenizer
from minilm_jax.model import size
from minilm_jax.shape import FLAG, TEXT
from minilm_jax.training import optimizer

IMPORTED = 'imported'  # the kind of a run that minilm import made, and the field of its manifest that says from what


def pretraining(folder: epath.PathLike) -> RunConfig:
  """The recipe of the run in `folder`, which is data: nothing that it names is imported or run.

  Of an imported run its `model` is true, and the rest is what `configs/base.py` has, so that every verb can read it.

  Raises:
    InputError: it is neither a pre-training run nor an imported one.
  """
  what = f'the pre-training run {folder}'
  found = run.read_object(epath.Path(folder) / run.CONFIG, what)
  kind = found['kind'] if 'kind' in found else None
  if kind == IMPORTED:
    found['kind'] = kind = 'pretrain'
  if kind != 'pretrain':
    raise InputError(what, f'a folder of kind {kind!r}', 'give the work directory of minilm pretrain or minilm import')
  try:
    return recipe.resolve(completed(found), kind)
  except InputError as error:
    raise InputError(f'{error.asked}, in {run.CONFIG} of {what}', error.found,
                     'give a run as minilm pretrain or minilm import left it') from None


def model_run(folder: epath.PathLike) -> RunConfig:
  """The recipe of the run in `folder`, whose checkpoint is one model.

  Raises:
    InputError: it is no pre-training run, or holds a population.
  """
  found = pretraining(folder)
  if found.population.members > 1:
    raise InputError(f'the model of {folder}', f'a population of {found.population.members}',
                     f'take one out: minilm take --checkpoint={folder} --member=0 --workdir={folder}-0')
  return found


def origin(folder: epath.PathLike) -> dict[str, Any]:
  """What a run was imported from and what was left out, as its manifest has it; nothing where it was trained here.

  Raises:
    InputError: the manifest is damaged.
  """
  file, what = epath.Path(folder) / run.MANIFEST, f'the manifest of {folder}'
  form = {'from': TEXT, 'head': FLAG, 'left_out': [TEXT], 'files': {}}
  found = run.read_object(file, what, {f'{IMPORTED}?': form}) if file.exists() else {}
  return found[IMPORTED] if IMPORTED in found else {}


def guessing_run(folder: epath.PathLike) -> RunConfig:
  """The recipe of the run in `folder`, whose checkpoint is one model that guesses hidden tokens.

  Raises:
    InputError: it is no pre-training run, holds a population, or was imported without the head for it.
  """
  config, found = model_run(folder), origin(folder)
  if found and not found['head']:
    raise InputError(f'guesses by the model of {folder}',
                     f'it was imported from {found["from"]} without a masked-LM head',
                     'fine-tune it, or import one with such a head: BertForMaskedLM, RobertaForMaskedLM')
  return config


def tokenizer(folder: epath.PathLike) -> Tokenizer:
  """The tokenizer of the pre-training run in `folder`.

  Raises:
    InputError: it is not the one that the run was trained with.
  """
  file = epath.Path(folder) / build.TOKENIZER
  found = pieces.load(file)
  if found.sha256 != identity(folder)['tokenizer']:
    raise InputError(f'the tokenizer of {folder}', f'{file} is not the one that the checkpoint was trained with',
                     f'restore it: the corpus of the run has it as {build.TOKENIZER}')
  return found


def identity(folder: epath.PathLike) -> dict[str, str]:
  """What the run in `folder` was trained on: hashes of its 'corpus' and 'tokenizer', and the 'corpus_folder'.

  Raises:
    InputError: its manifest is missing or damaged.
  """
  what = f'the manifest of {folder}'
  names = ('corpus', 'tokenizer', 'corpus_folder')
  found = run.read_object(epath.Path(folder) / run.MANIFEST, what, dict.fromkeys(names, TEXT))
  return {name: found[name] for name in names}


def check(config: RunConfig) -> str:
  """Checks that the corpus of the recipe, or what its own recipe will make, fits the model; touches no file.

  Returns:
    The hash of the corpus, or nothing where it is to be made.

  Raises:
    InputError: it does not.
  """
  if not _is_recipe(config.corpus):
    return check_corpus(config, epath.Path(config.corpus))['hash']
  made = _corpus_recipe(config)
  vocabulary = 0 if made.tokenizer.path else made.tokenizer.size  # a tokenizer that is there says its size itself
  _check_fit(config, f'the corpus of {config.corpus}', vocabulary, made.rows.length)
  documents.expand(made.documents)
  return ''


def _is_recipe(corpus: str) -> bool:
  return corpus.partition(':')[0].endswith('.py')


def _corpus_recipe(config: RunConfig) -> CorpusConfig:
  return recipe.resolve(recipe.load(config.corpus), 'corpus')


def _check_fit(config: RunConfig, corpus: str, vocabulary: int, length: int) -> None:
  for name, have, need in (('vocabulary', config.model.vocabulary, vocabulary),
                           ('length', config.model.length, length)):
    if have < need:
      raise InputError(f'model.{name}={have}', f'{corpus} has {name} {need}', f'give --config.model.{name}={need}')


def check_corpus(config: RunConfig, folder: epath.Path) -> dict[str, Any]:
  """The manifest of the corpus, after checking that the model can read it.

  Raises:
    InputError: no corpus is named or there, the model is too small for it, or it for the part that is asked for.
  """
  if not config.corpus:
    raise InputError('a corpus to train on', "corpus=''", 'give --config.corpus=FOLDER; minilm corpus makes one')
  described = corpora.manifest(folder)
  _check_fit(config, f'the corpus {folder}', described['vocabulary'], described['length'])
  if not described['splits']['train']['rows']:
    raise InputError(f'the training split of {folder}', 'no rows', 'build the corpus from more text')
  subset.check(config.subset, described, folder)
  return described


def enter(config: RunConfig, workdir: epath.PathLike) -> tuple[epath.Path, epath.Path]:
  """Makes the work directory, or enters that of an earlier start, and builds the corpus if a recipe names it.

  Returns:
    The work directory and the folder of the corpus.

  Raises:
    InputError: the directory belongs to another recipe, corpus or tokenizer, or to an imported model.
  """
  if found := origin(workdir):
    raise InputError(f'pre-training in {workdir}', f'it holds a model that was imported from {found["from"]}',
                     'give another --workdir; what is imported is fine-tuned: minilm finetune --checkpoint')
  made = _is_recipe(config.corpus)
  known = (epath.Path(workdir) / run.MANIFEST).exists()  # by its hash, so that a corpus may have moved
  workdir = run.open_run(workdir, recipe.as_dict(config), free=['corpus'] if known and not made else [])
  folder = epath.Path(config.corpus)
  if made:
    folder = build.build(_corpus_recipe(config), workdir / 'corpus')
  _claim(workdir, config, folder, check_corpus(config, folder))
  return workdir, folder


def _claim(workdir: epath.Path, config: RunConfig, folder: epath.Path, described: dict[str, Any]) -> None:
  """Writes the run's manifest and tokenizer, or checks them against those of an earlier start."""
  hashes = {'corpus': described['hash'], 'tokenizer': described['tokenizer']['sha256']}
  if (workdir / run.MANIFEST).exists():
    before = identity(workdir)
    for name, value in hashes.items():
      if before[name] != value:
        found = f'it was trained on another {name}: {before[name][:12]} there, {value[:12]} in {folder}'
        raise InputError(f'the run in {workdir}', found, 'give the corpus it was started with, or another --workdir')
    if before['corpus_folder'] != str(folder):
      progress.say(f'the corpus of {workdir} was {before["corpus_folder"]} and is {folder} now')
      run.write_json(workdir / run.MANIFEST, run.read_object(workdir / run.MANIFEST, f'the manifest of {workdir}')
                     | {'corpus_folder': str(folder)})
    return
  file = untrusted.inside(folder, described['tokenizer']['file'], f'the tokenizer of {folder}')
  if not file.is_file() or run.sha256(file) != hashes['tokenizer']:
    raise InputError(f'the tokenizer {file}', 'not the file that the corpus was made with',
                     'build the corpus again, or copy it again')
  run.write_bytes(workdir / build.TOKENIZER, untrusted.read_bytes(file, f'the tokenizer {file}'))
  run.write_json(workdir / run.MANIFEST, {
      **hashes, 'corpus_folder': str(folder), 'training': _training(config, folder, described),
      'parameters': size.parameters(config.model),
      'flops_per_row': size.flops_per_row(config.model, config.mask),
      'warmup': optimizer.warmup(config.optimizer, config.updates), 'jax': jax.__version__,
      'devices': [d.device_kind for d in jax.devices()],
  })


def _training(config: RunConfig, folder: epath.Path, described: dict[str, Any]) -> dict[str, Any]:
  """What the run is trained on: rows, tokens, those of the whole split, and how the corpus overlaps with a task.

  Overlap is that of the corpus as it is, so a part of it that the recipe takes has none.
  """
  whole = described['splits'][subset.TRAIN]
  found = subset.size(config.subset, folder, described)
  overlap = described['subset'] if 'subset' in described and found['rows'] == whole['rows'] else None
  return found | {'of_rows': whole['rows'], 'of_tokens': whole['tokens'], 'subset': overlap}
