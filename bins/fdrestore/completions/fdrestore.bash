_fdrestore() {
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
            fdrestore | */fdrestore)
                cmd="fdrestore"
                ;;
        esac
    done

    case "${cmd}" in
        fdrestore)
            opts="--help --image -i --task --tree --respawn --same-pids --placement --inherit --missing --changed --allow --root --steal --stats --dry-run -n --json -J --version -V"
            case "${prev}" in
                --image | -i)
                    COMPREPLY=()
                    return 0
                    ;;
                --task)
                    COMPREPLY=()
                    return 0
                    ;;
                --placement)
                    COMPREPLY=( $(compgen -W "rlimit task late tight" -- "${cur}") )
                    return 0
                    ;;
                --inherit)
                    COMPREPLY=()
                    return 0
                    ;;
                --missing)
                    COMPREPLY=( $(compgen -W "fail null skip" -- "${cur}") )
                    return 0
                    ;;
                --changed)
                    COMPREPLY=( $(compgen -W "fail warn ignore" -- "${cur}") )
                    return 0
                    ;;
                --allow)
                    COMPREPLY=()
                    return 0
                    ;;
                --root)
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

complete -F _fdrestore -o bashdefault -o default fdrestore
