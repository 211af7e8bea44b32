r"""Scripts that let a shell complete `minilm`: its verbs, the flags of the verb, recipes and other files as values.

    eval "$(minilm completion bash)"                                        # in ~/.bashrc
    minilm completion zsh > "${fpath[1]}/_minilm"
    minilm completion fish > ~/.config/fish/completions/minilm.fish

They are written from the tables of verbs and flags when they are asked for, and start no Python while one types.
"""

import re
from collections.abc import Iterator, Mapping

from minilm_jax.errors import InputError
from minilm_jax.flags import FLAGS, Verb

_CHOICES = {'beam': '--runner=DataflowRunner --runner=DirectRunner --runner=FlinkRunner --runner=SparkRunner',
            'language': 'microworld reviews', 'likelihood': 'original within-word', 'against': 'hf torch',
            'by': 'likelihood overlap random', 'split': 'test train validation'}
_SHELLS = 'bash zsh fish'  # what the one verb without a recipe, flags and paths of files completes
_BASH = r"""# Completes minilm in bash; made by minilm completion bash.
_minilm() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} flag= words=
  COMPREPLY=()
  if [[ $word == "=" ]]; then  # bash breaks words at =
    flag=$before word=
  elif [[ $before == "=" ]]; then
    flag=${COMP_WORDS[COMP_CWORD-2]}
  elif [[ $before == --* && $word != --* ]]; then
    flag=$before
  fi
  if ((COMP_CWORD == 1)); then
    words="VERBS"
  elif [[ $flag == --config ]]; then
    COMPREPLY=($(compgen -f -X '!*.py' -- "$word") $(compgen -d -S / -- "$word"))
    compopt -o nospace 2> /dev/null
    return
  else
    case $flag in
FLAG_CASES
      --*) COMPREPLY=($(compgen -f -- "$word")); compopt -o filenames 2> /dev/null; return ;;
      *)
        case ${COMP_WORDS[1]} in
VERB_CASES
        esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace 2> /dev/null
  ((${#COMPREPLY[@]})) && return
  COMPREPLY=($(compgen -f -- "$word"))
  compopt -o filenames 2> /dev/null
}
complete -F _minilm minilm
"""


def script(shell: str, verbs: Mapping[str, Verb]) -> str:
  """The script for one shell.

  Raises:
    InputError: for no such shell.
  """
  makers = {'bash': _bash, 'zsh': _zsh, 'fish': _fish}
  if shell not in makers:
    raise InputError(f'minilm completion {shell}'.strip(), 'no shell that is known', f'give one of {", ".join(makers)}')
  return makers[shell](verbs)


def _flags(verb: Verb) -> Iterator[tuple[str, type, str]]:
  """Name, type and help of what a verb takes."""
  if verb.kinds:
    yield 'config', str, 'a recipe'
  for flag in verb.flags:
    kind, _, text = FLAGS[flag.rstrip('*')]
    yield flag.rstrip('*'), kind, text


def _names_shells(verb: Verb) -> bool:
  return verb.paths and not verb.flags


def _bash(verbs: Mapping[str, Verb]) -> str:
  def written(verb: Verb) -> str:
    flags = ' '.join(f'--{flag}' if kind is bool else f'--{flag}=' for flag, kind, _ in _flags(verb))
    return f'{_SHELLS if _names_shells(verb) else flags} --help'

  choices = [f'      --{flag}) words="{words}" ;;' for flag, words in _CHOICES.items()]
  own = [f'          {name}) words="{written(verb)}" ;;' for name, verb in verbs.items()]
  own.append(f'          help) words="{" ".join(verbs)}" ;;')
  return (_BASH.replace('VERBS', ' '.join([*verbs, 'help'])).replace('FLAG_CASES', '\n'.join(choices))
          .replace('VERB_CASES', '\n'.join(own)))


def _plain(text: str) -> str:
  """Help in single quotes, without signs that zsh gives a meaning to."""
  return re.sub(r"[\\'\[\]:]", ' ', text)


def _zsh(verbs: Mapping[str, Verb]) -> str:
  lines = ['#compdef minilm', '# Completes minilm in zsh; made by minilm completion zsh.', 'local -a verbs', 'verbs=(']
  lines += [f"  '{name}:{_plain(verb.summary)}'" for name, verb in verbs.items()]
  lines += [')', 'if (( CURRENT == 2 )); then', '  _describe verb verbs', '  return', 'fi', 'case $words[2] in']
  for name, verb in verbs.items():
    lines.append(f'  {name}) _arguments \\')
    for flag, kind, text in _flags(verb):
      values = f'({_CHOICES[flag]})' if flag in _CHOICES else '_files -g "*.py"' if flag == 'config' else '_files'
      takes = f':{flag}:{values}' if kind is not bool else ''
      lines.append(f"    '--{flag}{'=' if takes else ''}[{_plain(text)}]{takes}' \\")
    lines.append(f"    '*:argument:{f'({_SHELLS})' if _names_shells(verb) else '_files'}' ;;")
  return '\n'.join([*lines, 'esac', ''])


def _fish(verbs: Mapping[str, Verb]) -> str:
  lines = ['# Completes minilm in fish; made by minilm completion fish.']
  for name, verb in verbs.items():
    lines.append(f"complete -c minilm -n __fish_use_subcommand -f -a {name} -d '{_plain(verb.summary)}'")
    seen = f"complete -c minilm -n '__fish_seen_subcommand_from {name}'"
    for flag, kind, text in _flags(verb):
      takes = '' if kind is bool else f" -x -a '{_CHOICES[flag]}'" if flag in _CHOICES else ' -r'
      lines.append(f"{seen} -l {flag}{takes} -d '{_plain(text)}'")
    if _names_shells(verb):
      lines.append(f"{seen} -f -a '{_SHELLS}'")
  return '\n'.join([*lines, ''])
