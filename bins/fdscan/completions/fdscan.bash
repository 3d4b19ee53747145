_fdscan() {
    local i cur prev opts cmds
    COMPREPLY=()
    cur="${COMP_WORDS[COMP_CWORD]}"
    if [[ $COMP_CWORD -ge 1 ]]; then
        prev="${COMP_WORDS[COMP_CWORD-1]}"
    else
        prev=""
    fi
    cmd=""
    opts=""

    for i in ${COMP_WORDS[@]}; do
        case "${i}" in
            fdscan | */fdscan)
                cmd="fdscan"
                ;;
        esac
    done

    case "${cmd}" in
        fdscan)
            opts="--help --tree -t --filter -F --data --freeze --passive --stop --timeout --output -o --verbose -v --version -V"
            case "${prev}" in
                --filter | -F)
                    COMPREPLY=()
                    return 0
                    ;;
                --timeout)
                    COMPREPLY=()
                    return 0
                    ;;
                --output | -o)
                    COMPREPLY=()
                    return 0
                    ;;
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
    esac
}

complete -F _fdscan -o bashdefault -o default fdscan
