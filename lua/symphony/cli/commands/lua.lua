return {
  name = "lua",
  summary = "Lua at a prompt in the daemon, or a piece of code",
  description = [[
Without arguments and at a terminal: a prompt, with history, completion by Tab, and Ctrl-C for what takes too long. Else
runs the code of -e, of a file, or from standard input: what it prints is printed here, and its values. os.exit gives
the exit status; after an error it is as of other commands. The code runs in the daemon: help() says what is there.

Example:
  symphony lua
  symphony lua -e 'raft.status()'
  symphony lua --json -e 'kv.ls("app/")'
  symphony lua check.lua first second]],
  where = "client",
  args = function(parser)
    parser:option("-e --eval", "Run this code."):argname("CODE")
    parser:argument("script", "A file with code, - for standard input."):args("?"):argname("FILE")
    parser:argument("arguments", "What the code finds in `...`; options behind FILE too."):args("*"):argname("ARG")
  end,
  run = function(ctx)
    return require("symphony.repl.console").run(ctx)
  end,
}
