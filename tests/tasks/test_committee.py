"""Tests committees: means of members, copies of folders, scores of subsets, invalid members."""

import dataclasses
import itertools
import json
import math
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from scipy import special

from minilm_jax.core import files, lock, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.tasks import classifier, committee, committee_scores
from minilm_jax.tasks.committee import Committee
from minilm_jax.tasks.committee_scores import LOGIT, MEMBERS, PROBABILITY, combine_outputs
from minilm_jax.tasks.finetune_results import MemberSpec
from minilm_jax.training import population
from tests import fake_classifiers
from tests.run_files import read_files

COMBINED = (LOGIT, PROBABILITY)
EXAMPLES = fake_classifiers.make_examples()


@pytest.fixture(scope='module')
def members(tiny_tokenizer: Tokenizer) -> list[classifier.SavedClassifier]:
  """Returns three members of equal shape and a wider member."""
  return [
    *(fake_classifiers.make_classifier(tiny_tokenizer, seed) for seed in (0, 1, 2)),
    fake_classifiers.make_classifier(tiny_tokenizer, 3, hidden=24),
  ]


@pytest.fixture(scope='module')
def home(members: list, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Returns a folder with the saved members and their committee; copy it before changes."""
  folder = tmp_path_factory.mktemp('committee')
  for number, member in enumerate(members):
    fake_classifiers.save_classifier(folder / 'run' / f'classifier-{number}', member)
  committee.make_committee(f'{folder}/run/classifier-*', folder / 'made')
  return folder


@pytest.fixture(scope='module')
def single_logits(members: list) -> np.ndarray:
  """Returns the logits of each member, computed separately."""
  return np.stack([classifier.compute_logits([member], EXAMPLES)[0] for member in members])


@pytest.mark.parametrize('combined', COMBINED)
def test_a_committee_of_one_member_equals_the_member(
  members: list, single_logits: np.ndarray, combined: str
):
  once = combine_outputs(Committee((members[0],)).logits(EXAMPLES), combined)
  np.testing.assert_array_equal(once, softmax(single_logits[0]))
  repeated = combine_outputs(Committee((members[0],) * 4).logits(EXAMPLES), combined)
  np.testing.assert_allclose(repeated, once, rtol=0, atol=1e-6)


def test_truncated_examples_are_counted_once(members: list, capsys):
  # Members of two shapes read at most 24 tokens.
  examples = fake_classifiers.make_examples(('the dog ' * 30, 'the dog .', 'fox ' * 100))
  Committee(tuple(members)).logits(examples)
  assert capsys.readouterr().err == 'truncated 2 of 3 texts to 24 tokens\n'
  Committee(tuple(members)).logits(EXAMPLES)
  assert capsys.readouterr().err == ''


def test_probabilities_are_means_over_members(members: list, single_logits: np.ndarray):
  assert len({logits.argmax(-1).tobytes() for logits in single_logits}) > 1
  for combined, expected in (
    (PROBABILITY, np.mean([softmax(logits) for logits in single_logits], 0)),
    (LOGIT, softmax(np.mean(single_logits, 0))),
  ):
    probabilities = combine_outputs(Committee(tuple(members)).logits(EXAMPLES), combined)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


@pytest.mark.parametrize('strategy', ['map', 'vmap'])
def test_stacked_members_equal_single_members(
  members: list, single_logits: np.ndarray, strategy: str, monkeypatch: pytest.MonkeyPatch
):
  monkeypatch.setattr(population, 'choose_strategy', lambda *_: strategy)
  logits = classifier.compute_logits(members, EXAMPLES)
  np.testing.assert_allclose(logits, single_logits, atol=1e-4)
  assert [group for group, _ in classifier.stack_members(members)] == [[0, 1, 2], [3]]


def test_logits_of_a_text_do_not_depend_on_other_texts(members: list):
  soft_committee = Committee(tuple(members))
  logits = soft_committee.logits(EXAMPLES)
  for number, text in enumerate(fake_classifiers.TEXTS):
    alone = soft_committee.logits(fake_classifiers.make_examples((text,)))[:, 0]
    np.testing.assert_allclose(alone, logits[:, number], atol=1e-4)


def test_the_order_of_the_argument_changes_no_bit(home: pathlib.Path, tmp_path: pathlib.Path):
  backwards = ','.join(f'{home}/run/classifier-{number}' for number in (3, 1, 0, 2))
  committee.make_committee(backwards, tmp_path / 'made')
  first, second = (committee.load_committee(folder / 'made') for folder in (home, tmp_path))
  assert [m.identity for m in first.members] == [m.identity for m in second.members]
  for combined in COMBINED:
    np.testing.assert_array_equal(
      *(combine_outputs(pair.logits(EXAMPLES), combined) for pair in (first, second))
    )
  for name in (committee.STUDY, run_dir.MANIFEST, run_dir.CONFIG):
    assert (home / 'made' / name).read_bytes() == (tmp_path / 'made' / name).read_bytes()


def test_a_moved_committee_has_equal_logits(
  home: pathlib.Path, members: list, tmp_path: pathlib.Path
):
  ordered = tuple(sorted(members, key=lambda member: member.identity))
  before = Committee(ordered).logits(EXAMPLES)
  shutil.copytree(home / 'run', tmp_path / 'run')
  committee.make_committee(f'{tmp_path}/run/classifier-*', tmp_path / 'made')
  np.testing.assert_array_equal(
    committee.load_committee(tmp_path / 'made').logits(EXAMPLES), before
  )
  shutil.move(tmp_path / 'made', tmp_path / 'elsewhere')
  shutil.rmtree(tmp_path / 'run')
  np.testing.assert_array_equal(
    committee.load_committee(tmp_path / 'elsewhere').logits(EXAMPLES), before
  )
  assert str(tmp_path) not in (tmp_path / 'elsewhere' / run_dir.CONFIG).read_text()


def test_a_repeated_call_changes_no_file(home: pathlib.Path, tmp_path: pathlib.Path):
  shutil.copytree(home / 'made', tmp_path / 'made')
  before = read_files(tmp_path / 'made')
  with lock.hold_lock(tmp_path / 'made'), pytest.raises(lock.LockedError):
    committee.make_committee(f'{home}/run/classifier-*', tmp_path / 'made')
  committee.make_committee(f'{home}/run/classifier-*', tmp_path / 'made')
  assert read_files(tmp_path / 'made') == before


def test_subsets_are_scored_on_the_reported_examples(home: pathlib.Path):
  study = json.loads((home / 'made' / committee.STUDY).read_text())
  assert study['members'] == 4 and study['examples'] == {'validation': 40} and not study['unscored']
  assert {line['size'] for line in study['lines']} == {1, 2, 3, 4}
  folders = [home / 'made' / f'classifier-{number}' for number in range(4)]
  outputs = [committee_scores.read_outputs(folder)['validation'] for folder in folders]
  mean, labels = np.mean([logits for logits, _ in outputs], 0), outputs[0][1]
  (score,) = [
    line['mean']
    for line in study['lines']
    if (line['size'], line['combined'], line['metric']) == (4, 'mean logit', 'accuracy')
  ]
  assert score == np.mean(mean.argmax(-1) == labels)
  result = committee.make_committee(f'{home}/run/classifier-*', home / 'made')
  assert len(committee.make_committee_tables(result)) == 1


def test_a_member_may_have_several_heads(members: list, tiny_tokenizer, tmp_path: pathlib.Path):
  several = fake_classifiers.make_classifier(
    tiny_tokenizer, 7, head=dataclasses.replace(members[0].card.head, ensemble_size=3)
  )
  pair = [members[0], several]
  assert [group for group, _ in classifier.stack_members(pair)] == [[0], [1]]
  for number, member in enumerate(pair):
    fake_classifiers.save_classifier(tmp_path / f'classifier-{number}', member)
  result = committee.make_committee(f'{tmp_path}/classifier-*', tmp_path / 'made')
  loaded = committee.load_committee(tmp_path / 'made')
  index = [member.identity for member in loaded.members].index(several.identity)
  np.testing.assert_array_equal(
    loaded.logits(EXAMPLES)[index], classifier.compute_logits([several], EXAMPLES)[0]
  )
  assert sorted(result['heads']) == [1, 3] and result['heads'][index] == 3
  (table,) = committee.make_committee_tables(result)
  assert '{}, {}'.format(*result['heads']) in table.title


def test_members_with_different_examples_are_not_scored(members: list, tmp_path: pathlib.Path):
  fake_classifiers.save_classifier(tmp_path / 'classifier-0', members[0])
  fake_classifiers.save_classifier(tmp_path / 'classifier-1', members[1], 'others')
  result = committee.make_committee(f'{tmp_path}/classifier-*', tmp_path / 'made')
  assert result['lines'] == [] and result['unscored'] and committee.make_committee_tables(result)
  assert len(committee.load_committee(tmp_path / 'made').members) == 2


@pytest.mark.parametrize(
  'changes, match',
  [
    ({'labels': ('a', 'b', 'c')}, 'labels: negative, positive, neutral and a, b, c'),
    ({'task': 'sst2'}, 'own and sst2'),
    ({'fields': ('sentence',)}, 'text and sentence'),
    ({'tokenizer': 'f' * 64}, 'tokenizers: .* and f+'),
    ({'task_kind': 'regression', 'labels': ()}, 'regression'),
  ],
)
def test_incompatible_members_are_refused(changes: dict, match: str, members: list, tiny_tokenizer):
  pair = [members[0], fake_classifiers.make_classifier(tiny_tokenizer, 5, **changes)]
  with pytest.raises(InputError, match=match):
    committee.check_members(pair, ['x', 'y'])


def test_members_with_non_finite_weights_are_refused(members: list):
  model = jax.tree.map(lambda x: x * np.nan, members[0].model)
  broken = dataclasses.replace(members[0], model=model, identity='other')
  with pytest.raises(InputError, match='with y'):
    committee.check_members([members[1], broken], ['x', 'y'])


@pytest.mark.parametrize(
  'names, match',
  [
    ('', '--members='),
    (' , ', '--members= , '),
    ('RUN/nothing-*', r'nothing-\*'),
    ('RUN/classifier-9', 'classifier-9'),
    ('RUN', r'such as .*/classifier-0'),
    ('RUN/classifier-0,RUN/classifier-1,RUN/classifier-0', 'classifier-0'),
    ('RUN/classifier-0/checkpoints', 'checkpoints'),
  ],
)
def test_invalid_names_write_no_folder(
  names: str, match: str, home: pathlib.Path, tmp_path: pathlib.Path
):
  with pytest.raises(InputError, match=match):
    committee.make_committee(names.replace('RUN', str(home / 'run')), tmp_path / 'made')
  assert not (tmp_path / 'made').exists()


def test_a_folder_of_another_committee_is_refused(home: pathlib.Path, tmp_path: pathlib.Path):
  shutil.copytree(home / 'made', tmp_path / 'made')
  with pytest.raises(InputError, match='members'):
    committee.make_committee(f'{home}/run/classifier-0', tmp_path / 'made')


@pytest.mark.parametrize(
  'names, workdir', [('classifier-0', 'classifier-0'), ('classifier-[0-3]', '.')]
)
def test_a_committee_never_replaces_its_members(
  home: pathlib.Path, tmp_path: pathlib.Path, names: str, workdir: str
):
  """The numbers of the folders are not in the order of the members."""
  made = committee.load_committee(home / 'made').members
  for number, member in enumerate(reversed(range(len(made)))):
    shutil.copytree(home / 'made' / f'classifier-{member}', tmp_path / f'classifier-{number}')
  before = read_files(tmp_path)
  with pytest.raises(InputError, match='--workdir'):
    committee.make_committee(f'{tmp_path}/{names}', tmp_path / workdir)
  assert read_files(tmp_path) == before


def rename_member(folder: pathlib.Path, name: str) -> None:
  """Changes the manifest so that it names a member outside the folder."""
  manifest = json.loads((folder / run_dir.MANIFEST).read_text())
  shutil.copytree(folder / 'classifier-1', folder.parent / 'elsewhere')
  manifest['members'][1]['folder'] = name
  files.write_json(folder / run_dir.MANIFEST, manifest)


def test_links_of_a_member_are_not_copied(home: pathlib.Path, tmp_path: pathlib.Path):
  shutil.copytree(home / 'run' / 'classifier-0', tmp_path / 'classifier-0')
  (tmp_path / 'secret').write_text('secret')
  (tmp_path / 'classifier-0' / 'notes').symlink_to(tmp_path / 'secret')
  with pytest.raises(InputError, match='notes'):
    committee.make_committee(str(tmp_path / 'classifier-0'), tmp_path / 'made')
  assert not list((tmp_path / 'made').rglob('notes'))


@pytest.mark.parametrize(
  'damage, match',
  [
    (lambda folder: shutil.rmtree(folder), run_dir.CONFIG),
    (lambda folder: (folder / run_dir.MANIFEST).unlink(), run_dir.MANIFEST),
    (lambda folder: files.write_json(folder / run_dir.CONFIG, {'kind': 'finetune'}), 'committee'),
    (lambda folder: shutil.rmtree(folder / 'classifier-1'), 'classifier-1'),
    (lambda folder: shutil.rmtree(folder / 'classifier-1' / 'checkpoints'), 'checkpoints'),
    (
      lambda folder: (
        shutil.rmtree(folder / 'classifier-1'),
        shutil.copytree(folder / 'classifier-2', folder / 'classifier-1'),
      ),
      'classifier-1',
    ),
    (lambda folder: rename_member(folder, '../elsewhere'), r'\.\./elsewhere'),
    (lambda folder: rename_member(folder, '/elsewhere'), '/elsewhere'),
  ],
)
def test_a_damaged_committee_is_refused(
  damage, match: str, home: pathlib.Path, tmp_path: pathlib.Path
):
  shutil.copytree(home / 'made', tmp_path / 'made')
  damage(tmp_path / 'made')
  with pytest.raises(InputError, match=match):
    committee.load_committee(tmp_path / 'made')


def draw_logits(
  members: int, examples: int = 60, classes: int = 3, seed: int = 0, scale: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
  """Returns logits of members with an accuracy above chance, and labels."""
  draw = np.random.default_rng(seed)
  labels = draw.integers(0, classes, examples)
  signal = np.eye(classes)[labels]
  return scale * (signal + draw.normal(size=(members, examples, classes))), labels


def softmax(logits: np.ndarray) -> np.ndarray:
  return special.softmax(logits.astype(np.float64), axis=-1)


def study(logits: np.ndarray, labels: np.ndarray, headline: str = 'accuracy') -> dict[tuple, Any]:
  """Returns subset scores by size, combination and metric."""
  scores = committee_scores.study_sizes(logits, labels, headline, 'test')
  return {(score.size, score.combined, score.metric): score for score in scores}


def test_the_full_committee_is_one_subset_without_interval():
  for members in (1, 2, 5):
    scores = study(*draw_logits(members))
    full = [score for (size, *_), score in scores.items() if size == members]
    assert full and all(score.subsets == 1 and score.every for score in full)
    assert all(math.isnan(score.low) and math.isnan(score.high) for score in full)


def test_means_over_all_subsets_are_exact():
  logits, labels = draw_logits(4)
  scores = study(logits, labels)
  pairs = [
    np.mean(logits[list(pair)].mean(0).argmax(-1) == labels)
    for pair in itertools.combinations(range(4), 2)
  ]
  score = scores[2, LOGIT, 'accuracy']
  assert score.subsets == 6 and score.every and score.mean == pytest.approx(np.mean(pairs))
  assert (score.low, score.high) == pytest.approx(tuple(np.percentile(pairs, (2.5, 97.5))))
  accuracy = np.mean(logits.argmax(-1) == labels)
  for size in range(1, 5):
    assert scores[size, MEMBERS, 'accuracy'].mean == pytest.approx(accuracy)


def test_drawn_subsets_are_fixed_and_distinct_and_include_every_member():
  subsets = committee_scores.draw_subsets(12, 6)
  assert subsets == committee_scores.draw_subsets(12, 6)
  assert len(set(subsets)) == committee_scores.MAX_SUBSETS
  assert all(list(subset) == sorted(set(subset)) and len(subset) == 6 for subset in subsets)
  assert set(itertools.chain(*subsets)) == set(range(12))


@pytest.mark.parametrize('seed', range(20))
def test_committees_score_at_least_the_mean_of_their_members(seed: int):
  """The bounds are Jensen's inequality for convex losses of probabilities and logits."""
  scores = study(
    *draw_logits(2 + seed % 5, classes=2 + seed % 4, seed=seed, scale=10.0 ** (seed % 3 - 1))
  )
  bounded = {
    (PROBABILITY, 'negative log-likelihood'),
    (PROBABILITY, 'Brier score'),
    (LOGIT, 'negative log-likelihood'),
  }
  for (size, combined, metric), score in scores.items():
    if (combined, metric) in bounded:
      assert score.mean <= scores[size, MEMBERS, metric].mean + 1e-12


def test_disagreement_is_the_mean_over_pairs():
  logits, labels = draw_logits(3)
  logits[1] = logits[0]
  scores = study(logits, labels)
  different = np.mean(logits[0].argmax(-1) != logits[2].argmax(-1))
  disagreement = scores[3, MEMBERS, committee_scores.DISAGREEMENT].mean
  assert disagreement == pytest.approx(2 / 3 * different) and different > 0
  assert (1, MEMBERS, committee_scores.DISAGREEMENT) not in scores


def test_accuracy_is_scored_in_addition_to_the_headline():
  scores = study(*draw_logits(2, classes=2), headline='matthews')
  assert {score.metric for score in scores.values() if score.headline} == {'matthews'}
  assert any(metric == 'accuracy' for *_, metric in scores)


@pytest.mark.parametrize('combined', COMBINED)
def test_combined_outputs_do_not_depend_on_the_order_of_members(combined: str):
  logits, _ = draw_logits(5)
  np.testing.assert_allclose(
    combine_outputs(logits, combined),
    combine_outputs(logits[::-1], combined),
    rtol=1e-12,
  )
  single = combine_outputs(logits[:1], combined)
  np.testing.assert_allclose(single, softmax(logits[0]))


@pytest.mark.parametrize('combined', COMBINED)
def test_large_logits_have_finite_probabilities(combined: str):
  probabilities = combine_outputs(np.array([[[1e4, 0.0], [-1e4, -1e4]]]), combined)
  np.testing.assert_allclose(probabilities, [[1, 0], [0.5, 0.5]])


def test_empty_committees_and_non_finite_logits_are_refused():
  logits, labels = draw_logits(2)
  broken = logits.copy()
  broken[0, 0, 0] = np.nan
  for members in (logits[:0], broken):
    with pytest.raises(InputError, match='on test'):
      study(members, labels)


def test_folders_of_members_may_have_any_name(tmp_path: pathlib.Path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('a[1]/classifier-0', 'a[1]/classifier-1', 'lr=1,wd=2/classifier-0', 'a1/x', 'c*'):
    (tmp_path / name).mkdir(parents=True)
  both = ['a[1]/classifier-0', 'a[1]/classifier-1']
  assert committee.parse_members('a[1]/classifier-*') == both
  assert committee.parse_members('a[1]/classifier-[1],c*') == [both[1], 'c*']
  assert committee.parse_members('lr=1,wd=2/classifier-0') == ['lr=1,wd=2/classifier-0']
  assert committee.parse_members('a[1]/*, lr=1,wd=2/*') == [*both, 'lr=1,wd=2/classifier-0']


def test_patterns_skip_the_rates_that_held_out_examples_did_not_choose(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
  run = tmp_path / 'run'
  # Pre-trained members choose 1e-3, with a mean of 0.7 against 0.65; members from scratch 1e-4.
  held_out = {
    (8, 1e-4): [0.9, 0.4],
    (8, 1e-3): [0.6, 0.8],
    (None, 1e-4): [0.5, 0.5],
    (None, 1e-3): [0.4, 0.5],
  }
  specs = [
    (*key, seed, score) for key, scores in held_out.items() for seed, score in enumerate(scores)
  ]
  for member, (step, rate, seed, score) in enumerate(specs):
    (run / f'classifier-{member}').mkdir(parents=True)
    spec = MemberSpec(member, step, seed, rate)
    for metric in ('accuracy', 'f1'):
      line = {'task': 'own', 'metric': metric, 'value': 0.5, 'epoch_choice': 'best', 'held_out': 9}
      run_dir.append_line(
        run / run_dir.SCORES, {**line, **spec.log_fields(), 'validation_score': score}
      )
  chosen = [str(run / f'classifier-{member}') for member in (2, 3, 4, 5)]
  assert committee.parse_members(f'{run}/classifier-*') == chosen
  assert '4 of 8 classifiers' in capsys.readouterr().err
  named = f'{run}/classifier-0,{run}/classifier-2'
  assert committee.parse_members(named) == named.split(',')
