# shellcheck shell=bash
# Completion of symphony(1) for bash: source it, or put it where bash-completion looks
# (share/bash-completion/completions/symphony). Whether it knows every command and option is tested.

_symphony() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command='' words='' word i
  COMPREPLY=()

  # The words of the command so far, at most three; those of `help` are another command's.
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    case $word in
      --socket | --timeout) i=$((i + 1)) ;;
      -*) ;;
      help) [[ $command ]] || command=help ;;
      *)
        case $command in
          '' | help) command=${command:+help }$word ;;
          manager | block | token | node | cert | policy | kv | cluster | 'cluster gossip-key' | help\ *) command+=" $word" ;;
        esac
        ;;
    esac
  done

  case $prev in
    --socket | --token-file | --file) mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    --role)
      [[ $command == cert* ]] && words='reader operator'
      mapfile -t COMPREPLY < <(compgen -W "${words:-manager worker}" -- "$cur")
      return
      ;;
    --out) mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return ;;
    --timeout | --name | --cluster-name | --token-ttl | --advertise | --token | --ttl | --uses | --label | --cidr) return ;;
    --label-add | --label-rm | --since | --node) return ;;
    --availability) mapfile -t COMPREPLY < <(compgen -W 'active pause drain' -- "$cur"); return ;;
    --kind)
      words='node.joined node.ready node.down node.left node.removed node.updated node.refused leader.suspects_itself'
      words+=' node gossip_key ca cert cluster policy'
      mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
      return
      ;;
    --hook)
      mapfile -t COMPREPLY < <(compgen -W 'admit.join admit.change node.down node.up leader.change' -- "$cur")
      return
      ;;
    --input | --state | --reason) return ;;
    --fingerprint | --if-revision | --limit | --after | --from | --eval | -e) return ;;
  esac

  case ${command#help } in
    '' | help) words='manager block token node cert policy events kv txn cluster lua help version' ;;
    manager) words='init join members status remove leave transfer recover meet' ;;
    block) words='join leave status' ;;
    token) words='create ls rm rotate' ;;
    node) words='ls inspect update rm pending approve reject' ;;
    cert) words='issue ls revoke' ;;
    policy) words='set ls show rm enable disable history rollback test trace' ;;
    kv) words='put get rm ls watch' ;;
    cluster) words='backup restore rotate-ca gossip-key' ;;
    'cluster gossip-key') words='rotate status' ;;
  esac
  if [[ $command != help* ]]; then
    case $command in
      'manager init') words='--name --cluster-name --token-ttl --advertise --dev' ;;
      'manager join' | 'block join') words='--token --token-file --name --advertise' ;;
      'manager remove' | 'manager rm') words='--plan --force' ;;
      'manager leave' | 'block leave') words='--force' ;;
      'manager recover') words='--yes' ;;
      'token create' | 'token rotate') words='--role --ttl --uses --label --cidr' ;;
      'node update') words='--availability --label-add --label-rm --name --plan' ;;
      'node rm' | 'node remove') words='--force' ;;
      events) words='--follow --since --node --kind --limit' ;;
      'node approve') words='--fingerprint --name --label' ;;
      'cert issue') words='--role --ttl --out --force' ;;
      'kv put') words='--file --if-revision --plan' ;;
      'kv rm' | 'kv delete' | txn) words='--plan' ;;
      'policy show') words='--source' ;;
      'policy disable') words='--reason' ;;
      'policy test') words='--hook --input --state' ;;
      'policy trace') words='--input --state' ;;
      'kv ls' | 'kv list') words='--limit --after' ;;
      'kv watch') words='--from --wait' ;;
      'cluster restore') words='--force --yes' ;;
      'cluster rotate-ca') words='--status --wait-clients --yes' ;;
      lua) words='--eval' ;;
    esac
    words+=' --socket --json --timeout --help'
    [[ $command ]] || words+=' --version'
    case $command in
      txn | lua | 'policy set' | 'policy test' | 'cluster backup' | 'cluster restore') mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    esac
  fi
  mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -F _symphony symphony
