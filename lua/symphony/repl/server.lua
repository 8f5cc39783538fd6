--- POST /v1/lua {code, session, name, args, json}: runs code in the daemon, for who holds the control socket. The
--- answer is a stream of lines of JSON:
---   {"session": id}      if `session` was "new": it may be named from now on
---   {"out": text}        what was printed; {"out64": base64} when it is not UTF-8
---   {"note": text}       what goes beside the output
---   {"more": true}       the code is not finished
---   {"result": text}     the values, one below the other; with `json` as JSON
---   {"error": {code, message, hint, trace}}
---   {"exit": status}     0, or what a command with that error ends with; the last one
local async = require "symphony.async"
local errors = require "symphony.errors"
local json = require "symphony.json"
local lazy = require "symphony.lazy"
local sys = require "sym.sys"

local session_of = lazy "symphony.repl.session"
local show = lazy "symphony.repl.show"

local M = {}

local SESSIONS_MAX = 64
local IDLE_MS = 3600 * 1000
local ALIVE_MS = 15000

local sessions = {} -- id -> {session, used (ms), turn, busy}
local turns = 0

local function touch(kept)
  turns = turns + 1
  kept.used, kept.turn = sys.mono_ms(), turns
end

local function forget_idle()
  local now, count, oldest = sys.mono_ms(), 0, nil
  for id, kept in pairs(sessions) do
    if not kept.busy and now - kept.used > IDLE_MS then
      sessions[id] = nil
    else
      count = count + 1
      oldest = (not kept.busy and (not oldest or kept.turn < sessions[oldest].turn)) and id or oldest
    end
  end
  if count >= SESSIONS_MAX then
    if not oldest then
      errors.raise("busy", "too many sessions")
    end
    sessions[oldest] = nil
  end
end

-- The session that @name asks for, and its id if it is a new one that stays.
local function take(name)
  if name == nil then
    return { session = session_of.new() }
  elseif name == "new" then
    forget_idle()
    local crypto = require "sym.crypto"
    local id = crypto.hex(crypto.random(16))
    local kept = { session = session_of.new() }
    touch(kept)
    sessions[id] = kept
    return kept, id
  end
  local kept = sessions[name]
  if not kept then
    errors.raise("not_found", "there is no such session, or it was idle for too long")
  elseif kept.busy then
    errors.raise("busy", "the session is still at work")
  end
  return kept
end

local function check(body)
  if type(body.code) ~= "string" then
    errors.raise("invalid", "code must be a string")
  elseif body.name ~= nil and type(body.name) ~= "string" then
    errors.raise("invalid", "name must be a string")
  elseif body.args ~= nil and type(body.args) ~= "table" then
    errors.raise("invalid", "args must be an array")
  end
  return body
end

local function as_json(results)
  if results.n <= 1 then
    return json.encode(results[1]) .. "\n"
  end
  local list = {}
  for i = 1, results.n do
    list[i] = results[i] == nil and json.null or results[i]
  end
  return json.encode(list) .. "\n"
end

local function as_text(results)
  local lines = {}
  for i = 1, results.n do
    lines[i] = show.show(results[i]) .. "\n"
  end
  return table.concat(lines)
end

-- Text of a peer that may be anything.
local function encode(kind, text)
  if utf8.len(text) then
    return { [kind] = text }
  end
  return { [kind .. "64"] = require("sym.crypto").base64(text) }
end

local function eval(kept, body, send)
  local results, err, more = session_of.eval(kept.session, body.code, {
    name = body.name,
    args = body.args,
    print = function(text)
      send(encode("out", text .. "\n"))
    end,
    note = function(text)
      send { note = json.clean(text) }
    end,
  })
  if results and (results.n > 0 or body.json) then
    local ok, text = xpcall(body.json and as_json or as_text, errors.handler, results)
    if ok then
      send { result = text }
    else
      results, err = nil, text
    end
  end
  if more then
    send { more = true }
  end
  if not results then
    send { error = { code = err.code, message = json.clean(err.message), hint = err.hint and json.clean(err.hint),
      trace = err.trace and json.clean(err.trace) } }
  end
  return results and 0 or errors.exit_code(err)
end

local function serve(router, req)
  local body = check(router.json(req))
  local kept, id = take(body.session)
  local task, over = async.current(), false
  req:on_gone(function()
    if not over then
      task:cancel()
    end
  end)
  req:start(200, "application/x-ndjson")

  local function send(message)
    local line = json.encode(message) .. "\n"
    if async.current() then
      async.await(req.write, req, line) -- a slow reader slows the code down
    else
      req:write(line, function() end) -- from a coroutine of the code's own, which may not wait
    end
  end

  kept.busy = true
  local alive = async.every(ALIVE_MS, function()
    async.await(req.write, req, "\n")
  end)
  local _ <close> = setmetatable({}, {
    __close = function()
      alive.stop()
      kept.busy = false
      touch(kept)
    end,
  })
  if id then
    send { session = id }
  end
  local status = eval(kept, body, send)
  over = true
  req:write(json.encode { exit = status } .. "\n", function() end)
  req:finish()
  return router.STREAM
end

function M.routes(router)
  router.route("POST", "/v1/lua", { auth = { control = true }, timeout_ms = false }, function(req)
    return serve(router, req)
  end)
end

return M
