"""Checkpoints of one run, a task, seeds and learning rates: scores.

All members share one compiled program: on a CPU one a core at a time, on an accelerator all in each operation. A member
whose scores are in scores.jsonl is not run again; those that were on their way go on from `interim.py`'s file.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from minilm_jax import claim, progress, recipe, run, signals
from minilm_jax.config import EncoderConfig, FinetuneConfig
from minilm_jax.errors import InputError
from minilm_jax.language.tokenizer import Tokenizer
from minilm_jax.tasks import classifiers, encoding, fitting, interim, material, metrics, protocol, server, tables
from minilm_jax.tasks.fitting import Program
from minilm_jax.tasks.material import TRAIN, Material
from minilm_jax.tasks.protocol import HELD_OUT, Entry, Scored
from minilm_jax.training import population, pretrained

_UPDATES = 200  # of a dispatch at most, so that progress is seen
Log = Callable[[dict[str, Any]], None]
Tick = Callable[[int, str], None]


def finetune(config: FinetuneConfig, source: epath.PathLike, workdir: epath.PathLike,
             starts: Sequence[int | None]) -> list[dict[str, Any]]:
  """Fine-tunes on a task, once for each start, learning rate and seed.

  Args:
    config: the recipe; examples are cut at its `length` or at that of the model, whichever is shorter.
    source: the pre-training run, for the shape of the model, its tokenizer and its checkpoints.
    workdir: where config.json, metrics.jsonl, scores.jsonl and result.json go.
    starts: steps of checkpoints, or None: a fresh encoder a seed, which is the control of every comparison.

  Returns:
    The score lines of all members.

  Raises:
    Held: another process fine-tunes there.
    InputError: the run, a checkpoint or the examples cannot be used, or no member kept a finite loss.
  """
  source = epath.Path(source)
  model = dataclasses.replace(pretrained.load_single_config(source).model, dropout=config.head.dropout)
  tokenizer = pretrained.load_tokenizer(source)
  saved = {step: load_encoder(source, model, step) for step in starts if step is not None}
  ready = material.prepare(config, model.max_length, tokenizer, model.batch_norm, bool(model.encoder))
  with claim.held(workdir):
    workdir = run.open_run(workdir, {**recipe.as_dict(config), 'checkpoint': str(source), 'starts': list(starts)})
    return _go_on(config, source, workdir, starts, model, tokenizer, saved, ready)


def _go_on(config: FinetuneConfig, source: epath.Path, workdir: epath.Path, starts: Sequence[int | None],
           model: EncoderConfig, tokenizer: Tokenizer, saved: dict[int, Any],
           ready: Material) -> list[dict[str, Any]]:
  """Runs the members that are left."""
  entries = protocol.entries(config, starts)
  common = {'train_examples': len(ready.rows[TRAIN].labels), 'checkpoint': source.name, 'truncated': ready.truncated,
            'held_out': len(ready.rows[HELD_OUT].labels) if config.validation_fraction else 0, 'filtered': config.task.filtered}
  left = _left(config, ready, entries, workdir)
  if left:
    shape = fitting.Shape(ready.task.kind, len(ready.task.labels), common['train_examples'], ready.lengths)
    program = fitting.make_program(shape, config, model, len(entries))
    _cut_back(workdir, left, program.together)
    encoders, numbers, whole = _encoders(saved, None in starts, model, config, ready)
    origins = {entry: (entry.seed, entry.learning_rate, numbers[entry.step, entry.seed]) for entry in left}
    keep = functools.partial(_keep, origins, whole, ready, config, model, tokenizer, source, workdir)
    _fit_all(program, origins, encoders, ready, config, workdir, common, len(entries), keep)
  interim.remove(workdir)  # also where a kill came between the last score and this
  return _result(config, ready, workdir, common)


def load_encoder(source: epath.PathLike, model: EncoderConfig, step: int) -> Any:
  """Loads the encoder of a checkpoint of a run onto the host."""
  encoder = pretrained.load(source, step, 'encoder', changes={'dropout': model.dropout}).model
  # restored arrays are bound to a device, and steps that start from them would be compiled once more
  return jax.tree.map(np.asarray, encoder)


def _encoders(saved: dict[int, Any], fresh: bool, model: EncoderConfig, config: FinetuneConfig,
              ready: Material) -> tuple[Any, dict[tuple[int | None, int], int], np.ndarray]:
  """All encoders that members start from, stacked, the number of each member's by step and seed, their tables."""
  stacks = [jax.tree.map(lambda x: x[None], encoder) for encoder in saved.values()]
  numbers = {(step, seed): number for number, step in enumerate(saved) for seed in config.seeds}
  if fresh:
    stacks.append(fitting.fresh_encoders(model, config.head)(np.array(config.seeds, np.uint32)))
    numbers |= {(None, seed): len(saved) + number for number, seed in enumerate(config.seeds)}
  whole = np.zeros(0)
  if not model.encoder:
    whole = np.concatenate([encoders.table for encoders in stacks])
    stacks = [tables.keep_used(encoders, ready.used) for encoders in stacks]
  return jax.tree.map(lambda *parts: np.concatenate(parts), *stacks), numbers, whole


def _left(config: FinetuneConfig, ready: Material, entries: Sequence[Entry], workdir: epath.Path) -> list[Entry]:
  """The members that have not all of their scores, and their classifier where it is kept."""
  whole = len(protocol.epochs_reported(config)) * len(ready.reported) * len(ready.task.metrics)
  members = [line['member'] for line in run.read_lines(workdir / run.SCORES)]
  done = {member for member in members if members.count(member) == whole and not (
      config.save_classifiers and classifiers.missing(workdir / classifiers.folder(member)))}
  return [entry for entry in entries if entry.member not in done]


def _cut_back(workdir: epath.Path, left: Sequence[Entry], together: int) -> None:
  """Takes out of the logs what the members that are left have written, up to where the first of them go on."""
  again, first = {entry.member for entry in left}, {entry.member for entry in left[:together]}
  step = interim.step(workdir, left[:together])
  for log in (run.SCORES, run.METRICS, run.PREDICTIONS):
    if (workdir / log).exists():
      run.keep_lines(workdir / log, lambda line: line['member'] not in again or (
          log == run.METRICS and line['member'] in first and line['step'] <= step))


def _fit_all(program: Program, origins: dict[Entry, tuple], encoders: Any, ready: Material,
             config: FinetuneConfig, workdir: epath.Path, common: dict[str, Any], members: int,
             keep: Callable[[Entry, dict[str, Scored]], None]) -> None:
  """Runs the members that are left, as many together as the program takes."""
  labels = {split: ready.rows[split].labels for split in ready.reported}
  train = np.concatenate([ready.rows[name].labels for name in (TRAIN, HELD_OUT) if name in ready.rows])
  floors = {split: {'majority': metrics.majority(ready.task, train, right),
                    'frequency': metrics.frequency(ready.task, train, right)} for split, right in labels.items()}
  data = fitting.replicate(ready.rows[TRAIN], program)
  names = [name for name in ready.rows if name != TRAIN]
  batches, places = encoding.in_batches([ready.rows[name] for name in names], program.scored)
  judged = fitting.replicate(batches, program), dict(zip(names, places, strict=True))
  entries, total, log = list(origins), members * program.updates, _log(workdir)
  before = total - len(entries) * program.updates
  with progress.track(f'fine-tuning {ready.task.name}', total, 'updates', before) as tick, signals.noted() as flag:
    for first in range(0, len(entries), program.together):
      some = entries[first:first + program.together]
      member = program.start(fitting.group(program, [origins[entry] for entry in some]), encoders)
      reached = interim.load(workdir, some, member) or interim.begin(member, len(some))
      rest = interim.keeper(workdir, some, reached, flag)
      found = _fit(program, reached, data, judged, some, ready, config, log,
                   lambda done, note: tick(before + done * len(some), note), rest)
      before += len(some) * program.updates
      if config.patience:  # some may have stopped early
        tick(before, '')
      for entry, kept in zip(some, found, strict=True):
        if config.predictions:
          server.keep(workdir, ready, entry, kept)
        if config.save_classifiers:
          keep(entry, kept)
        for line in protocol.lines(ready.task, entry, kept, labels, floors):
          run.append_line(workdir / run.SCORES, {**line, **common})


def _fit(program: Program, reached: interim.Reached, data: Any, judged: tuple[Any, dict], entries: Sequence[Entry],
         ready: Material, config: FinetuneConfig, log: Log, tick: Tick,
         rest: Callable[[], None]) -> list[dict[str, Scored]]:
  """Trains some members together, an epoch at a time; gives what is reported of each."""
  kept, best, going, first = reached.kept, reached.best, reached.going, 0
  for epoch, end in protocol.epoch_ends(program.updates, config.epochs):
    if not going:
      break
    if reached.step >= end:  # it went on after this epoch
      first = end
      continue
    losses = _epoch(program, reached, data, first, end, tick, rest)
    member, step, first = reached.member, end, end
    outputs = np.asarray(program.outputs(member.state.model, judged[0]))
    for number in sorted(going):
      where = {'step': step, 'epoch': epoch, **entries[number].fields()}
      log({**where, 'split': TRAIN, 'loss': losses[number]})
      own = {name: outputs[number, place] for name, place in judged[1].items()}
      heads = {name: protocol.headline(ready.task, own[name], ready.rows[name].labels)
               for name in own if name not in ready.unlabelled}
      for name, value in heads.items():
        log({**where, 'split': name, ready.task.headline: value})
      now = Scored(epoch, heads[HELD_OUT] if config.validation_fraction else math.nan, own)
      if config.save_classifiers and (not config.validation_fraction or protocol.better(now, kept[number].get(protocol.BEST))):
        now = dataclasses.replace(now, model=jax.tree.map(np.asarray, population.select_member(
            member.state.model, number)))
      if config.validation_fraction and protocol.better(now, kept[number].get(protocol.BEST)):
        kept[number][protocol.BEST], best[number] = now, epoch
      kept[number][protocol.LAST] = now
      if not math.isfinite(losses[number]) or config.patience and epoch - best[number] >= config.patience:
        going.discard(number)
    rest()
  return kept


def _keep(origins: dict[Entry, tuple], whole: np.ndarray, ready: Material, config: FinetuneConfig,
          model: EncoderConfig, tokenizer: Tokenizer, source: epath.Path, workdir: epath.Path, entry: Entry,
          kept: dict[str, Scored]) -> None:
  """Saves a member of the epoch that is reported first as a classifier of its own."""
  which = protocol.epochs_reported(config)[0]
  scored, task = kept[which], ready.task
  card = classifiers.Card(
      classifiers.KIND, task.name, task.kind, task.labels, task.fields, task.concatenate_fields, task.headline,
      min(model.max_length, config.length), model, config.head, tokenizer.sha256, entry.seed, entry.learning_rate,
      str(source), -1 if entry.step is None else entry.step, which, scored.epoch)
  outputs = {split: (scored.outputs[split], ready.rows[split].labels) for split in ready.reported}
  fitted = scored.model if model.encoder else tables.widen(scored.model, whole[origins[entry][2]], ready.used)
  classifiers.save(workdir / classifiers.folder(entry.member), card, fitted, tokenizer, outputs, ready.digests)


def _log(workdir: epath.Path) -> Log:
  """Appends lines to metrics.jsonl, with the seconds since now."""
  started = time.monotonic()
  return lambda line: run.append_line(workdir / run.METRICS, {**line, 'seconds': round(time.monotonic() - started, 3)})


def _epoch(program: Program, reached: interim.Reached, data: Any, first: int, end: int, tick: Tick,
           rest: Callable[[], None]) -> list[float]:
  """Goes on to the end of an epoch that began after update `first`; the mean loss of each member in it."""
  while reached.step < end:
    some = min(_UPDATES, end - reached.step)
    reached.member, losses = program.chunk(reached.member, data, jnp.int32(some))
    reached.totals = reached.totals + np.asarray(losses)
    reached.step += some
    tick(reached.step, f'loss {np.mean(reached.totals) / (reached.step - first):.3f}')
    if reached.step < end:  # at the end there is a score to come
      rest()
  means = (reached.totals / (end - first)).tolist()
  reached.totals = np.zeros_like(reached.totals)
  return means


def _result(config: FinetuneConfig, ready: Material, workdir: epath.Path,
            common: dict[str, Any]) -> list[dict[str, Any]]:
  """Writes result.json and, where they are wanted, predictions for the GLUE server; gives all score lines."""
  lines = list(run.read_lines(workdir / run.SCORES))
  lost = {line['member']: line for line in run.read_lines(workdir / run.METRICS)
          if line['split'] == TRAIN and line['loss'] is None}
  for line in lost.values():
    who = f'seed {line["seed"]} with learning rate {line["learning_rate"]}'
    progress.say(f'{ready.task.name}: the loss of {who} was no number by update {line["step"]}')
  if len(lost) == len({line['member'] for line in lines}):
    raise InputError(f'a finite loss on {ready.task.name}', f'none of {len(lost)} members kept one',
                     'lower optimizer.learning_rate, and give another --workdir')
  if config.predictions:
    server.write(workdir, ready, lines, protocol.epochs_reported(config)[0])
  run.write_json(workdir / run.RESULT, {'task': ready.task.name, **common, 'seeds': len(config.seeds),
                                        'scores': protocol.summaries(lines)})
  return lines
