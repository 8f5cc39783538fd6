# shellcheck shell=bash
# Completion of symphony(1) for bash: source it, or put it where bash-completion looks
# (share/bash-completion/completions/symphony). The program itself says what fits: `symphony __complete WORD...` asks the
# daemon, which knows its own commands, nodes and keys, and says what it knows itself when there is none.

_symphony() {
  local words=() word glue='' last=${COMP_WORDS[COMP_CWORD]} before line shell=''
  COMPREPLY=()
  # readline breaks words at = and :, which are parts of ours.
  for word in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
    if [[ ${#words[@]} -gt 0 && ($glue || $word =~ ^[=:]+$) ]]; then
      words[-1]+=$word
    else
      words+=("$word")
    fi
    [[ $word =~ ^[=:]+$ ]] && glue=yes || glue=''
  done
  [[ $glue ]] && last=''
  before=${words[-1]%"$last"}
  while IFS=$'\t' read -r line _; do
    case $line in
      :*) shell=$line ;;
      *) COMPREPLY+=("${line#"$before"}") ;;
    esac
  done < <("${COMP_WORDS[0]}" __complete "${words[@]}" 2>/dev/null)
  case $shell in
    :files) mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$last") ;;
    :dirs) mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -d -- "$last") ;;
  esac
}
complete -F _symphony symphony
