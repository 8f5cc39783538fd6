# Completion of symphony(1) for fish: put it into ~/.config/fish/completions. `symphony __complete WORD...` says what
# fits; see symphony.bash.

function __symphony_complete
    set -l words (commandline -opc) (commandline -ct)
    for line in ($words[1] __complete $words[2..-1] 2>/dev/null)
        switch $line
            case :files
                __fish_complete_path (commandline -ct)
            case :dirs
                __fish_complete_directories (commandline -ct)
            case '*'
                echo $line
        end
    end
end

complete -c symphony -f -a '(__symphony_complete)'
