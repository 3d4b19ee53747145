function __fish_fdimg_using_command
    set -l cmd (commandline -opc)
    set -e cmd[1]
    set -l target_cmd $argv

    set -l known_value_flags 'F' 'color' 'filter' 'limit'

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

complete -c fdimg -n '__fish_fdimg_using_command' -f -l help -d 'display usage information'
complete -c fdimg -n '__fish_fdimg_using_command' -f -l version -s V -d 'print the version'
complete -c fdimg -n '__fish_fdimg_using_command' -f -a 'write' -d 'Write the image on stdin to a file, mode 0600. The file is replaced only by a whole image.'
complete -c fdimg -n '__fish_fdimg_using_command' -f -a 'read' -d 'Check an image file and write it to stdout.'
complete -c fdimg -n '__fish_fdimg_using_command' -f -a 'show' -d 'Show the descriptors of an image, a line each.'
complete -c fdimg -n '__fish_fdimg_using_command' -f -a 'verify' -d 'Check that an image is whole: structure, references, checksum.'
complete -c fdimg -n '__fish_fdimg_using_command' -f -a 'select' -d 'Write an image of the descriptors that pass a filter, with the files they name, to stdout.'
complete -c fdimg -n '__fish_fdimg_using_command' -f -a 'place' -d 'Show the sizes of the descriptor tables of an image, as recorded and after fdrestore --tree.'
complete -c fdimg -n '__fish_fdimg_using_command write' -l help -d 'display usage information'
complete -c fdimg -n '__fish_fdimg_using_command write' -l verbose -s v -d 'say what fdimg gives up before it reads the image'
complete -c fdimg -n '__fish_fdimg_using_command read' -l help -d 'display usage information'
complete -c fdimg -n '__fish_fdimg_using_command read' -l verbose -s v -d 'say what fdimg gives up before it reads the image'
complete -c fdimg -n '__fish_fdimg_using_command show' -l help -d 'display usage information'
complete -c fdimg -n '__fish_fdimg_using_command show' -l filter -s F -r -d 'show only descriptors that pass, in the language of fdimg select'
complete -c fdimg -n '__fish_fdimg_using_command show' -l json -s J -d 'print one JSON document'
complete -c fdimg -n '__fish_fdimg_using_command show' -l color -x -a 'auto always never' -d 'colours: auto (on a terminal), always or never'
complete -c fdimg -n '__fish_fdimg_using_command show' -l verbose -s v -d 'say what fdimg gives up before it reads the image'
complete -c fdimg -n '__fish_fdimg_using_command verify' -l help -d 'display usage information'
complete -c fdimg -n '__fish_fdimg_using_command verify' -l verbose -s v -d 'say what fdimg gives up before it reads the image'
complete -c fdimg -n '__fish_fdimg_using_command select' -l help -d 'display usage information'
complete -c fdimg -n '__fish_fdimg_using_command select' -l filter -s F -r -d 'keep only descriptors that pass: 3, 0-9, a kind, deleted, path:GLOB, pid:N; ! negates, commas mean or, repeated options mean and'
complete -c fdimg -n '__fish_fdimg_using_command select' -l verbose -s v -d 'say what fdimg gives up before it reads the image'
complete -c fdimg -n '__fish_fdimg_using_command place' -l help -d 'display usage information'
complete -c fdimg -n '__fish_fdimg_using_command place' -l bytes -s b -d 'show bytes of kernel memory instead of slots'
complete -c fdimg -n '__fish_fdimg_using_command place' -l limit -r -d 'RLIMIT_NOFILE where the image will be restored (default: that of this process)'
complete -c fdimg -n '__fish_fdimg_using_command place' -l json -s J -d 'print one JSON document'
complete -c fdimg -n '__fish_fdimg_using_command place' -l color -x -a 'auto always never' -d 'colours: auto (on a terminal), always or never'
complete -c fdimg -n '__fish_fdimg_using_command place' -l verbose -s v -d 'say what fdimg gives up before it reads the image'
