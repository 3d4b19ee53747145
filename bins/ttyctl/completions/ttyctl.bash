_ttyctl() {
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
            ttyctl | */ttyctl)
                cmd="ttyctl"
                ;;
            show)
                cmd="ttyctl_show"
                ;;
            save)
                cmd="ttyctl_save"
                ;;
            load)
                cmd="ttyctl_load"
                ;;
            retarget)
                cmd="ttyctl_retarget"
                ;;
            open)
                cmd="ttyctl_open"
                ;;
        esac
    done

    case "${cmd}" in
        ttyctl)
            opts="--help --version -V"
            cmds="show save load retarget open"
            case "${prev}" in
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        ttyctl_show)
            opts="--help --json -J"
            case "${prev}" in
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        ttyctl_save)
            opts="--help"
            case "${prev}" in
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        ttyctl_load)
            opts="--help"
            case "${prev}" in
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        ttyctl_retarget)
            opts="--help"
            case "${prev}" in
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        ttyctl_open)
            opts="--help --new --steal"
            case "${prev}" in
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
    esac
}

complete -F _ttyctl -o bashdefault -o default ttyctl
