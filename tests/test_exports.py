"""The verb `export`: what cannot be exported ends with one sentence and status 2, and leaves nothing."""

import pathlib
import shutil

import pytest

from minilm_jax import __main__ as door

REFUSED = [
    ('--checkpoint=RUN --format=hff --workdir=W', "did you mean 'hf'"),
    ('--checkpoint=RUN --workdir=W', 'no --format'), ('--format=card --workdir=W', 'no --checkpoint'),
    ('--checkpoint=RUN --format=card', 'no --workdir'),
    ('--checkpoint=RUN --format=card --workdir=W --batch=3', '--format=card does not take it'),
    ('--checkpoint=RUN --format=stablehlo --workdir=W', 'classifies nothing'),
    ('--checkpoint=RUN@5 --format=card --workdir=W', 'there are 4, 8'),
    ('--checkpoint=RUN@5 --format=stablehlo --workdir=W', 'there are 4, 8'),
    ('--checkpoint=EMPTY --format=card --workdir=W', 'neither config.json'),
    ('--checkpoint=NOTHING --format=stablehlo --workdir=W', 'no such folder'),
    ('--checkpoint=CORPUS --format=stablehlo --workdir=W', "kind 'corpus'"),
    ('--checkpoint=YOUNG --format=card --workdir=W', 'first one'),
    ('--checkpoint=YOUNG --format=stablehlo --workdir=W', 'first one'),
    ('--checkpoint=DAMAGED --format=card --workdir=W', 'the checkpoint of step 8'),
    ('--checkpoint=RUN --format=card --workdir=FULL', 'other things are there'),
    ('--checkpoint=RUN --format=card --workdir=gs://bucket/x', 'no local folder'),
]


@pytest.fixture(scope='module')
def places(tiny_run: pathlib.Path, tiny_corpus: pathlib.Path,
           tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
  home = tmp_path_factory.mktemp('exports')
  found = {name: home / name.lower() for name in ('EMPTY', 'NOTHING', 'YOUNG', 'DAMAGED', 'FULL', 'W')}
  for name in ('EMPTY', 'FULL'):
    found[name].mkdir()
  (found['FULL'] / 'x').write_text('x')
  for name in ('YOUNG', 'DAMAGED'):
    shutil.copytree(tiny_run, found[name])
  shutil.rmtree(found['YOUNG'] / 'checkpoints')
  files = (found['DAMAGED'] / 'checkpoints' / '8').rglob('*')
  largest = max(files, key=lambda path: path.stat().st_size * path.is_file())
  largest.write_bytes(largest.read_bytes()[:-40])
  return {**found, 'RUN': tiny_run, 'CORPUS': tiny_corpus}


@pytest.mark.parametrize('command, said', REFUSED, ids=[command for command, _ in REFUSED])
def test_what_cannot_be_exported_is_refused(command: str, said: str, places: dict[str, pathlib.Path],
                                            capsys: pytest.CaptureFixture):
  home = places['EMPTY'].parent
  before = sorted(home.rglob('*'))
  for name, place in places.items():
    command = command.replace(f'={name}', f'={place}')
  status, (out, err) = door.main(['export', *command.split()]), capsys.readouterr()
  assert (status, out) == (2, '') and said in err and 'Traceback' not in err
  assert [line.partition(':')[0] for line in err.splitlines() if line] == ['asked', 'found', 'to do']
  assert sorted(home.rglob('*')) == before


def test_a_card_is_written(tiny_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
  assert door.main(['export', f'--checkpoint={tiny_run}@4', '--format=card', f'--workdir={tmp_path}/card']) == 0
  out, err = capsys.readouterr()
  assert '"to": "card"' in out and not err and 'step 4 of 8' in (tmp_path / 'card' / 'README.md').read_text()
