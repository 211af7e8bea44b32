"""The verbs: what each reads, the one function that it calls, and how what comes back is printed.

Results go to standard output. Nothing heavy is imported before a verb is called; how a call ends is left to `__main__`.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from minilm_jax import flags, hosts, progress
from minilm_jax.errors import InputError
from minilm_jax.flags import Verb


def _print(result: Any) -> None:
  if not hosts.is_primary():
    return
  if isinstance(result, dict):
    print(json.dumps(result, indent=2))
    return
  progress.show(result)


def _corpus(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.language import build
  print(build.build(config, given.workdir, given.beam))


def _show(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax import show
  if given.checkpoint and config:
    raise InputError('minilm show --config --checkpoint', 'a recipe and a run', 'give one of them')
  described = show.of_run(given.checkpoint) if given.checkpoint else show.describe(config)
  _print(described if given.json else show.tables(described))


def _pretrain(config: Any, given: Any, paths: Sequence[str]) -> None:
  with hosts.initialized(given.coordinator, given.processes, given.process, given.timeout):
    from minilm_jax.training import pretrain
    result = pretrain.pretrain(config, given.workdir, given.profile)
    if 'json' not in config.log.sinks:
      _print(result)
    elif hosts.is_primary():
      print(json.dumps(result))  # a line like those of the log before it


def _take(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.training import pretrained
  _print(pretrained.extract_member(given.checkpoint, given.member, given.workdir))


def _import(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax import hf_import
  _print(hf_import.load(given['from'].value, given.workdir))


def _sweep(configs: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax import sweep
  found = sweep.sweep(configs, given.workdir, given.shard, given.tokens, given.flops, given.seconds, given.dry_run)
  _print({'points': found} if given.json else sweep.tables(found))
  failed = [row for row in found if 'reason' in row]
  if failed:
    said = '; '.join(f'{row["point"]} failed: {row["reason"]}' for row in failed)
    raise InputError(f'a sweep of {len(found)} points', said, 'mend it and run it again: what is done stays')


def _finetune(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.analysis import report
  from minilm_jax.tasks import suite
  lines, failed = suite.finetune_all(config, given.checkpoint, given.workdir, given.from_scratch, given.with_scratch)
  report.print_tables(lines)
  if failed:
    raise InputError(f'scores on {len(config)} tasks', '; '.join(f'{error.asked}: {error.found}' for error in failed),
                     'give what is missing and run it again: what is done stays')


def _overlap(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.config import SubsetConfig
  from minilm_jax.tasks import overlap
  found = overlap.overlap(given.corpus, config, SubsetConfig(given.rows, 0, given.shuffle_seed))
  _print(found if given.json else overlap.tables(found))


def _subset(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.tasks import selection
  found = selection.subsets(given.corpus, config, given.workdir, given.select_by, given.num_parts, given.size, given.shuffle_seed)
  _print({'parts': found} if given.json else selection.tables(found))


_JUDGED_BY = {'pairs': ('corpus', 'pll_variant', 'workdir'), 'text': ('pll_variant',),
              'attention': ('corpus', 'split', 'workdir'), '': ('corpus', 'split')}


def _evaluate(config: Any, given: Any, paths: Sequence[str]) -> None:
  by = next((flag for flag in ('pairs', 'text', 'attention') if given[flag].present and given[flag].value is not False),
            '')
  for flag in ('text', 'attention', 'corpus', 'split', 'pll_variant', 'workdir'):
    if given[flag].present and flag != by and flag not in _JUDGED_BY[by]:
      there = f'--{by}' if by else 'the loss on a corpus'
      fitting = ' and '.join(f'--{name}' for name in _JUDGED_BY[by])
      raise InputError(f'minilm evaluate --{flag}', f'{there} does not take it', f'leave it out; it takes {fitting}')
  if by == 'pairs':
    from minilm_jax.tasks import minimal_pairs
    found = minimal_pairs.evaluate(given.checkpoint, given.pairs, given.pll_variant, given.corpus, given.workdir)
    _print(found if given.json else minimal_pairs.tables(found))
  elif by == 'text':
    from minilm_jax.tasks import likelihood
    _print(likelihood.pseudo_perplexity(given.checkpoint, given.text, given.pll_variant))
  elif by == 'attention':
    from minilm_jax.tasks import attention
    found = attention.attention(given.checkpoint, given.corpus, given.split, given.workdir)
    _print(found if given.json else attention.tables(found))
  else:
    from minilm_jax.tasks import evaluate
    _print(evaluate.evaluate(given.checkpoint, given.corpus, given.split))


def _baselines(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.tasks import baselines
  found = baselines.baselines(config, given.workdir)
  _print(found if given.json else baselines.tables(found))


def _fill_mask(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.tasks import fill_mask
  guesses = [dataclasses.asdict(guess) for guess in fill_mask.fill_mask(given.checkpoint, given.text, given.best)]
  if given.json:
    _print({'guesses': guesses})
  else:
    for guess in guesses:
      print(f'{guess["hole"]}  {guess["probability"]:.4f}  {guess["piece"]}')


def _report(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.analysis import report
  if not paths and not given.logged:
    raise InputError('a report', 'no run directory', 'give one or more: minilm report runs --workdir=runs/report')
  written = report.report(paths, given.workdir, given.confusion, given.logged, given.bootstrap_samples, given.unfinished)
  for path in written.values():
    print(path)


def _compare(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.analysis import compare
  if not paths:
    raise InputError('minilm ablations', 'no folder with runs beside the base',
                     'give one or more: minilm ablations --base=runs/past/paper runs/past --workdir=runs/past-compare')
  bases = [base for base in map(str.strip, given.base.split(',')) if base]
  level = given.plateau_loss if given['plateau_loss'].present else None
  lines = compare.named_losses(given.reference_losses)
  _print(compare.shown(*compare.compare(bases, paths, given.workdir, level, lines, given.preregistration)))


def _watch(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax import watch
  watch.watch(paths, given.axis, given.split if given['split'].present else 'train', given.follow)


def _bench(configs: Any, given: Any, paths: Sequence[str]) -> None:
  config, *others = configs.values()
  tuning = config.kind == 'finetune'
  for flag in ('steps', 'repeats', 'population') if tuning else ('checkpoint',):
    if given[flag].present:
      raise InputError(f'minilm bench --{flag}', f'a recipe of kind {config.kind!r} does not take it', 'leave it out')
  if tuning:
    _bench_finetune(configs, given)
    return
  if others:
    raise InputError(f'bench of {", ".join(configs)}', 'several recipes of pre-training', 'give one')
  if given.population:
    from minilm_jax import break_even as how
    found = how.break_even(config, flags.numbers('population', given.population), given.steps, given.repeats)
  else:
    from minilm_jax import bench as how
    found = how.bench(config, given.steps, given.repeats, given.compare_with)
  _print(found if given.json else how.tables(found))


def _bench_finetune(configs: Any, given: Any) -> None:
  from minilm_jax import finetune_bench
  if not given.checkpoint:
    raise InputError('bench of a fine-tuning recipe', 'no --checkpoint', 'give the pre-training run to start from')
  found = finetune_bench.bench(configs, given.checkpoint, given.compare_with)
  _print(found if given.json else finetune_bench.tables(found))


def _latency(configs: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax import latency
  size = given.size if given['size'].present else latency.SIZE
  found = latency.latency(configs, size, given.num_calls, given.heads, given.workdir)
  _print(found if given.json else latency.tables(found))


def _committee(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.tasks import committee
  found = committee.make(given.members, given.workdir)
  _print(found if given.json else committee.tables(found))


def _predict(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax.tasks import predict
  found = predict.predict(given.committee, given.classifier, given.text, given.text_pair, given.file)
  if given.json:
    print('\n'.join(json.dumps(one, ensure_ascii=False) for one in found))
  else:
    _print(predict.tables(found))


def _export(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax import exports
  _print(exports.export(given.checkpoint, given.format, given.workdir, given.batch if given['batch'].present else None))


def _preflight(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax import preflight
  found = preflight.preflight(config, given.topology)
  _print(found if given.json else preflight.tables(found))
  preflight.check(found)


def _completion(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax import usage
  print(usage.completion(' '.join(paths), VERBS))


def _quickstart(config: Any, given: Any, paths: Sequence[str]) -> None:
  from minilm_jax import quickstart
  quickstart.quickstart(given.language, given.workdir)


VERBS = {
    'corpus': Verb(_corpus, 'text to rows', ('corpus',), ('workdir*', 'beam'),
                   "--config=configs/corpus.py --config.documents.sources='text/*.txt.xz' --workdir=corpora/honey"),
    'overlap': Verb(_overlap, 'how much of the text of a task a corpus has seen', ('finetune',),
                    ('corpus*', 'rows', 'shuffle_seed', 'json'),
                    '--corpus=corpora/honey --config=configs/paper2_tasks.py:ag_news --config.task.data_dir=TFDS'),
    'overlap-subsets': Verb(_subset, 'parts of a corpus, of one size, that overlap less and more with a task', ('finetune',),
                   ('corpus*', 'workdir*', 'select_by', 'num_parts', 'size', 'shuffle_seed', 'json'), '--corpus=corpora/honey --num_parts=3 '
                   '--config=configs/paper2_tasks.py:ag_news --config.task.data_dir=TFDS --workdir=corpora/ag_news'),
    'show': Verb(_show, 'what a recipe means: fields, parameters, FLOPs, memory; runs nothing',
                 ('pretrain', 'finetune', 'corpus'), ('checkpoint', 'json'),
                 '--config=configs/paper1.py:magic-bee-26 --json', instead='checkpoint'),
    'pretrain': Verb(_pretrain, 'masked language modelling', ('pretrain',),
                     ('workdir*', 'coordinator', 'processes', 'process', 'timeout', 'deterministic', 'profile'),
                     '--config=configs/tiny.py --workdir=runs/tiny'),
    'sweep': Verb(_sweep, 'a grid of points, each a run; shares of it on several machines', ('pretrain',),
                  ('workdir*', 'shard', 'tokens', 'flops', 'seconds', 'dry_run', 'deterministic', 'json'),
                  '--config=configs/cpu_grid.py --config.corpus=corpora/honey --workdir=runs/grid --shard=1/2',
                  each=True, whole=True),
    'extract-member': Verb(_take, 'one member of a population as a run of its own', (),
                 ('checkpoint*', 'member', 'workdir*', 'trust'),
                 '--checkpoint=runs/population --member=3 --workdir=runs/member-3'),
    'import': Verb(_import, 'a RoBERTa, BERT or ELECTRA of Hugging Face as a run, to fine-tune', (),
                   ('from*', 'workdir*'), '--from=downloads/bert-tiny --workdir=runs/bert-tiny'),
    'finetune': Verb(_finetune, 'checkpoints on tasks, several seeds and learning rates', ('finetune',),
                     ('workdir*', 'checkpoint*', 'from_scratch', 'with_scratch', 'trust', 'deterministic'),
                     '--config=configs/glue.py:cola,mrpc --config.task.data_dir=TFDS --checkpoint=runs/tiny '
                     '--workdir=runs/glue', each=True),
    'committee': Verb(_committee, 'fine-tuned classifiers that answer together: a folder to use, copy and score', (),
                      ('members*', 'workdir*', 'trust', 'json'),
                      "--members='runs/glue/*/classifier-*' --workdir=runs/committee"),
    'predict': Verb(_predict, 'the label of a text, or of each of a file, by a committee or one classifier', (),
                    ('committee', 'classifier', 'text', 'text_pair', 'file', 'trust', 'json'),
                    "--committee=runs/committee --text='a film to forget .'"),
    'evaluate': Verb(_evaluate, 'a checkpoint as it is: loss, minimal pairs, perplexity of a text, attention', (),
                     ('checkpoint*', 'corpus', 'split', 'pairs', 'pll_variant', 'text', 'attention', 'workdir', 'trust',
                      'json'),
                     '--checkpoint=runs/magic-bee-26 --pairs=blimp.jsonl.xz --workdir=runs/blimp'),
    'ngram-baselines': Verb(_baselines, 'what counts of neighbours alone reach on the hidden tokens of an evaluation',
                      ('pretrain',), ('workdir*', 'json'), '--config=configs/paper1.py:magic-bee-26 '
                      '--config.corpus=corpora/honey --workdir=runs/baselines'),
    'fill-mask': Verb(_fill_mask, 'guesses for each <mask> of a text', (),
                      ('checkpoint*', 'text*', 'best', 'trust', 'json'),
                      "--checkpoint=runs/tiny --text='the dog <mask> a bone .'"),
    'watch': Verb(_watch, 'curves of runs in the terminal, once or as they grow', (), ('follow', 'axis', 'split'),
                   'runs/tiny --follow', paths=True),
    'export': Verb(_export, 'a model for others: Hugging Face, a StableHLO program of a classifier, or its card', (),
                   ('checkpoint*', 'format*', 'workdir*', 'batch', 'trust'),
                   '--checkpoint=runs/tiny --format=hf --workdir=exports/tiny'),
    'report': Verb(_report, 'tables, figures and an HTML page from run directories or a logged table', (),
                   ('workdir', 'confusion', 'logged', 'bootstrap_samples', 'unfinished'), 'runs --workdir=runs/report', paths=True),
    'ablations': Verb(_compare, 'what a change of a recipe brings: tokens to leave the plateau, FLOPs to a loss', (),
                    ('base*', 'workdir*', 'plateau_loss', 'reference_losses', 'preregistration'),
                    '--base=runs/past/paper runs/past runs/past-1 --workdir=runs/past-compare', paths=True),
    'bench': Verb(_bench, 'time a recipe on this machine: the training step, or fine-tuning', ('pretrain', 'finetune'),
                  ('steps', 'repeats', 'compare_with', 'population', 'checkpoint', 'trust', 'json'),
                  '--config=configs/paper1.py:magic-bee-26 --config.batch_size=64 --compare_with=torch', each=True),
    'latency': Verb(_latency, 'how long an answer takes: one classifier, a committee of it, other recipes',
                    ('pretrain',), ('size', 'heads', 'num_calls', 'workdir', 'json'),
                    '--config=configs/paper2_models.py:conv2-k3-d64@96,bert-6@96 --size=5 --heads=5', each=True),
    'preflight': Verb(_preflight, 'compile a recipe for a TPU that is not there: memory, collectives, time',
                      ('pretrain',), ('topology*', 'json'),
                      '--config=configs/paper1.py:all --topology=v5e:2x4', each=True),
    'quickstart': Verb(_quickstart, 'all of it, small', (), ('language', 'workdir*'),
                       '--language=microworld --workdir=runs/quickstart'),
    'completion': Verb(_completion, 'a script that completes verbs, flags and files in a shell', (), (),
                       'bash', paths=True),
}
