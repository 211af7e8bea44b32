"""Committees: what they say is the mean of what members say, wherever they lie; what cannot answer together is refused."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from minilm_jax import claim, run
from minilm_jax.errors import InputError
from minilm_jax.language import tokenizer as pieces
from minilm_jax.tasks import classifiers, committee, forward, subsets
from minilm_jax.tasks.calibration import softmax
from minilm_jax.tasks.committee import Committee
from tests import fake_classifiers

HOW = (subsets.LOGIT, subsets.PROBABILITY)


pytestmark = pytest.mark.usefixtures('fast_compile')


@pytest.fixture(scope='module')
def tokenizer(tiny_corpus: pathlib.Path) -> pieces.Tokenizer:
  return pieces.load(tiny_corpus / 'tokenizer.model')


@pytest.fixture(scope='module')
def members(tokenizer: pieces.Tokenizer) -> list[classifiers.Fitted]:
  """Three of one shape and a wider one."""
  return [fake_classifiers.make_classifier(tokenizer, seed) for seed in (0, 1, 2)] + [fake_classifiers.make_classifier(tokenizer, 3, hidden=24)]


@pytest.fixture(scope='module')
def home(members: list, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The members saved, and the committee of all; copy it before changing anything in it."""
  folder = tmp_path_factory.mktemp('committee')
  for number, member in enumerate(members):
    fake_classifiers.save_classifier(folder / 'run' / f'classifier-{number}', member)
  committee.make(f'{folder}/run/classifier-*', folder / 'made')
  return folder


@pytest.mark.parametrize('how', HOW)
def test_the_mean_of_one_member_is_that_member(members: list, how: str):
  alone = forward.logits(members[:1], fake_classifiers.make_examples())[0]
  np.testing.assert_array_equal(Committee((members[0],)).probabilities(fake_classifiers.make_examples(), how), softmax(alone))


@pytest.mark.parametrize('how', HOW)
def test_a_committee_of_one_member_several_times_is_that_member(members: list, how: str):
  once = Committee((members[0],)).probabilities(fake_classifiers.make_examples(), how)
  again = Committee((members[0],) * 4).probabilities(fake_classifiers.make_examples(), how)
  np.testing.assert_allclose(again, once, rtol=0, atol=1e-6)


def test_it_is_the_mean_of_what_members_say_and_they_differ(members: list):
  each = [forward.logits([member], fake_classifiers.make_examples())[0] for member in members]
  assert len({one.argmax(-1).tobytes() for one in each}) > 1
  whole = Committee(tuple(members))
  np.testing.assert_allclose(whole.probabilities(fake_classifiers.make_examples(), subsets.PROBABILITY),
                             np.mean([softmax(one) for one in each], 0), atol=1e-5)
  np.testing.assert_allclose(whole.probabilities(fake_classifiers.make_examples(), subsets.LOGIT), softmax(np.mean(each, 0)), atol=1e-5)


@pytest.mark.parametrize('lift', ['map', 'vmap'])
def test_stacked_members_say_what_each_says_alone(members: list, lift: str):
  together = forward.logits(members, fake_classifiers.make_examples(), lift)
  alone = np.stack([forward.logits([member], fake_classifiers.make_examples())[0] for member in members])
  np.testing.assert_allclose(together, alone, atol=1e-4)
  assert forward.groups(members) == [[0, 1, 2], [3]]


def test_what_it_says_of_a_text_depends_on_no_other(members: list):
  whole = Committee(tuple(members))
  together = whole.logits(fake_classifiers.make_examples())
  for number, text in enumerate(fake_classifiers.TEXTS):
    np.testing.assert_allclose(whole.logits(fake_classifiers.make_examples((text,)))[:, 0], together[:, number], atol=1e-4)


def test_the_order_in_which_members_are_named_changes_no_bit(home: pathlib.Path, tmp_path: pathlib.Path):
  backwards = ','.join(f'{home}/run/classifier-{number}' for number in (3, 1, 0, 2))
  committee.make(backwards, tmp_path / 'made')
  first, second = committee.load(home / 'made'), committee.load(tmp_path / 'made')
  assert [one.identity for one in first.members] == [one.identity for one in second.members]
  for how in HOW:
    np.testing.assert_array_equal(first.probabilities(fake_classifiers.make_examples(), how),
                                  second.probabilities(fake_classifiers.make_examples(), how))
  for name in (committee.STUDY, run.MANIFEST, run.CONFIG):
    assert (home / 'made' / name).read_bytes() == (tmp_path / 'made' / name).read_bytes()


def test_a_folder_is_its_own_export_bit_for_bit(home: pathlib.Path, members: list, tmp_path: pathlib.Path):
  ordered = tuple(sorted(members, key=lambda one: one.identity))
  before = Committee(ordered).logits(fake_classifiers.make_examples())
  shutil.copytree(home / 'run', tmp_path / 'run')
  committee.make(f'{tmp_path}/run/classifier-*', tmp_path / 'made')
  np.testing.assert_array_equal(committee.load(tmp_path / 'made').logits(fake_classifiers.make_examples()), before)
  shutil.move(tmp_path / 'made', tmp_path / 'elsewhere')
  shutil.rmtree(tmp_path / 'run')
  np.testing.assert_array_equal(committee.load(tmp_path / 'elsewhere').logits(fake_classifiers.make_examples()), before)
  assert str(tmp_path) not in (tmp_path / 'elsewhere' / run.CONFIG).read_text()


def test_made_again_it_changes_nothing(home: pathlib.Path, tmp_path: pathlib.Path):
  shutil.copytree(home / 'made', tmp_path / 'made')
  before = {path: path.read_bytes() for path in (tmp_path / 'made').rglob('*') if path.is_file()}
  with claim.held(tmp_path / 'made'), pytest.raises(claim.Held):
    committee.make(f'{home}/run/classifier-*', tmp_path / 'made')
  committee.make(f'{home}/run/classifier-*', tmp_path / 'made')
  assert {path: path.read_bytes() for path in (tmp_path / 'made').rglob('*') if path.is_file()} == before


def test_subsets_are_scored_from_what_members_were_reported_on(home: pathlib.Path):
  found = json.loads((home / 'made' / committee.STUDY).read_text())
  assert found['members'] == 4 and found['examples'] == {'validation': 40} and not found['unscored']
  assert {line['size'] for line in found['lines']} == {1, 2, 3, 4}
  said = [classifiers.outputs(home / 'made' / f'classifier-{number}')['validation'] for number in range(4)]
  (whole,) = [line for line in found['lines'] if (line['size'], line['combined'], line['metric']) == (
      4, 'mean logit', 'accuracy')]
  assert whole['mean'] == np.mean(np.mean([one for one, _ in said], 0).argmax(-1) == said[0][1])
  assert len(committee.tables(committee.make(f'{home}/run/classifier-*', home / 'made'))) == 1


def test_a_member_may_have_several_heads_and_the_table_says_so(members: list, tokenizer, tmp_path: pathlib.Path):
  several = fake_classifiers.make_classifier(tokenizer, 7, head=dataclasses.replace(members[0].card.head, ensemble_size=3))
  pair = [members[0], several]
  assert forward.groups(pair) == [[0], [1]]
  for number, member in enumerate(pair):
    fake_classifiers.save_classifier(tmp_path / f'classifier-{number}', member)
  found = committee.make(f'{tmp_path}/classifier-*', tmp_path / 'made')
  whole = committee.load(tmp_path / 'made')
  said = whole.logits(fake_classifiers.make_examples())
  place = whole.members.index(next(one for one in whole.members if one.identity == several.identity))
  np.testing.assert_array_equal(said[place], forward.logits([several], fake_classifiers.make_examples())[0])
  assert sorted(found['heads']) == [1, 3] and found['heads'][place] == 3
  (table,) = committee.tables(found)
  assert f'with {found["heads"][0]}, {found["heads"][1]} heads' in table.title


def test_members_that_were_reported_on_other_examples_are_no_study(members: list, tmp_path: pathlib.Path):
  fake_classifiers.save_classifier(tmp_path / 'classifier-0', members[0])
  fake_classifiers.save_classifier(tmp_path / 'classifier-1', members[1], 'others')
  found = committee.make(f'{tmp_path}/classifier-*', tmp_path / 'made')
  assert found['lines'] == [] and 'different examples' in found['unscored']
  assert len(committee.load(tmp_path / 'made').members) == 2 and committee.tables(found)


@pytest.mark.parametrize('changes, said', [
    ({'labels': ('a', 'b', 'c')}, 'different labels: negative, positive, neutral and a, b, c'),
    ({'task': 'sst2'}, 'different tasks: own and sst2'),
    ({'fields': ('sentence',)}, 'different columns of text'),
    ({'tokenizer': 'f' * 64}, 'different tokenizers'),
    ({'task_kind': 'regression', 'labels': ()}, 'a regression'),
])
def test_members_that_cannot_answer_together_are_refused(changes: dict, said: str, members: list, tokenizer,
                                                         tmp_path: pathlib.Path):
  pair = [members[0], fake_classifiers.make_classifier(tokenizer, 5, **changes)]
  with pytest.raises(InputError, match=said):
    committee.check(pair, ['x', 'y'])


def test_members_that_are_no_numbers_are_refused(members: list):
  broken = dataclasses.replace(members[0], model=jax.tree.map(lambda x: x * np.nan, members[0].model), identity='other')
  with pytest.raises(InputError, match='no numbers'):
    committee.check([members[1], broken], ['x', 'y'])


@pytest.mark.parametrize('given, said', [
    ('', 'names no classifier'), (' , ', 'names no classifier'), ('RUN/nothing-*', 'no folder fits'),
    ('RUN/classifier-9', 'no such folder'), ('RUN', r'name one inside it, such as .*/classifier-0'),
    ('RUN/classifier-0,RUN/classifier-1,RUN/classifier-0', 'once more'), ('RUN/classifier-0/checkpoints', 'saved whole'),
])
def test_bad_names_leave_nothing_behind(given: str, said: str, home: pathlib.Path, tmp_path: pathlib.Path):
  with pytest.raises(InputError, match=said):
    committee.make(given.replace('RUN', str(home / 'run')), tmp_path / 'made')
  assert not (tmp_path / 'made').exists()


def test_a_folder_of_another_committee_is_refused(home: pathlib.Path, tmp_path: pathlib.Path):
  shutil.copytree(home / 'made', tmp_path / 'made')
  with pytest.raises(InputError, match='another recipe'):
    committee.make(f'{home}/run/classifier-0', tmp_path / 'made')


def lead_away(made: pathlib.Path, name: str) -> None:
  """Lets the manifest name a member outside the folder."""
  manifest = json.loads((made / run.MANIFEST).read_text())
  shutil.copytree(made / 'classifier-1', made.parent / 'elsewhere')
  manifest['members'][1]['folder'] = name
  run.write_json(made / run.MANIFEST, manifest)


def test_a_member_takes_no_file_of_the_reader_along(home: pathlib.Path, tmp_path: pathlib.Path):
  shutil.copytree(home / 'run' / 'classifier-0', tmp_path / 'classifier-0')
  (tmp_path / 'secret').write_text('secret')
  (tmp_path / 'classifier-0' / 'notes').symlink_to(tmp_path / 'secret')
  with pytest.raises(InputError, match='leads elsewhere'):
    committee.make(str(tmp_path / 'classifier-0'), tmp_path / 'made')
  assert not list((tmp_path / 'made').rglob('notes'))


@pytest.mark.parametrize('spoil, said', [
    (lambda made: shutil.rmtree(made), 'no file'),
    (lambda made: (made / run.MANIFEST).unlink(), 'no file'),
    (lambda made: run.write_json(made / run.CONFIG, {'kind': 'finetune'}), 'something else'),
    (lambda made: shutil.rmtree(made / 'classifier-1'), 'no such folder'),
    (lambda made: shutil.rmtree(made / 'classifier-1' / 'checkpoints'), 'no checkpoint'),
    (lambda made: (shutil.rmtree(made / 'classifier-1'), shutil.copytree(made / 'classifier-2', made / 'classifier-1')),
     'another classifier'),
    (lambda made: lead_away(made, '../elsewhere'), 'leads elsewhere'),
    (lambda made: lead_away(made, '/elsewhere'), 'leads elsewhere'),
])
def test_a_committee_that_lost_something_is_refused(spoil, said: str, home: pathlib.Path, tmp_path: pathlib.Path):
  shutil.copytree(home / 'made', tmp_path / 'made')
  spoil(tmp_path / 'made')
  with pytest.raises(InputError, match=said):
    committee.load(tmp_path / 'made')
