function __fish_fdrestore_using_command
    set -l cmd (commandline -opc)
    set -e cmd[1]
    set -l target_cmd $argv

    set -l known_value_flags 'allow' 'changed' 'i' 'image' 'inherit' 'missing' 'placement' 'root' 'task'

    set -l i 1
    set -l cleaned_cmd
    while test $i -le (count $cmd)
        set -l arg $cmd[$i]
        if string match -q -- "-*" $arg
            set -l pure_flag (string replace -r '^--?' '' -- $arg)
            if contains -- $pure_flag $known_value_flags
                set -l next_i (math $i + 1)
                if test $next_i -le (count $cmd)
                    if not string match -q -- "-*" $cmd[$next_i]
                        set i $next_i
                    end
                end
            end
        else
            set -a cleaned_cmd $arg
        end
        set i (math $i + 1)
    end

    set -l count_cleaned (count $cleaned_cmd)
    set -l count_target (count $target_cmd)

    if test $count_cleaned -ne $count_target
        return 1
    end

    for i in (seq $count_target)
        if test $cleaned_cmd[$i] != $target_cmd[$i]
            return 1
        end
    end

    return 0
end

complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l help -d 'display usage information'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l image -s i -r -d 'the image; stdin if - or left out'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l task -r -d 'the task whose table is restored (default: the first)'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l tree -d 'create all processes of the image; each one holds its descriptors'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l respawn -d 'with --tree: each process runs its program again'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l same-pids -d 'with --tree: each process gets its old process id, or all is refused'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l placement -x -a 'rlimit task late tight' -d 'where fdrestore places its own descriptors during the restore; see fdkit(7)'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l inherit -r -d 'use the caller\'s descriptor FD for KEY: the text of readlink, or FD or PID:FD of the image; a bare list (0,1,2) keeps the caller\'s own'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l missing -x -a 'fail null skip' -d 'for a descriptor that cannot be restored: fail, put /dev/null there, or skip it'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l changed -x -a 'fail warn ignore' -d 'for a file that has changed since the scan: fail, warn or ignore it'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l allow -r -d 'permit what goes beyond the image\'s own descriptors: devices, tun, network, names, suid, mqueue, tty, or all'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l root -r -d 'open all paths below DIR'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l steal -d 'take the controlling terminal from the session that has it'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l stats -d 'print system calls, dups and table sizes of the restore to stderr'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l dry-run -s n -d 'print the plan and restore nothing'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l json -s J -d 'print the plan as JSON'
complete -c fdrestore -n '__fish_fdrestore_using_command' -f -l version -s V -d 'print the version'
