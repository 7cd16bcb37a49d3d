# histofed-aggregator: completion for bash; written by scripts/cli_papers.py
_histofed_aggregator() {
    local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" path="" word
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$path $word" in
        " init") path=" init" ;;
        " operator") path=" operator" ;;
        " first") path=" first" ;;
        " run") path=" run" ;;
        " check") path=" check" ;;
        " doctor") path=" doctor" ;;
        " backup") path=" backup" ;;
        " restore") path=" restore" ;;
        esac
    done
    case "$path:$before" in
    " init:--operator") COMPREPLY=(); return ;;
    " init:--operator-dir") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " init:--config") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " operator:--out") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " operator:--config") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " first:--config") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " run:--config") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " check:--config") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " doctor:--config") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " backup:--config") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " restore:--epoch") COMPREPLY=(); return ;;
    " restore:--config") COMPREPLY=($(compgen -f -- "$current")); return ;;
    esac
    case "$path" in
    "") COMPREPLY=($(compgen -W "init operator first run check doctor backup restore -h --help --version" -- "$current")) ;;
    " init") COMPREPLY=($(compgen -W "-h --help --operator --operator-dir --config" -- "$current")) ;;
    " operator") COMPREPLY=($(compgen -W "-h --help --out --config" -- "$current")) ;;
    " first") COMPREPLY=($(compgen -f -W "-h --help --config" -- "$current")) ;;
    " run") COMPREPLY=($(compgen -W "-h --help --config" -- "$current")) ;;
    " check") COMPREPLY=($(compgen -W "-h --help --config" -- "$current")) ;;
    " doctor") COMPREPLY=($(compgen -W "-h --help --json --config" -- "$current")) ;;
    " backup") COMPREPLY=($(compgen -f -W "-h --help --check --config" -- "$current")) ;;
    " restore") COMPREPLY=($(compgen -f -W "-h --help --replace --dry-run --in-place --epoch --config" -- "$current")) ;;
    esac
}
complete -o filenames -F _histofed_aggregator histofed-aggregator
