-- GET /v1/events: what has happened, as a list or, with ?follow, as a stream.
local async = require "symphony.async"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local json = require "symphony.json"
local state = require "symphony.cluster.state"
local store = require "sym.store"
local sys = require "sym.sys"
local values = require "symphony.cluster.values"

local M = {
  check_ms = 1000, -- how often it is asked whether the reader may still read
}

local READERS = { control = true, manager = true, operator = true, reader = true }
local FOLLOWERS_MAX, FOLLOWERS_OF_ONE = 64, 16 -- at a time, in all and of one certificate
local HEARTBEAT_MS = 10000

local followers, of_one = 0, {} -- how many there are; by the name in the certificate

local function number(req, name, most)
  local text = req:param(name)
  if not text or text == "" then return nil end
  local n = #text <= 15 and text:match("^%d+$") and math.tointeger(tonumber(text))
  if not n or n > most then errors.raise("invalid", ("%s is a whole number up to %d"):format(name, most)) end
  return n
end

local function text(req, name)
  local value = req:param(name)
  return value ~= "" and value or nil
end

-- What is asked for. Raises.
local function want_of(req)
  local want = { node = text(req, "node"), kind = text(req, "kind"), limit = number(req, "limit", events.KEEP),
    from = number(req, "from", 1 << 49) }
  local since = text(req, "since")
  if since then want.since = assert(values.parse_since(since, sys.now())) end
  return want
end

-- Lines: each event, a sync behind those that there were, heartbeats; at the end an error.
local function stream(router, req, want)
  local synced, last = false, sys.mono_ms()
  local function send(line)
    local ok, err = async.await(req.write, req, json.encode(line) .. "\n")
    if not ok then error(err, 0) end
    last = sys.mono_ms()
  end
  local checked = last
  local f <close> = events.follow(want)
  while true do
    local event, err = f:next(synced and M.check_ms or 0)
    if err then error(err, 0) end
    local now = sys.mono_ms()
    if now - checked >= M.check_ms then
      router.recheck(req, READERS)
      checked = now
    end
    if event then
      send(event)
    elseif not synced or now - last >= HEARTBEAT_MS then
      send { type = synced and "heartbeat" or "sync", revision = store.revision() }
      synced = true
    end
  end
end

-- Counts one more follower, @who, until what it returns is closed. Raises "busy".
local function count(who)
  local id = who.id or who.kind
  local mine = of_one[id] or 0
  if followers >= FOLLOWERS_MAX then
    errors.raise("busy", ("%d readers follow the events of this manager already"):format(followers),
      "ask another manager, or later")
  elseif who.id and mine >= FOLLOWERS_OF_ONE then
    errors.raise("busy", ("%d readers follow the events of this manager with this certificate already"):format(mine),
      "end one of them, or ask another manager")
  end
  followers, of_one[id] = followers + 1, mine + 1
  return setmetatable({}, { __close = function()
    followers, of_one[id] = followers - 1, of_one[id] > 1 and of_one[id] - 1 or nil
  end })
end

local function follow(router, req, want, who)
  local _ <close> = count(who)
  local task, over = async.current(), false
  req:on_gone(function()
    if not over then task:cancel() end
  end)
  req:start(200, "application/x-ndjson")
  local _, err = xpcall(stream, errors.handler, router, req, want)
  over = true
  err = errors.from(err)
  if err.code == "internal" then
    require("sym.log").error("events: " .. (err.traceback or err.message))
    err = errors.new("internal", "an error in symphony itself", "the log of this daemon has the details")
  end
  req:write(json.encode(errors.body(err)) .. "\n", function() end)
  req:finish()
  return router.STREAM
end

local function is_yes(value)
  return value ~= nil and value ~= "false" and value ~= "no" and value ~= "0"
end

function M.routes(router)
  router.route("GET", "/v1/events", { auth = READERS, timeout_ms = false }, function(req, _, who)
    local want = want_of(req)
    local fresh = assert(state.read { stale = req:param("stale") == "ok" })
    want.node_id = events.node_id(want.node)
    if is_yes(req:param("follow")) then return follow(router, req, want, who) end
    local rows = assert(events.list(want))
    for _, event in ipairs(rows) do event.stale = fresh.stale or nil end
    return 200, rows
  end)
end

return M
