--- The prompt's routes, for who holds the control socket.
---
--- POST /v1/lua {code, session, name, args, json, color} runs code in the daemon. The answer is a stream of lines of
--- JSON; a text comes in pieces, and a reader that is slow slows the code down:
---   {"session": id}      if `session` was "new": it may be named from now on
---   {"out": text}        what was printed, {"err": text} on standard error; {"out64": base64} when it is not UTF-8
---   {"note": text}       what goes beside the output
---   {"more": true}       the code is not finished
---   {"result": text}     the values, one below the other; with `json` as JSON
---   {"error": {code, message, hint, trace}}
---   {"ended": true}      os.exit was called
---   {"exit": status}     0, what a command with that error ends with, or what os.exit was given; the last one
--- POST /v1/lua/complete {session, code}: {items, from, more}, see repl/complete.lua; also while the session works.
--- POST /v1/lua/cancel {session}: stops what the session runs, wherever it waits: {canceled = whether there was any}.
local async = require "symphony.async"
local errors = require "symphony.errors"
local heap = require "symphony.repl.heap"
local json = require "symphony.json"
local lazy = require "symphony.lazy"
local lines = require "symphony.lines"
local log = require "sym.log"
local sys = require "sym.sys"

local complete = lazy "symphony.repl.complete"
local secret = lazy "symphony.repl.secret"
local session_of = lazy "symphony.repl.session"

local M = {}

local SESSIONS_MAX = 64
local IDLE_MS = 3600 * 1000
local ALIVE_MS = 15000
local CODE_MAX = 1 << 20
local LOGGED_MAX = 300 -- bytes of code in the log
local KEYS_PAGE = 200
local HEAP_KIB = 48 << 10 -- of Lua, of the 128 MiB that code may make of it: then what is not used is collected first

local sessions = {} -- id -> {id, session, used (ms), turn, task = what runs}
local turns = 0

local function touch(kept)
  turns = turns + 1
  kept.used, kept.turn = sys.mono_ms(), turns
end

local function forget_idle()
  local now, count, oldest = sys.mono_ms(), 0, nil
  for id, kept in pairs(sessions) do
    if not kept.task and now - kept.used > IDLE_MS then
      sessions[id] = nil
    else
      count = count + 1
      oldest = (not kept.task and (not oldest or kept.turn < sessions[oldest].turn)) and id or oldest
    end
  end
  if count >= SESSIONS_MAX then
    if not oldest then
      errors.raise("busy", "too many sessions")
    end
    sessions[oldest] = nil
  end
end

local function known(name)
  local kept = sessions[name]
  if not kept then
    errors.raise("not_found", "there is no such session, or it was idle for too long")
  end
  return kept
end

-- The session that @name asks for, and its id if it is a new one that stays.
local function take(name)
  if name == nil then
    return { session = session_of.new() }
  elseif name == "new" then
    forget_idle()
    local crypto = require "sym.crypto"
    local id = crypto.hex(crypto.random(16))
    local kept = { id = id, session = session_of.new() }
    touch(kept)
    sessions[id] = kept
    return kept, id
  end
  local kept = known(name)
  if kept.task then
    errors.raise("busy", "the session is still at work")
  end
  return kept
end

local function check_text(body, name, max)
  if type(body[name]) ~= "string" then
    errors.raise("invalid", name .. " must be a string")
  elseif #body[name] > max then
    errors.raise("too_big", ("%s has %d bytes; at most %d fit"):format(name, #body[name], max))
  end
end

local function check(body)
  check_text(body, "code", CODE_MAX)
  if body.name ~= nil and type(body.name) ~= "string" then
    errors.raise("invalid", "name must be a string")
  elseif body.args ~= nil and type(body.args) ~= "table" then
    errors.raise("invalid", "args must be an array")
  end
  return body
end

-- Who runs what, for whoever has to find out afterwards what was done.
local function audit(who, kept, body)
  local code = secret.redact(body.code):gsub("%s+", " "):gsub("%c", "?")
  if #code > LOGGED_MAX then
    code = ("%s... (%d bytes)"):format(code:sub(1, (utf8.offset(code, 0, LOGGED_MAX + 1) or LOGGED_MAX + 1) - 1),
      #body.code)
  end
  log.info(("lua: uid %s, pid %s%s: %s"):format(who.uid, who.pid, kept.id and ", session " .. kept.id:sub(1, 8) or "",
    json.clean(code)))
end

-- Text of a peer that may be anything.
local function encode(kind, text)
  if utf8.len(text) then
    return { [kind] = text }
  end
  return { [kind .. "64"] = require("sym.crypto").base64(text) }
end

-- A function send(message), which waits for a reader who is slow, and one for texts of any length.
local function sender(req)
  local function send(message)
    async.await(req.write, req, json.encode(message) .. "\n")
  end
  local function send_text(kind, text)
    for piece in lines.pieces(text) do
      send(encode(kind, piece))
      if #text > #piece then async.sleep(0) end -- a reader that is fast must not keep the others waiting
    end
  end
  return send, send_text
end

-- What code before has left behind is no reason to stop other code.
local function settle()
  if collectgarbage("count") >= HEAP_KIB then heap.collect(2000) end
end

-- Runs @fn for the session as a task of its own, which a cancel ends: its results; nil, err. The session is free again
-- when the task has ended, and not before, also if this one is canceled.
local function work(kept, fn, opts)
  local results, err
  local task = async.spawn(function()
    local _ <close> = setmetatable({}, { __close = function()
      kept.task = nil
      touch(kept)
    end })
    settle()
    results, err = session_of.run(kept.session, fn, opts)
  end)
  if not task.done then kept.task = task end
  local _ <close> = setmetatable({}, { __close = function() task:cancel() end })
  local _, failed = task:wait()
  return results, err or failed
end

local function code_of(kept, body)
  if body.args then
    local arg = { [0] = (body.name or ""):gsub("^[@=]", "") }
    rawset(kept.session.env, "arg", table.move(body.args, 1, #body.args, 1, arg))
  end
  return session_of.compile(kept.session, body.code, body.name or "=lua")
end

-- The exit status.
local function eval(kept, body, who, send, send_text)
  local fn, err, more = code_of(kept, body)
  local results
  if more then
    send { more = true }
  else
    audit(who, kept, body)
  end
  if fn then
    results, err = work(kept, fn, {
      args = body.args, json = body.json == true, color = body.color == true,
      out = function(text) send_text("out", text) end,
      err = function(text) send_text("err", text) end,
      note = function(text) send { note = json.clean(text) } end,
    })
  end
  if not results then
    send { error = { code = err.code, message = json.clean(err.message), hint = err.hint and json.clean(err.hint),
      trace = err.trace and json.clean(err.trace) } }
    return errors.exit_code(err)
  end
  if results.text then send_text("result", results.text) end
  if results.exit then send { ended = true } end
  return results.exit or 0
end

local function serve(router, req, who)
  local body = check(router.json(req))
  local kept, id = take(body.session)
  local task, over = async.current(), false
  req:on_gone(function()
    if not over then
      task:cancel()
    end
  end)
  req:start(200, "application/x-ndjson")
  local send, send_text = sender(req)
  local alive = async.every(ALIVE_MS, function()
    async.await(req.write, req, "\n")
  end)
  local _ <close> = setmetatable({}, { __close = alive.stop })
  if id then
    send { session = id }
  end
  local status = eval(kept, body, who, send, send_text)
  over = true
  async.spawn(settle)
  req:write(json.encode { exit = status } .. "\n", function() end)
  req:finish()
  return router.STREAM
end

-- A page of the state's keys.
local function keys(prefix, after)
  local page = require("sym.store").list(prefix, { after = after, limit = KEYS_PAGE })
  for i, entry in ipairs(page or {}) do page[i] = entry.key end
  return page
end

function M.routes(router)
  local opts = { auth = { control = true } }
  router.route("POST", "/v1/lua", { auth = opts.auth, timeout_ms = false }, function(req, _, who)
    return serve(router, req, who)
  end)

  router.route("POST", "/v1/lua/complete", opts, function(req)
    local body = router.json(req)
    check_text(body, "code", CODE_MAX)
    local kept = body.session and body.session ~= "new" and known(body.session) or { session = session_of.new() }
    local found = complete.complete(kept.session.env, body.code, keys)
    found.items = json.array(found.items)
    return 200, found
  end)

  router.route("POST", "/v1/lua/cancel", opts, function(req)
    local body = router.json(req)
    check_text(body, "session", 64)
    local kept = known(body.session)
    local task = kept.task
    if task then task:cancel() end
    return 200, { canceled = task ~= nil }
  end)
end

return M
