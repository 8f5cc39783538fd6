--- The nodes as placement looks at them, with what each has to do, kept up to date by watches while this manager leads.
local async = require "symphony.async"
local errors = require "symphony.errors"
local json = require "symphony.json"
local log = require "sym.log"
local state = require "symphony.cluster.state"
local store = require "sym.store"

local M = {}

local NODE, STATUS, ASSIGN = "/node/", "/status/node/", "/assign/"

local world            -- {nodes, said, work, watches}; nil: not loaded
local loading = async.mutex()
local listeners = {}

-- {node_id, name, role, labels, services, availability, removing, status, since, load}, of what is known of node @id;
-- nil: there is none.
local function compose(w, id)
  local n, said = w.known[id], w.said[id] or {}
  w.nodes[id] = n and { node_id = id, name = n.name, role = n.role, labels = n.labels or {},
    services = json.array(n.services or {}), availability = n.availability or "active",
    removing = n.removing ~= nil or nil, status = said.status, since = said.since, load = w.load[id] or 0 } or nil
end

local function tell(id)
  for _, fn in ipairs(listeners) do fn(id) end
end

local function decoded(value)
  local doc = value and json.decode(value)
  return type(doc) == "table" and doc or nil
end

local function take_node(w, kv)
  local id = kv.key:sub(#NODE + 1)
  w.known[id] = decoded(kv.value)
  compose(w, id)
  return id
end

local function take_status(w, kv)
  local id = kv.key:sub(#STATUS + 1)
  w.said[id] = decoded(kv.value)
  compose(w, id)
  return id
end

local function take_work(w, kv)
  local id, key = kv.key:match("^/assign/([^/]+)/(.+)$")
  if not id then return nil end
  local work = w.work[id] or {}
  local had, has = work[key], kv.value ~= nil or nil
  work[key], w.work[id] = has, work
  if had ~= has then
    w.load[id] = (w.load[id] or 0) + (has and 1 or -1)
    if w.nodes[id] then w.nodes[id].load = w.load[id] end
  end
end

local THEMES = { { NODE, take_node }, { STATUS, take_status }, { ASSIGN, take_work } }

--- Forgets it all; the next load() reads it anew.
function M.close()
  local old = world
  world = nil
  for _, watch in ipairs(old and old.watches or {}) do watch:close() end
end

local function watch(w, prefix, take)
  local handle, err = store.watch(prefix, store.revision(), function(failed, events)
    if failed then
      if world == w then M.close() end
      tell(nil)
      return
    end
    for _, event in ipairs(events) do
      local id = take(w, { key = event.key, value = not event.deleted and event.value or nil })
      if id and world == w then tell(id) end
    end
  end)
  if not handle then error(errors.from(err), 0) end
  w.watches[#w.watches + 1] = handle
end

--- Reads it unless it is there. In a task. The nodes by id; nil, err.
function M.load()
  local _ <close> = loading:lock()
  if world then return world.nodes end
  local w = { known = {}, said = {}, nodes = {}, work = {}, load = {}, watches = {} }
  world = w
  local ok, err = pcall(function()
    for _, theme in ipairs(THEMES) do
      local prefix, take = table.unpack(theme)
      watch(w, prefix, take)
      assert(state.each_raw(prefix, function(kv)
        -- What has changed meanwhile was told by the watch, and is looked up.
        local now = state.text(kv.key)
        take(w, { key = kv.key, value = now })
      end))
    end
  end)
  if ok and world == w then return w.nodes end
  M.close()
  err = not ok and errors.from(err) or errors.new("busy", "the state was replaced meanwhile", "say it again")
  log.debug("services: " .. err.message)
  return nil, err
end

--- The nodes by id, if they have been read; nil.
function M.nodes()
  return world and world.nodes
end

--- "kind/id" -> true, of all that node @id has to do.
function M.work(id)
  return world and world.work[id] or {}
end

--- fn(id) when something about node @id has changed; id nil: everything has to be read anew.
function M.on_change(fn)
  listeners[#listeners + 1] = fn
end

return M
