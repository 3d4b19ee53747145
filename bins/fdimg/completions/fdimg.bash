_fdimg() {
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
            fdimg | */fdimg)
                cmd="fdimg"
                ;;
            write)
                cmd="fdimg_write"
                ;;
            read)
                cmd="fdimg_read"
                ;;
            show)
                cmd="fdimg_show"
                ;;
            verify)
                cmd="fdimg_verify"
                ;;
            select)
                cmd="fdimg_select"
                ;;
            place)
                cmd="fdimg_place"
                ;;
        esac
    done

    case "${cmd}" in
        fdimg)
            opts="--help --version -V"
            cmds="write read show verify select place"
            case "${prev}" in
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        fdimg_write)
            opts="--help --verbose -v"
            case "${prev}" in
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        fdimg_read)
            opts="--help --verbose -v"
            case "${prev}" in
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        fdimg_show)
            opts="--help --filter -F --json -J --color --verbose -v"
            case "${prev}" in
                --filter | -F)
                    COMPREPLY=()
                    return 0
                    ;;
                --color)
                    COMPREPLY=( $(compgen -W "auto always never" -- "${cur}") )
                    return 0
                    ;;
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        fdimg_verify)
            opts="--help --verbose -v"
            case "${prev}" in
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        fdimg_select)
            opts="--help --filter -F --verbose -v"
            case "${prev}" in
                --filter | -F)
                    COMPREPLY=()
                    return 0
                    ;;
                *)
                    COMPREPLY=( $(compgen -W "${opts} ${cmds}" -- "${cur}") )
                    return 0
                    ;;
            esac
            ;;
        fdimg_place)
            opts="--help --bytes -b --limit --json -J --color --verbose -v"
            case "${prev}" in
                --limit)
                    COMPREPLY=()
                    return 0
                    ;;
                --color)
                    COMPREPLY=( $(compgen -W "auto always never" -- "${cur}") )
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

complete -F _fdimg -o bashdefault -o default fdimg
