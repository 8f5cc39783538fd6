# shellcheck shell=bash
# Completion of symphony(1) for bash: source it, or put it where bash-completion looks
# (share/bash-completion/completions/symphony). The program itself says what fits: `symphony __complete WORD...` asks the
# daemon, which knows its own commands, nodes and keys, and says what it knows itself when there is none.

_symphony() {
  local cur=${COMP_WORDS[COMP_CWORD]} line shell=''
  COMPREPLY=()
  while IFS=$'\t' read -r line _; do
    case $line in
      :*) shell=$line ;;
      *) COMPREPLY+=("$line") ;;
    esac
  done < <("${COMP_WORDS[0]}" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
  case $shell in
    :files) mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$cur") ;;
    :dirs) mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -d -- "$cur") ;;
  esac
}
complete -F _symphony symphony
