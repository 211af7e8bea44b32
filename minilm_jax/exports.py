"""A model for others, in one of several forms: which room makes it. Rooms are imported when they are called."""

from typing import Any

from minilm_jax.errors import InputError, nearest

FORMS = ('hf', 'stablehlo', 'card')


def export(given: str, to: str, workdir: str, batch: int | None = None) -> dict[str, Any]:
  """Writes the model that `--checkpoint` names into a folder of its own.

  Args:
    given: a pre-training run, `run@step`, or a classifier.
    to: one of `FORMS`.
    workdir: the folder, not there or empty.
    batch: of a StableHLO program; None leaves it free.

  Returns:
    What was written, where, and how far it was from the model.

  Raises:
    InputError: no such form, a batch where none is taken, or as `hf_export`, `serving` and `model_card` say.
  """
  if to not in FORMS:
    raise InputError(f'--format={to}', 'no such form', nearest(to, FORMS))
  if batch is not None and to != 'stablehlo':
    raise InputError('minilm export --batch', f'--format={to} does not take it', 'leave it out')
  if to == 'hf':
    from minilm_jax import hf_export
    found = hf_export.export(given, workdir)
  elif to == 'stablehlo':
    from minilm_jax import serving
    found = serving.export(given, workdir, batch or 0)
  else:
    from minilm_jax import model_card
    found = model_card.write(given, workdir)
  return {'workdir': workdir, **found}
