"""The loop of pre-training: run a chunk, log, evaluate, save. Several processes go through it together."""

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from minilm_jax import claim, hosts, progress, recipe, run, signals
from minilm_jax.config import CheckpointConfig, EvaluationConfig, RunConfig
from minilm_jax.errors import InputError
from minilm_jax.language import corpus as corpora
from minilm_jax.training import checkpoint, evaluation, fault, feed, journal, outlets, population, profile, resume
from minilm_jax.training import start, steps
from minilm_jax.training import engine as engines


def pretrain(config: RunConfig, workdir: epath.PathLike, profiled: str = '') -> dict[str, Any]:
  """Pre-trains from where the work directory stands to the end of the recipe.

  Args:
    config: the recipe.
    workdir: the run.
    profiled: updates of which JAX is to record a profile, as in '100:110'.

  Returns:
    What result.json holds: the last losses, tokens, FLOPs, seconds; of a population, those of each member.

  Raises:
    Held: another process is at work in the directory.
    InputError: the corpus or the work directory does not fit the recipe, or the recipe the machine; an update was not
      finite and the recipe says to stop.
    OSError: a file of the run could not be written; what was saved before it stays.
    signals.Saved: SIGTERM or SIGINT came, and the run was saved at the end of the chunk.
  """
  wanted = profile.span(profiled, config.updates, workdir)
  hosts.check()
  hosts.agree('the recipe', json.dumps(recipe.as_dict(config)))
  hosts.agree('the work directory', str(epath.Path(workdir).resolve()))
  with hosts.together():
    engine = engines.make_engine(config)
    outlets.check(config)
    corpus = start.check(config)  # before the work directory is claimed for this recipe
  hosts.agree('the corpus', corpus)
  workdir, folder = hosts.in_turn(lambda: start.enter(config, workdir))
  if (workdir / run.RESULT).exists():
    if hosts.leads():
      claim.tidy(workdir)  # of one that was killed just after its result
    progress.say(f'nothing to do: {workdir} has run its {config.updates:,} updates')
    return run.read_json(workdir / run.RESULT, 'the result of the run')
  with contextlib.ExitStack() as stack:
    with hosts.together():
      alone = stack.enter_context(claim.held(workdir)) if hosts.leads() else lambda: None
    with contextlib.closing(profile.Recorder(workdir, *wanted)) as recorder:
      return _go_on(config, workdir, folder, engine, recorder, alone)


def _go_on(config: RunConfig, workdir: epath.Path, folder: epath.Path, engine: engines.Engine,
           recorder: profile.Recorder, alone: Callable[[], None]) -> dict[str, Any]:
  """From the last checkpoint, or from the start, to the end, or until another process has the work directory."""
  step, state = resume.restore(workdir, engine.shapes)
  lines = hosts.in_turn(lambda: run.keep_lines(
      workdir / run.METRICS, lambda line: line['step'] <= (step or 0) and line['split'] != 'test'))
  if step is None:
    state = engine.init()
  else:
    progress.say(f'going on from the checkpoint of update {step:,}')
  with feed.open_supply(config, engine, folder) as supply, signals.noted() as flag:
    def supply_alone(done: int, count: int) -> Any:
      alone()
      return supply(done, count)

    return _loop(config, workdir, folder, engine, state, supply_alone, lines, flag, recorder)


def _loop(config: RunConfig, workdir: epath.Path, folder: epath.Path, engine: engines.Engine, state: steps.TrainState,
          supply: feed.Supply, lines: list[dict[str, Any]], flag: signals.Flag,
          recorder: profile.Recorder) -> dict[str, Any]:
  """Chunks of `log.every` updates to the end; a line of metrics each, after those that an earlier start left."""
  described, members = corpora.manifest(folder), config.population.members
  with hosts.together():
    judged = {name: feed.resident(engine, folder, name, config.evaluation.rows)
              for name in ('validation', 'test') if described['splits'][name]['rows']}
  evaluate, length = evaluation.evaluator(config.evaluation, engine.mesh, engine.how), described['length']
  reached = np.ravel(hosts.fetch(state.step))
  done = int(reached.max())
  going = [n for n in range(members) if reached[n] == done]
  if len(going) < members and config.nonfinite == 'stop':
    raise InputError(f'the run in {workdir}', f'{members - len(going)} members had an update that was not finite',
                     'lower optimizer.learning_rate or set optimizer.clip, in another --workdir')
  chunk = None
  keep, judged_before = config.checkpoint, journal.validation_losses(lines)
  with outlets.opened(config, workdir, lines) as send, \
       checkpoint.manager(workdir, keep.keep, keep.best, judged_before) as saves, \
       progress.track('pre-training', config.updates, 'updates', done) as tick:
    log = journal.writer(config, workdir, length, lines, send)
    while done < config.updates:
      count = _ahead(config, done)
      with hosts.together():
        rows = supply(done, count)
        chunk = chunk or engines.compiled(engine, rows)
      recorder.before(done, count)
      before = time.monotonic()
      state, sums, found = chunk(state, rows, engines.count(engine, count))
      sums, found = hosts.fetch((sums, found))
      spent = time.monotonic() - before
      recorder.after(done + count)
      going = _survivors(config, workdir, saves, state, found, going, done + count)
      done += count
      each = population.each(sums, members)
      speed = {'tokens_per_second': round(count * config.batch_size * length / spent)}
      line = log('train', done, {n: steps.means(each[n]) | speed for n in going if each[n]['updates']})
      tick(done, f'{line}, {members * speed["tokens_per_second"]:,} tokens/s')
      last, loss = done == config.updates, None
      if 'validation' in judged and (last or _is_judged(config.evaluation, done)):
        found = evaluate(state.model, judged['validation'])
        log('validation', done, {n: found[n] for n in going})
        loss = float(np.mean([found[n]['loss'] for n in going]))
      signal, due = _asked(keep, saves, flag)
      if last or signal or due or done % keep.every == 0:
        checkpoint.save(saves, state, done, loss)
      checkpoint.settle(saves)
      if signal:
        checkpoint.finish(saves)
        raise signals.Saved(signal, f' at update {done:,}; saved; the same command goes on from there')
    if 'test' in judged:
      found = evaluate(state.model, judged['test'])
      log('test', done, {n: found[n] for n in going})
  return hosts.in_turn(lambda: journal.finish(config, workdir))


def _ahead(config: RunConfig, done: int) -> int:
  """Updates until there is something to do: a line of the log, an early evaluation, the end."""
  every, first = config.log.every, config.evaluation.first
  ends = [done - done % every + every, config.updates]
  if first and done < config.evaluation.every:
    ends.append(first << (done // first).bit_length())  # the next doubling
  return min(ends) - done


def _is_judged(config: EvaluationConfig, done: int) -> bool:
  """Is there an evaluation after so many updates? Evenly from `every` on, at doublings of `first` before."""
  times, rest = divmod(done, config.first) if config.first else (0, 0)
  return done % config.every == 0 or done < config.every and times.bit_count() == 1 and not rest


def _asked(often: CheckpointConfig, saves: checkpoint.Saves, flag: signals.Flag) -> tuple[int, bool]:
  """The signal that has come, or 0, and is it time to save? Of several processes any may have it; one has the clock."""
  due = often.minutes > 0 and time.monotonic() - saves.began >= 60 * often.minutes
  said = hosts.numbers(flag.number, due)
  return max(number for number, _ in said), bool(said[0][1])


def _survivors(config: RunConfig, workdir: epath.Path, saves: Any, state: steps.TrainState, found: fault.Fault,
               going: list[int], done: int) -> list[int]:
  """The members that go on after a chunk, by the policy of the recipe for updates that were not finite."""
  left, many = list(going), config.population.members > 1
  for number in going:
    step, tensor = (int(np.ravel(value)[number]) for value in found)
    if step < 0:
      continue
    model = hosts.fetch(state.model)
    model = population.take(model, number) if many else model
    what = f'a finite update {step + 1}{f" of member {number}" if many else ""}'
    said = f'{fault.tensor(tensor, model)} was not finite'
    if config.nonfinite == 'skip':
      progress.say(f'{what} was not made, and is skipped: {said}')
      continue
    left.remove(number)
    if config.nonfinite == 'drop-member' and left:
      progress.say(f'{what} was not made: {said}; the member stops there, the others go on')
      continue
    checkpoint.save(saves, state, done if many else step)
    checkpoint.finish(saves)
    raise hosts.Stopped(f'{what} in {workdir}', f'{said}; what was before it is its last checkpoint',
                        'lower optimizer.learning_rate, set optimizer.clip, or give --config.nonfinite=skip')
  return left
