"""Committees: what they say is the mean of what members say, wherever they lie; what cannot answer
together is refused.
"""

import dataclasses
import itertools
import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest

from minilm_jax.core import files, lock, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data.tokenizer import Tokenizer, load_tokenizer
from minilm_jax.tasks import classifier, committee, metrics
from minilm_jax.tasks.committee import LOGIT, MEMBERS, PROBABILITY, Committee
from minilm_jax.tasks.metrics import softmax
from tests import fake_classifiers

HOW = (committee.LOGIT, committee.PROBABILITY)
pytestmark = pytest.mark.usefixtures('fast_compile')


@pytest.fixture(scope='module')
def tokenizer(tiny_corpus: pathlib.Path) -> Tokenizer:
  return load_tokenizer(tiny_corpus / 'tokenizer.model')


@pytest.fixture(scope='module')
def members(tokenizer: Tokenizer) -> list[classifier.SavedClassifier]:
  """Three of one shape and a wider one."""
  return [fake_classifiers.make_classifier(tokenizer, seed) for seed in (0, 1, 2)] + [
    fake_classifiers.make_classifier(tokenizer, 3, hidden=24)
  ]


@pytest.fixture(scope='module')
def home(members: list, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The members saved, and the committee of all; copy it before changing anything in it."""
  folder = tmp_path_factory.mktemp('committee')
  for number, member in enumerate(members):
    fake_classifiers.save_classifier(folder / 'run' / f'classifier-{number}', member)
  committee.make_committee(f'{folder}/run/classifier-*', folder / 'made')
  return folder


@pytest.mark.parametrize('how', HOW)
def test_the_mean_of_one_member_is_that_member(members: list, how: str):
  alone = classifier.compute_logits(members[:1], fake_classifiers.make_examples())[0]
  np.testing.assert_array_equal(
    Committee((members[0],)).probabilities(fake_classifiers.make_examples(), how), softmax(alone)
  )


@pytest.mark.parametrize('how', HOW)
def test_a_committee_of_one_member_several_times_is_that_member(members: list, how: str):
  once = Committee((members[0],)).probabilities(fake_classifiers.make_examples(), how)
  again = Committee((members[0],) * 4).probabilities(fake_classifiers.make_examples(), how)
  np.testing.assert_allclose(again, once, rtol=0, atol=1e-6)


def test_it_is_the_mean_of_what_members_say_and_they_differ(members: list):
  each = [
    classifier.compute_logits([member], fake_classifiers.make_examples())[0] for member in members
  ]
  assert len({one.argmax(-1).tobytes() for one in each}) > 1
  whole = Committee(tuple(members))
  np.testing.assert_allclose(
    whole.probabilities(fake_classifiers.make_examples(), committee.PROBABILITY),
    np.mean([softmax(one) for one in each], 0),
    atol=1e-5,
  )
  np.testing.assert_allclose(
    whole.probabilities(fake_classifiers.make_examples(), committee.LOGIT),
    softmax(np.mean(each, 0)),
    atol=1e-5,
  )


@pytest.mark.parametrize('lift', ['map', 'vmap'])
def test_stacked_members_say_what_each_says_alone(members: list, lift: str):
  together = classifier.compute_logits(members, fake_classifiers.make_examples(), lift)
  alone = np.stack(
    [classifier.compute_logits([member], fake_classifiers.make_examples())[0] for member in members]
  )
  np.testing.assert_allclose(together, alone, atol=1e-4)
  assert classifier.group_by_shape(members) == [[0, 1, 2], [3]]


def test_what_it_says_of_a_text_depends_on_no_other(members: list):
  whole = Committee(tuple(members))
  together = whole.logits(fake_classifiers.make_examples())
  for number, text in enumerate(fake_classifiers.TEXTS):
    np.testing.assert_allclose(
      whole.logits(fake_classifiers.make_examples((text,)))[:, 0], together[:, number], atol=1e-4
    )


def test_the_order_in_which_members_are_named_changes_no_bit(
  home: pathlib.Path, tmp_path: pathlib.Path
):
  backwards = ','.join(f'{home}/run/classifier-{number}' for number in (3, 1, 0, 2))
  committee.make_committee(backwards, tmp_path / 'made')
  first, second = (
    committee.load_committee(home / 'made'),
    committee.load_committee(tmp_path / 'made'),
  )
  assert [one.identity for one in first.members] == [one.identity for one in second.members]
  for how in HOW:
    np.testing.assert_array_equal(
      first.probabilities(fake_classifiers.make_examples(), how),
      second.probabilities(fake_classifiers.make_examples(), how),
    )
  for name in (committee.STUDY, run_dir.MANIFEST, run_dir.CONFIG):
    assert (home / 'made' / name).read_bytes() == (tmp_path / 'made' / name).read_bytes()


def test_a_folder_is_its_own_export_bit_for_bit(
  home: pathlib.Path, members: list, tmp_path: pathlib.Path
):
  ordered = tuple(sorted(members, key=lambda one: one.identity))
  before = Committee(ordered).logits(fake_classifiers.make_examples())
  shutil.copytree(home / 'run', tmp_path / 'run')
  committee.make_committee(f'{tmp_path}/run/classifier-*', tmp_path / 'made')
  np.testing.assert_array_equal(
    committee.load_committee(tmp_path / 'made').logits(fake_classifiers.make_examples()), before
  )
  shutil.move(tmp_path / 'made', tmp_path / 'elsewhere')
  shutil.rmtree(tmp_path / 'run')
  np.testing.assert_array_equal(
    committee.load_committee(tmp_path / 'elsewhere').logits(fake_classifiers.make_examples()),
    before,
  )
  assert str(tmp_path) not in (tmp_path / 'elsewhere' / run_dir.CONFIG).read_text()


def test_made_again_it_changes_nothing(home: pathlib.Path, tmp_path: pathlib.Path):
  shutil.copytree(home / 'made', tmp_path / 'made')
  before = {path: path.read_bytes() for path in (tmp_path / 'made').rglob('*') if path.is_file()}
  with lock.hold_lock(tmp_path / 'made'), pytest.raises(lock.LockedError):
    committee.make_committee(f'{home}/run/classifier-*', tmp_path / 'made')
  committee.make_committee(f'{home}/run/classifier-*', tmp_path / 'made')
  assert {
    path: path.read_bytes() for path in (tmp_path / 'made').rglob('*') if path.is_file()
  } == before


def test_subsets_are_scored_from_what_members_were_reported_on(home: pathlib.Path):
  found = json.loads((home / 'made' / committee.STUDY).read_text())
  assert found['members'] == 4 and found['examples'] == {'validation': 40} and not found['unscored']
  assert {line['size'] for line in found['lines']} == {1, 2, 3, 4}
  said = [
    classifier.read_outputs(home / 'made' / f'classifier-{number}')['validation']
    for number in range(4)
  ]
  (whole,) = [
    line
    for line in found['lines']
    if (line['size'], line['combined'], line['metric']) == (4, 'mean logit', 'accuracy')
  ]
  assert whole['mean'] == np.mean(np.mean([one for one, _ in said], 0).argmax(-1) == said[0][1])
  assert (
    len(committee.list_tables(committee.make_committee(f'{home}/run/classifier-*', home / 'made')))
    == 1
  )


def test_a_member_may_have_several_heads_and_the_table_says_so(
  members: list, tokenizer, tmp_path: pathlib.Path
):
  several = fake_classifiers.make_classifier(
    tokenizer, 7, head=dataclasses.replace(members[0].card.head, ensemble_size=3)
  )
  pair = [members[0], several]
  assert classifier.group_by_shape(pair) == [[0], [1]]
  for number, member in enumerate(pair):
    fake_classifiers.save_classifier(tmp_path / f'classifier-{number}', member)
  found = committee.make_committee(f'{tmp_path}/classifier-*', tmp_path / 'made')
  whole = committee.load_committee(tmp_path / 'made')
  said = whole.logits(fake_classifiers.make_examples())
  place = whole.members.index(
    next(one for one in whole.members if one.identity == several.identity)
  )
  np.testing.assert_array_equal(
    said[place], classifier.compute_logits([several], fake_classifiers.make_examples())[0]
  )
  assert sorted(found['heads']) == [1, 3] and found['heads'][place] == 3
  (table,) = committee.list_tables(found)
  assert f'with {found["heads"][0]}, {found["heads"][1]} heads' in table.title


def test_members_that_were_reported_on_other_examples_are_no_study(
  members: list, tmp_path: pathlib.Path
):
  fake_classifiers.save_classifier(tmp_path / 'classifier-0', members[0])
  fake_classifiers.save_classifier(tmp_path / 'classifier-1', members[1], 'others')
  found = committee.make_committee(f'{tmp_path}/classifier-*', tmp_path / 'made')
  assert found['lines'] == [] and 'different examples' in found['unscored']
  assert len(committee.load_committee(tmp_path / 'made').members) == 2 and committee.list_tables(
    found
  )


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'labels': ('a', 'b', 'c')}, 'different labels: negative, positive, neutral and a, b, c'),
    ({'task': 'sst2'}, 'different tasks: own and sst2'),
    ({'fields': ('sentence',)}, 'different columns of text'),
    ({'tokenizer': 'f' * 64}, 'different tokenizers'),
    ({'task_kind': 'regression', 'labels': ()}, 'a regression'),
  ],
)
def test_members_that_cannot_answer_together_are_refused(
  changes: dict, said: str, members: list, tokenizer, tmp_path: pathlib.Path
):
  pair = [members[0], fake_classifiers.make_classifier(tokenizer, 5, **changes)]
  with pytest.raises(InputError, match=said):
    committee.check_members(pair, ['x', 'y'])


def test_members_that_are_no_numbers_are_refused(members: list):
  broken = dataclasses.replace(
    members[0], model=jax.tree.map(lambda x: x * np.nan, members[0].model), identity='other'
  )
  with pytest.raises(InputError, match='no numbers'):
    committee.check_members([members[1], broken], ['x', 'y'])


@pytest.mark.parametrize(
  'given, said',
  [
    ('', 'names no classifier'),
    (' , ', 'names no classifier'),
    ('RUN/nothing-*', 'no folder fits'),
    ('RUN/classifier-9', 'no such folder'),
    ('RUN', r'name one inside it, such as .*/classifier-0'),
    ('RUN/classifier-0,RUN/classifier-1,RUN/classifier-0', 'once more'),
    ('RUN/classifier-0/checkpoints', 'saved whole'),
  ],
)
def test_bad_names_leave_nothing_behind(
  given: str, said: str, home: pathlib.Path, tmp_path: pathlib.Path
):
  with pytest.raises(InputError, match=said):
    committee.make_committee(given.replace('RUN', str(home / 'run')), tmp_path / 'made')
  assert not (tmp_path / 'made').exists()


def test_a_folder_of_another_committee_is_refused(home: pathlib.Path, tmp_path: pathlib.Path):
  shutil.copytree(home / 'made', tmp_path / 'made')
  with pytest.raises(InputError, match='another recipe'):
    committee.make_committee(f'{home}/run/classifier-0', tmp_path / 'made')


def lead_away(made: pathlib.Path, name: str) -> None:
  """Lets the manifest name a member outside the folder."""
  manifest = json.loads((made / run_dir.MANIFEST).read_text())
  shutil.copytree(made / 'classifier-1', made.parent / 'elsewhere')
  manifest['members'][1]['folder'] = name
  files.write_json(made / run_dir.MANIFEST, manifest)


def test_a_member_takes_no_file_of_the_reader_along(home: pathlib.Path, tmp_path: pathlib.Path):
  shutil.copytree(home / 'run' / 'classifier-0', tmp_path / 'classifier-0')
  (tmp_path / 'secret').write_text('secret')
  (tmp_path / 'classifier-0' / 'notes').symlink_to(tmp_path / 'secret')
  with pytest.raises(InputError, match='leads elsewhere'):
    committee.make_committee(str(tmp_path / 'classifier-0'), tmp_path / 'made')
  assert not list((tmp_path / 'made').rglob('notes'))


@pytest.mark.parametrize(
  'spoil, said',
  [
    (lambda made: shutil.rmtree(made), 'no file'),
    (lambda made: (made / run_dir.MANIFEST).unlink(), 'no file'),
    (lambda made: files.write_json(made / run_dir.CONFIG, {'kind': 'finetune'}), 'something else'),
    (lambda made: shutil.rmtree(made / 'classifier-1'), 'no such folder'),
    (lambda made: shutil.rmtree(made / 'classifier-1' / 'checkpoints'), 'no checkpoint'),
    (
      lambda made: (
        shutil.rmtree(made / 'classifier-1'),
        shutil.copytree(made / 'classifier-2', made / 'classifier-1'),
      ),
      'another classifier',
    ),
    (lambda made: lead_away(made, '../elsewhere'), 'leads elsewhere'),
    (lambda made: lead_away(made, '/elsewhere'), 'leads elsewhere'),
  ],
)
def test_a_committee_that_lost_something_is_refused(
  spoil, said: str, home: pathlib.Path, tmp_path: pathlib.Path
):
  shutil.copytree(home / 'made', tmp_path / 'made')
  spoil(tmp_path / 'made')
  with pytest.raises(InputError, match=said):
    committee.load_committee(tmp_path / 'made')


def some(members: int, examples: int = 60, classes: int = 3, seed: int = 0, scale: float = 2.0):
  dice = np.random.default_rng(seed)
  labels = dice.integers(0, classes, examples)
  signal = np.eye(classes)[labels]
  return scale * (signal + dice.normal(size=(members, examples, classes))), labels


def by(lines: list[committee.SubsetScore]) -> dict[tuple, committee.SubsetScore]:
  return {(line.size, line.combined, line.metric): line for line in lines}


def test_the_whole_committee_is_one_subset_and_has_no_interval():
  for members in (1, 2, 5):
    logits, labels = some(members)
    own = [
      line
      for line in committee.study_sizes(logits, labels, 'accuracy', 'test')
      if line.size == members
    ]
    assert own and all(
      line.subsets == 1 and line.every and math.isnan(line.low) and math.isnan(line.high)
      for line in own
    )


def test_all_subsets_are_taken_where_they_are_few_and_means_are_exact():
  logits, labels = some(4)
  found = by(committee.study_sizes(logits, labels, 'accuracy', 'test'))
  pairs = [
    np.mean(logits[list(pair)].mean(0).argmax(-1) == labels)
    for pair in itertools.combinations(range(4), 2)
  ]
  line = found[2, LOGIT, 'accuracy']
  assert line.subsets == 6 and line.every and line.mean == pytest.approx(np.mean(pairs))
  assert (line.low, line.high) == pytest.approx(tuple(np.percentile(pairs, (2.5, 97.5))))
  alone = [np.mean(one.argmax(-1) == labels) for one in logits]
  assert all(
    found[size, MEMBERS, 'accuracy'].mean == pytest.approx(np.mean(alone)) for size in range(1, 5)
  )


def test_a_sample_of_subsets_is_fixed_different_and_of_every_member():
  first = committee.draw_subsets(12, 6)
  assert first == committee.draw_subsets(12, 6) and len(set(first)) == committee.MAX_SUBSETS
  assert all(list(one) == sorted(set(one)) and len(one) == 6 for one in first)
  assert set(itertools.chain(*first)) == set(range(12))


def test_a_committee_of_one_is_its_member_however_it_is_combined():
  logits, labels = some(3)
  found = by(committee.study_sizes(logits, labels, 'accuracy', 'test'))
  for metric in ('accuracy', 'negative log-likelihood', 'calibration error', 'Brier score'):
    values = [found[1, how, metric].mean for how in (LOGIT, PROBABILITY, MEMBERS)]
    assert values == pytest.approx([values[0]] * 3)


@pytest.mark.parametrize('seed', range(20))
def test_the_mean_probability_is_no_worse_than_members_are_on_average(seed: int):
  """Jensen: -ln and the square are convex.

  Of the mean logit it holds of -ln softmax, convex in the logits too.
  """
  logits, labels = some(2 + seed % 5, classes=2 + seed % 4, seed=seed, scale=10.0 ** (seed % 3 - 1))
  lines = committee.study_sizes(logits, labels, 'accuracy', 'test')
  found = by(lines)
  for line in lines:
    if line.metric in ('negative log-likelihood', 'Brier score') and line.combined == PROBABILITY:
      assert line.mean <= found[line.size, MEMBERS, line.metric].mean + 1e-12
    if line.metric == 'negative log-likelihood' and line.combined == LOGIT:
      assert line.mean <= found[line.size, MEMBERS, line.metric].mean + 1e-12


def test_disagreement_is_that_of_pairs():
  logits, labels = some(3)
  logits[1] = logits[0]
  found = by(committee.study_sizes(logits, labels, 'accuracy', 'test'))
  apart = np.mean(logits[0].argmax(-1) != logits[2].argmax(-1))
  assert (
    found[3, MEMBERS, committee.DISAGREEMENT].mean == pytest.approx(2 / 3 * apart) and apart > 0
  )
  assert (1, MEMBERS, committee.DISAGREEMENT) not in found


def test_another_headline_is_scored_beside_accuracy():
  logits, labels = some(2, classes=2)
  lines = committee.study_sizes(logits, labels, 'matthews', 'test')
  assert {line.metric for line in lines if line.headline} == {'matthews'} and any(
    line.metric == 'accuracy' for line in lines
  )


def test_the_order_of_members_moves_no_whole_committee():
  logits, labels = some(5)
  for how in (LOGIT, PROBABILITY):
    np.testing.assert_allclose(
      committee.combine_outputs(logits, how),
      committee.combine_outputs(logits[::-1], how),
      rtol=1e-12,
    )
  np.testing.assert_allclose(committee.combine_outputs(logits[:1], PROBABILITY), softmax(logits[0]))
  assert metrics.softmax is softmax


def test_what_has_no_score_is_refused():
  logits, labels = some(2)
  with pytest.raises(InputError, match='no members'):
    committee.study_sizes(logits[:0], labels, 'accuracy', 'test')
  logits[0, 0, 0] = np.nan
  with pytest.raises(InputError, match='no numbers'):
    committee.study_sizes(logits, labels, 'accuracy', 'test')
