--- Commands in the daemon: POST /v1/command runs one and streams what it prints, as lines of JSON.
---   {"out": text} {"err": text}           for the two outputs; {"out64": base64} when it is not UTF-8
---   {"ask": question, "id": id}           wants POST /v1/command/answer {id, yes}
---   {"exit": status}                      the last one
--- A word of argv that is not UTF-8 is {"base64": ...}. An empty line says that it is still at work. When the client
--- goes away, the command is canceled.
local log = require "sym.log"
local async = require "symphony.async"
local errors = require "symphony.errors"
local json = require "symphony.json"
local lazy = require "symphony.lazy"
local lines = require "symphony.lines"

local commands = lazy "symphony.cli.commands"
local execute = lazy "symphony.cli.execute"

local M = {}

local ALIVE_MS = 15000
local ARGS_MAX = 1024

local questions = {} -- id -> {event, who, yes}

-- The words of a command line: strings, and {"base64": ...} for one that is not UTF-8.
local function check_argv(argv)
  if type(argv) ~= "table" or #argv > ARGS_MAX then
    errors.raise("invalid", "argv must be an array of strings")
  end
  local words = {}
  for i, word in ipairs(argv) do
    if type(word) == "table" and type(word.base64) == "string" then
      word = require("sym.crypto").unbase64(word.base64)
    end
    if type(word) ~= "string" then
      errors.raise("invalid", "argv must be an array of strings")
    end
    words[i] = word
  end
  return words
end

local function encode(kind, text)
  if utf8.len(text) then
    return json.encode { [kind] = text }
  end
  return json.encode { [kind .. "64"] = require("sym.crypto").base64(text) }
end

local function same(a, b)
  return a.kind == b.kind and a.id == b.id and a.uid == b.uid
end

-- What a command may do with the person at the other end.
local function context(req, who, body)
  local ctx = {
    who = who,
    client = {
      uid = who.uid, gid = who.gid, pid = who.pid,
      tty = body.tty == true, interactive = body.interactive == true,
      width = math.type(body.width) == "integer" and body.width or nil,
    },
    color = body.color == true,
    color_err = body.color_err == true,
  }
  local on_cancel, gone = {}, false

  local function send(line)
    if not gone then
      async.await(req.write, req, line .. "\n")
    end
  end
  local function print_to(kind, text)
    for piece in lines.pieces(text) do
      send(encode(kind, piece))
      if #text > #piece then async.sleep(0) end -- a reader that is fast must not keep the others waiting
    end
  end
  function ctx.out(text)
    print_to("out", text)
  end
  function ctx.err(text)
    print_to("err", text)
  end
  function ctx.confirm(question)
    if ctx.args.yes then
      return true
    elseif not ctx.client.interactive then
      return false
    end
    local crypto = require "sym.crypto"
    local id = crypto.hex(crypto.random(16))
    local asked = { event = async.event(), who = who }
    local _ <close> = setmetatable({}, {
      __close = function()
        questions[id] = nil
      end,
    })
    questions[id] = asked
    send(json.encode { ask = question, id = id })
    asked.event:wait()
    return asked.yes
  end
  function ctx.call()
    return nil, errors.new("usage", "this command runs in the client")
  end
  function ctx.cancelled()
    return gone
  end
  function ctx.on_cancel(fn)
    on_cancel[#on_cancel + 1] = fn
  end
  --- The client has gone away.
  function ctx.cancel()
    gone = true
    for _, fn in ipairs(on_cancel) do
      local ok, err = xpcall(fn, errors.handler)
      if not ok then
        log.error("on_cancel: " .. (err.traceback or err.message))
      end
    end
  end
  return ctx
end

local function internal(err, name)
  log.error("command: " .. (err.traceback or err.message))
  local file = name and commands.file_of(name)
  if file then
    return errors.new("internal", ("an error in the command %s: %s"):format(name, err.message:match("[^\n]*")),
      ("it is the operator's own, %s; the log of this daemon has the details"):format(file))
  end
  return errors.new("internal", "an error in symphony itself: " .. err.message:match("[^\n]*"),
    "the log of this daemon has the details")
end

local function command(router, req, who)
  local body = router.json(req)
  local argv = check_argv(body.argv)
  local found = commands.scan(argv)
  if not found.help and found.words[1] and commands.has(found.words[1]) and commands.is_local(found.words) then
    errors.raise("invalid", ("%s runs where it is typed, not in the daemon"):format(table.concat(found.words, " ")),
      "`symphony` does that")
  end
  local ctx = context(req, who, body)
  local task, over = async.current(), false
  req:on_gone(function()
    if not over then
      ctx.cancel()
      task:cancel()
    end
  end)
  req:start(200, "application/x-ndjson")
  local alive <close> = setmetatable(async.every(ALIVE_MS, function()
    async.await(req.write, req, "\n")
  end), {
    __close = function(handle)
      handle.stop()
    end,
  })
  local status = execute.command(argv, ctx, internal)
  over = true
  alive.stop()
  req:write(json.encode { exit = status } .. "\n", function() end)
  req:finish()
  return router.STREAM
end

local function answer(router, req, who)
  local body = router.json(req)
  local asked = questions[body.id]
  if not asked or not same(asked.who, who) then
    errors.raise("not_found", "no such question is being asked")
  end
  asked.yes = body.yes == true
  asked.event:set()
  return 200, {}
end

-- A certificate that may ask for what a command does has its own routes for that.
local ONLY_HERE = { control = true }

function M.routes(router)
  router.route("POST", "/v1/command", { auth = ONLY_HERE, timeout_ms = false }, function(req, _, who)
    return command(router, req, who)
  end)
  router.route("GET", "/v1/commands", { auth = ONLY_HERE }, function()
    local list = json.array {}
    for _, row in ipairs(commands.own_list()) do
      list[#list + 1] = { name = row.spec.name, summary = row.spec.summary or "", file = row.file }
    end
    return 200, list
  end)
  router.route("POST", "/v1/complete", { auth = ONLY_HERE }, function(req)
    local words = check_argv(router.json(req).words)
    return 200, require("symphony.cli.complete").answer(words), { ctype = "text/plain; charset=utf-8" }
  end)
  router.route("POST", "/v1/reload", { auth = ONLY_HERE }, function()
    return 200, require("symphony.modules").reload()
  end)
  router.route("POST", "/v1/command/answer", { auth = ONLY_HERE }, function(req, _, who)
    return answer(router, req, who)
  end)
end

return M
