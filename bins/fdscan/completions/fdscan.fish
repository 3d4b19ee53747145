function __fish_fdscan_using_command
    set -l cmd (commandline -opc)
    set -e cmd[1]
    set -l target_cmd $argv

    set -l known_value_flags 'F' 'filter' 'o' 'output' 'timeout'

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

complete -c fdscan -n '__fish_fdscan_using_command' -l help -d 'display usage information'
complete -c fdscan -n '__fish_fdscan_using_command' -l tree -s t -d 'also capture the descendants of each PID'
complete -c fdscan -n '__fish_fdscan_using_command' -l filter -s F -r -d 'capture only descriptors that pass: 3, 0-9, a kind, deleted, path:GLOB, pid:N; ! negates, commas mean or, repeated options mean and'
complete -c fdscan -n '__fish_fdscan_using_command' -l data -d 'also capture contents, such as those of pipes and unlinked files, of up to LIMIT bytes each (default: 16M)'
complete -c fdscan -n '__fish_fdscan_using_command' -l freeze -d 'stop the processes while they are captured'
complete -c fdscan -n '__fish_fdscan_using_command' -l passive -d 'read only the text of /proc: opens no other file, and cannot tell what is shared'
complete -c fdscan -n '__fish_fdscan_using_command' -l stop -d 'leave the processes stopped by SIGSTOP; implies --freeze'
complete -c fdscan -n '__fish_fdscan_using_command' -l timeout -r -d 'give up if a process has not stopped after SECONDS; decimals are allowed (default: 5)'
complete -c fdscan -n '__fish_fdscan_using_command' -l output -s o -r -d 'write the image to FILE'
complete -c fdscan -n '__fish_fdscan_using_command' -l verbose -s v -d 'print a summary of the capture to stderr'
complete -c fdscan -n '__fish_fdscan_using_command' -l version -s V -d 'print the version'
