function __fish_ttyctl_using_command
    set -l cmd (commandline -opc)
    set -e cmd[1]
    set -l target_cmd $argv

    set -l known_value_flags

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

complete -c ttyctl -n '__fish_ttyctl_using_command' -f -l help -d 'display usage information'
complete -c ttyctl -n '__fish_ttyctl_using_command' -f -l version -s V -d 'print the version'
complete -c ttyctl -n '__fish_ttyctl_using_command' -f -a 'show' -d 'Show a terminal: session, foreground group, processes that have it open, settings and size.'
complete -c ttyctl -n '__fish_ttyctl_using_command' -f -a 'save' -d 'Write a terminal\'s settings and size as an image to stdout.'
complete -c ttyctl -n '__fish_ttyctl_using_command' -f -a 'load' -d 'Set a terminal to the settings and size that the image on stdin has of a terminal.'
complete -c ttyctl -n '__fish_ttyctl_using_command' -f -a 'retarget' -d 'Copy the image on stdin to stdout with every terminal in it replaced by TTY.'
complete -c ttyctl -n '__fish_ttyctl_using_command' -f -a 'open' -d 'Run COMMAND in a new session with a terminal as its controlling terminal and as 0, 1, 2: ttyctl open TTY -- COMMAND...'
complete -c ttyctl -n '__fish_ttyctl_using_command show' -l help -d 'display usage information'
complete -c ttyctl -n '__fish_ttyctl_using_command show' -l json -s J -d 'print JSON'
complete -c ttyctl -n '__fish_ttyctl_using_command save' -l help -d 'display usage information'
complete -c ttyctl -n '__fish_ttyctl_using_command load' -l help -d 'display usage information'
complete -c ttyctl -n '__fish_ttyctl_using_command retarget' -l help -d 'display usage information'
complete -c ttyctl -n '__fish_ttyctl_using_command open' -l help -d 'display usage information'
complete -c ttyctl -n '__fish_ttyctl_using_command open' -l new -d 'use a new pseudo terminal, relayed to the caller\'s terminal'
complete -c ttyctl -n '__fish_ttyctl_using_command open' -l steal -d 'take the terminal from the session that has it'
