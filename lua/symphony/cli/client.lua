--- The client's side: what needs no daemon is done here, all else is sent to it and what comes back is printed. Most
--- calls are short, so nothing is loaded that they do not need.
local http = require "sym.http"
local sys = require "sym.sys"
local commands = require "symphony.cli.commands"
local errors = require "symphony.errors"
local json = require "symphony.json"
local lines = require "symphony.lines"

local M = {}

local SOCKET_HINT = "start a daemon with `symphonyd manager|block --config-dir DIR`, or name its socket with --socket "
  .. "DIR/control.sock or $SYMPHONY_SOCKET"
local GONE_HINT = "its log may say why; look at the state before saying it again"
local OWN_MS = 1000  -- for the daemon to say which commands only it knows
local COMPLETE_MS = 500 -- for its answer to somebody who has pressed a key
local PATIENCE_S = 1 -- the daemon keeps --timeout itself; this is for one that does not

-- Options with a value that may stand before a command, or before a script of `symphony lua`.
local VALUED = { ["--socket"] = true, ["--timeout"] = true, ["-e"] = true, ["--eval"] = true }

-- Output --------------------------------------------------------------------------------------------------------------

-- Nobody reads any more: end like a program that SIGPIPE has killed, without a word.
local EPIPE, PIPE_STATUS = 32, 141

-- Passes on what a call on standard output returned, unless it failed.
local function checked(ok, err, errno)
  if not ok then
    if errno ~= EPIPE then
      io.stderr:write(("symphony: standard output: %s\n"):format(err))
    end
    sys.exit(errno == EPIPE and PIPE_STATUS or 1)
  end
end

local function out(text)
  checked(io.stdout:write(text))
end

local function err_out(text)
  checked(io.stdout:flush())
  io.stderr:write(text)
end

local function finish(code)
  checked(io.stdout:flush())
  sys.exit(code)
end

-- Asks the person; a Ctrl-C meanwhile ends the program.
local function ask(question)
  io.stdout:flush()
  io.stderr:write(question, " [y/N] ")
  io.stderr:flush()
  local line = io.read("l")
  if not line then
    io.stderr:write("\n")
  end
  local word = line and line:lower():match("^%s*(%l*)%s*$")
  return word == "y" or word == "yes"
end

-- The command line, as far as it concerns the client ------------------------------------------------------------------

local function terminal()
  local tty = sys.isatty(1)
  local colors = not sys.getenv("NO_COLOR") and sys.getenv("TERM") ~= "dumb"
  return {
    tty = tty,
    interactive = sys.isatty(0),
    color = tty and colors,
    color_err = sys.isatty(2) and colors,
    width = sys.winsize(),
  }
end

-- Talking to the daemon -----------------------------------------------------------------------------------------------

-- What a failed call means to the person who called. @status: of the answer that had begun to come, or nil.
local function explain(err, socket, status)
  if status and err.code ~= "closed" then
    return err
  elseif err.code == "denied" then
    return errors.new("denied", ("%s: this user may not use it"):format(socket),
      "the daemon's user and root may, and the group given as --socket-group")
  elseif err.code == "timeout" then
    return errors.new("no_daemon", ("the daemon at %s does not answer"):format(socket), "is it stopped, or overloaded?")
  elseif err.code == "closed" or err.code == "canceled" then
    return errors.new("outcome_unknown", ("the daemon at %s went away before it was done"):format(socket), GONE_HINT)
  end
  return errors.new("no_daemon", ("no daemon answers at %s: %s"):format(socket, err.message), SOCKET_HINT)
end

-- The connection has ended under the command of @found that was running: does anybody have to look what became of it?
local function cut_short(found, socket)
  if not commands.only_reads(found.words) then return explain({ code = "closed" }, socket) end
  return errors.new("closed", ("the connection to the daemon at %s has ended"):format(socket),
    "nothing was changed by this; say it again once the daemon answers")
end

-- The error that an answer with a status of 400 or more carries.
local function refusal(status, body)
  local doc = json.decode(body)
  local e = type(doc) == "table" and doc.error
  if type(e) == "table" and type(e.code) == "string" then
    local hint = type(e.hint) == "string" and e.hint or nil
    local err = errors.new(e.code, tostring(e.message), hint)
    err.policy = type(e.policy) == "string" and e.policy or nil
    return err
  end
  return errors.new("protocol", ("the daemon answered with status %d"):format(status))
end

--- Sends @body (a table goes as JSON) and calls cb(err, body, status): the body decoded, or as text with opts.raw. More
--- of @opts goes to sym.http: on_data (for a status below 400), idle_ms, timeout_ms, max_body.
function M.call(socket, method, path, body, opts, cb)
  opts = opts or {}
  local status, refused = nil, {}
  if type(body) == "table" then
    local ok, text = pcall(json.encode, body)
    if not ok then
      return cb(errors.new("invalid", "something in the command line is not UTF-8"))
    end
    body = text
  end
  local handle, failed = http.request({
    unix = socket,
    method = method,
    path = path,
    body = body,
    headers = { ["content-type"] = opts.ctype or "application/json" },
    timeout_ms = opts.timeout_ms,
    idle_ms = opts.idle_ms,
    max_body = opts.max_body,
    on_head = function(code)
      status = code
    end,
    on_data = opts.on_data and function(chunk)
      if status < 400 then
        opts.on_data(chunk)
      else
        refused[#refused + 1] = chunk
      end
    end or nil,
  }, function(err, answer)
    if err then
      return cb(explain(err, socket, status), nil, status)
    elseif answer.status >= 400 then
      local text = opts.on_data and table.concat(refused) or answer.body
      return cb(refusal(answer.status, text or ""), nil, answer.status)
    elseif opts.raw or opts.on_data then
      return cb(nil, answer.body, answer.status)
    end
    local doc, bad = json.decode(answer.body)
    cb(bad, doc, answer.status)
  end)
  if not handle then
    cb(explain(failed, socket))
  end
end

local function fail(err, found)
  err_out(require("symphony.cli.render").error(err, { json = found.json, color_err = found.terminal.color_err }))
  finish(errors.exit_code(err))
end

-- A Ctrl-C ends the process with status 130, unless there is something else to do: the daemon sees the connection end
-- with it, and cancels what it did.
local function on_interrupt(fn)
  local signal = require("luv").new_signal()
  signal:start("sigint", fn or function()
    finish(130)
  end)
  return signal
end

-- Words that are not UTF-8, such as keys, go as {base64 = ...}.
local function words(argv)
  local list = {}
  for i, word in ipairs(argv) do
    list[i] = utf8.len(word) and word or { base64 = require("sym.crypto").base64(word) }
  end
  return json.array(list)
end

local function remote(argv, found, socket)
  local status

  local function answer(question)
    local yes = ask(question.ask)
    M.call(socket, "POST", "/v1/command/answer", { id = question.id, yes = yes }, nil, function(err)
      if err then
        fail(err, found)
      end
    end)
  end

  local stream = lines.of(function(message)
    local text = message.out or message.out64 and require("sym.crypto").unbase64(message.out64)
    local complaint = message.err or message.err64 and require("sym.crypto").unbase64(message.err64)
    if text then
      out(text)
    end
    if complaint then
      err_out(complaint)
    end
    if message.ask then
      answer(message)
    end
    status = message.exit or status
  end)

  local request = found.terminal
  request.argv = words(argv)
  M.call(socket, "POST", "/v1/command", request, {
    on_data = function(chunk)
      stream(chunk)
      checked(io.stdout:flush())
    end,
  }, function(err)
    if status then
      finish(status)
    elseif err and err.code == "no_daemon" then
      -- What is wrong in the line itself should not wait until there is a daemon.
      local _, usage = require("symphony.cli.parser").parse(argv)
      fail(usage or err, found)
    end
    fail((not err or err.code == "outcome_unknown") and cut_short(found, socket) or err, found)
  end)
  local limit = tonumber(found.timeout)
  if limit and limit > 0 then
    local timer = require("luv").new_timer()
    timer:start(math.ceil((limit + PATIENCE_S) * 1000), 0, function()
      fail(errors.new("timeout", ("not done within %g s"):format(limit)), found)
    end)
  end
end

-- Commands that run here ----------------------------------------------------------------------------------------------

local function here(argv, found, socket)
  local async = require "symphony.async"
  async.spawn(function()
    local ctx = found.terminal
    ctx.client = { tty = ctx.tty, interactive = ctx.interactive, width = ctx.width, uid = sys.uid() }
    ctx.socket = socket
    ctx.out, ctx.err = out, err_out
    function ctx.confirm(question)
      return ctx.args.yes or (ctx.interactive and ask(question)) or false
    end
    ctx.edits = ctx.tty and ctx.interactive and sys.getenv("TERM") ~= "dumb"
    ctx.quit = finish
    --- In a task: the answer's body (true if there is none), or nil, err, status. opts.on_interrupt(): for a Ctrl-C
    --- meanwhile, which ends the program otherwise.
    function ctx.call(method, path, body, opts)
      local done, result = async.event(), nil
      M.call(socket, method, path, body, opts, function(...)
        result = table.pack(...)
        done:set()
      end)
      local signal = on_interrupt(opts and opts.on_interrupt)
      done:wait()
      signal:close()
      if result[1] then
        return nil, result[1], result[3]
      end
      return result[2] == nil and true or result[2]
    end
    function ctx.cancelled()
      return false
    end
    function ctx.on_cancel() end
    --- In a task: the commands that only the daemon knows; nil when it cannot be asked.
    function ctx.own()
      local list = ctx.call("GET", "/v1/commands", nil, { timeout_ms = OWN_MS })
      return type(list) == "table" and list or nil
    end
    finish(require("symphony.cli.execute").command(argv, ctx, function(err)
      return err
    end))
  end)
end

-- A word as the shell will hand it over, as far as that can be told without it.
local function expanded(word)
  word = word:gsub("[\"'\\]", ""):gsub("%${?([%a_][%w_]*)}?", sys.getenv)
  return (word:gsub("^~%f[/\0]", function() return sys.getenv("HOME") end))
end

-- The words of a command line behind `__complete`, with the options that stand before it in front; nil: it is another
-- command.
local function to_complete(argv)
  local at = 1
  while argv[at] and argv[at]:find("^%-.") do at = at + (VALUED[argv[at]] and 2 or 1) end
  if argv[at] ~= "__complete" then return nil end
  table.remove(argv, at)
  for i = 1, #argv - 1 do argv[i] = expanded(argv[i]) end
  return argv
end

-- What the completion of a shell asks: never a word but candidates. @typed: the words, the last of them being begun.
local function complete(typed)
  local found = commands.scan(typed)
  local socket = found.socket or sys.getenv("SYMPHONY_SOCKET") or "./control.sock"
  local function show(text)
    io.stdout:write(text)
    io.stdout:flush()
    sys.exit(0)
  end
  local function alone()
    local ok, text = pcall(function()
      local module = require "symphony.cli.complete"
      return module.text(module.candidates(typed))
    end)
    show(ok and text or "")
  end
  M.call(socket, "POST", "/v1/complete", { words = words(typed) }, { raw = true, timeout_ms = COMPLETE_MS,
    idle_ms = COMPLETE_MS }, function(err, body)
    if err or not body then alone() else show(body) end
  end)
end

-- The arguments of `symphony lua` in a line that has only the usual options; nil: lua-argparse has to look at it.
local function lua_arguments(argv)
  local args, list, options, at = {}, {}, true, 1
  while at <= #argv do
    local word = argv[at]
    local name, value = word:match("^(%-%-%l+)=(.*)$")
    if not options or word == "-" or word:sub(1, 1) ~= "-" then
      list[#list + 1] = word
    elseif word == "--" then
      options = false
    elseif name == "--eval" then
      args.eval = value
    elseif word == "-e" or word == "--eval" then
      at = at + 1
      args.eval = argv[at]
      if not args.eval then return nil end
    elseif word == "--socket" then
      at = at + 1
    elseif word ~= "--json" and name ~= "--socket" then
      return nil
    end
    at = at + 1
  end
  if list[1] ~= "lua" then return nil end
  args.script, args.arguments = list[2], table.move(list, 3, #list, 1, {})
  return args
end

-- Code to run as a program, which should take no longer to start than one: without lua-argparse, luv and tasks. True if
-- the line is of that kind.
local function run_program(argv, found, socket)
  if found.words[1] ~= "lua" then return false end
  local args = lua_arguments(argv)
  if not args then return false end
  local program = require "symphony.repl.program"
  local request, bad = program.request(args, found.terminal.interactive)
  if bad then
    fail(bad, found)
  elseif not request then
    return false
  end
  local ctx = { out = out, err = err_out, json = found.json, color_err = found.terminal.color_err }
  local seen = {}
  local stream = program.receiver(ctx, seen)
  request.json, request.color = found.json, found.terminal.color or nil
  M.call(socket, "POST", "/v1/lua", request, {
    on_data = function(chunk)
      stream(chunk)
      checked(io.stdout:flush())
    end,
  }, function(err)
    if err or not seen.exit then fail(err or explain({ code = "closed" }, socket), found) end
    if seen.more then program.complain(ctx, seen.late) end
    finish(seen.exit)
  end)
  return true
end

--- The words of a command line in which a script's own, behind its name, are not taken for options of `symphony lua`.
function M.protect(argv)
  local at, command = 1, nil
  while at <= #argv and argv[at] ~= "--" do
    local word = argv[at]
    if VALUED[word] then
      at = at + 1
    elseif word == "-" or word:sub(1, 1) ~= "-" then
      if command then
        table.insert(argv, at, "--")
        break
      end
      command = word
      if command ~= "lua" then break end
    end
    at = at + 1
  end
  return argv
end

--- Called by the program with its arguments (without its name).
function M.main(...)
  local argv = { ... }
  local typed = to_complete(argv)
  if typed then return complete(typed) end
  argv = M.protect(argv)
  local found = commands.scan(argv)
  found.terminal = terminal()
  local socket = found.socket or sys.getenv("SYMPHONY_SOCKET") or "./control.sock"
  if not found.help and run_program(argv, found, socket) then return end
  local word, about = found.words[1], found.words[2]
  if word == "help" and about and not commands.has(about) then
    -- The daemon may know more commands.
    argv = table.move(found.words, 2, #found.words, 1, {})
    table.move({ "--help", found.json and "--json" or nil }, 1, 2, #argv + 1, argv)
    return remote(argv, found, socket)
  end
  if not word or (found.help and commands.has(word)) or commands.is_local(found.words) then
    return here(argv, found, socket)
  end
  remote(argv, found, socket)
end

return M
