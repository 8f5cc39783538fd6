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

-- Asks the person; a Ctrl-C meanwhile ends the program (the signal has its usual effect here).
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

-- Ctrl-C: the daemon sees the connection end with this process, and cancels the command.
local function on_interrupt()
  local signal = require("luv").new_signal()
  signal:start("sigint", function()
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
  local status, signal

  local function answer(question)
    signal:stop()
    local yes = ask(question.ask)
    signal = on_interrupt()
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
  signal = on_interrupt()
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
    --- In a task: the answer's body (true if there is none), or nil, err, status.
    function ctx.call(method, path, body, opts)
      local done, result = async.event(), nil
      M.call(socket, method, path, body, opts, function(...)
        result = table.pack(...)
        done:set()
      end)
      local signal = on_interrupt()
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

--- Called by the program with its arguments (without its name).
function M.main(...)
  local argv = { ... }
  if argv[1] == "__complete" then return complete(table.move(argv, 2, #argv, 1, {})) end
  local found = commands.scan(argv)
  found.terminal = terminal()
  local socket = found.socket or sys.getenv("SYMPHONY_SOCKET") or "./control.sock"
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
