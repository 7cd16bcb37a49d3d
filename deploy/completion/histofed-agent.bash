# histofed-agent: completion for bash; written by scripts/cli_papers.py
_histofed_agent() {
    local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" path="" word
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$path $word" in
        " run") path=" run" ;;
        " enroll") path=" enroll" ;;
        " check") path=" check" ;;
        " status") path=" status" ;;
        " doctor") path=" doctor" ;;
        " backup") path=" backup" ;;
        " restore") path=" restore" ;;
        esac
    done
    case "$path:$before" in
    " run:--config") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " run:--state-dir") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " enroll:--config") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " enroll:--state-dir") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " enroll:--join-line-file") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " check:--config") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " check:--state-dir") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " status:--config") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " status:--state-dir") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " doctor:--config") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " doctor:--state-dir") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " backup:--config") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " backup:--state-dir") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " restore:--config") COMPREPLY=($(compgen -f -- "$current")); return ;;
    " restore:--state-dir") COMPREPLY=($(compgen -f -- "$current")); return ;;
    esac
    case "$path" in
    "") COMPREPLY=($(compgen -W "run enroll check status doctor backup restore -h --help --version" -- "$current")) ;;
    " run") COMPREPLY=($(compgen -W "-h --help --config --state-dir" -- "$current")) ;;
    " enroll") COMPREPLY=($(compgen -W "-h --help --config --state-dir --join-line-file --again" -- "$current")) ;;
    " check") COMPREPLY=($(compgen -W "-h --help --config --state-dir" -- "$current")) ;;
    " status") COMPREPLY=($(compgen -W "-h --help --config --state-dir --live --json" -- "$current")) ;;
    " doctor") COMPREPLY=($(compgen -W "-h --help --config --state-dir --json" -- "$current")) ;;
    " backup") COMPREPLY=($(compgen -f -W "-h --help --config --state-dir --check --with-identity" -- "$current")) ;;
    " restore") COMPREPLY=($(compgen -f -W "-h --help --config --state-dir --replace --dry-run" -- "$current")) ;;
    esac
}
complete -o filenames -F _histofed_agent histofed-agent
