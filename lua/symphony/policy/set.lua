--- The policies as this manager runs them: the set that is enabled in the state, kept in the sandbox.
local async = require "symphony.async"
local errors = require "symphony.errors"
local failures = require "symphony.policy.failures"
local json = require "symphony.json"
local leading = require "symphony.cluster.lead"
local log = require "sym.log"
local match = require "symphony.policy.match"
local node = require "sym.node"
local state = require "symphony.cluster.state"
local store = require "sym.store"
local sys = require "sym.sys"

local M = {}

M.PREFIX = "/policy/"
local WAIT_MS = 3000  -- for the set to be in the sandbox
local RETRY_MS = 1000 -- what does not load is tried again
local REST_MS = 60000 -- when there is nothing to do

-- {revision = the highest of /policy/, count, list = enabled policies in the order in which they run, off = those that
-- are disabled for a reason: {name, reason}}. Of list each {name, version, sha256, set_at, revision (of its record),
-- about, broken = why it is not in the sandbox}. nil: not known yet.
local current
local loaded = {}      -- name -> sha256: what the sandbox holds
local dirty = true     -- the state may have gone on since
local syncing = async.mutex()
local watch, loop

local function sandbox() return require "sym.policy" end

local function in_order(a, b)
  if a.about.order ~= b.about.order then return a.about.order < b.about.order end
  return a.name < b.name
end

-- What the state has: a set as above, and the sources by name. Raises.
local function read_set()
  local rows = assert(state.list_raw(M.PREFIX))
  local set, sources = { revision = 0, count = #rows, list = {}, off = {} }, {}
  for _, kv in ipairs(rows) do
    set.revision = math.max(set.revision, kv.mod_revision)
    local record = json.decode(kv.value)
    if type(record) == "table" and record.enabled == true and type(record.source) == "string" then
      local ok, about = pcall(match.check_about, record.about)
      local entry = { name = kv.key:sub(#M.PREFIX + 1), version = record.version, sha256 = record.sha256,
        set_at = record.set_at, revision = kv.mod_revision }
      -- One that cannot say what it concerns may concern anything.
      entry.about = ok and about or { summary = "", order = match.ORDER, hooks = { "admit.join", "admit.change" },
        match = {} }
      entry.broken = not ok and about or nil
      entry.own_fault = not ok
      set.list[#set.list + 1] = entry
      sources[entry.name] = record.source
    elseif type(record) == "table" and record.reason then
      table.insert(set.off, { name = kv.key:sub(#M.PREFIX + 1), reason = record.reason })
    end
  end
  table.sort(set.list, in_order)
  return set, sources
end

local function concerns_kv(set)
  for _, entry in ipairs(set.list) do
    if match.concerns_kv(entry.about) then return true end
  end
  return false
end

local function load_one(entry, source)
  if loaded[entry.name] == entry.sha256 then return end
  local about, err = async.await(sandbox().load, entry.name, source)
  if about then
    loaded[entry.name], entry.broken = entry.sha256, nil
    return
  end
  if loaded[entry.name] then sandbox().drop(entry.name) end -- an earlier version: nobody asks it any more
  loaded[entry.name] = nil
  entry.broken, entry.tried = err, sys.mono_ms()
  entry.own_fault = err.code == "invalid" or err.policy == entry.name
  log.error(("policy: %s does not load: %s"):format(entry.name, err.message))
end

-- Brings the sandbox in step with @set.
local function carry(set, sources)
  for name in pairs(loaded) do
    if not sources[name] then
      sandbox().drop(name)
      loaded[name] = nil
    end
  end
  for _, entry in ipairs(set.list) do load_one(entry, sources[entry.name]) end
  if next(loaded) or #set.list > 0 then sandbox().loaded(set.revision, set.count) end
end

-- The set that the state has now, in the sandbox, and its sources. Raises.
local function take_in()
  local set, sources = read_set()
  set.kv = concerns_kv(set)
  -- The fast way of changes of keys ends before the policies are ready, and begins behind them.
  node.kv_policies(not set.kv and set.revision or nil)
  carry(set, sources)
  return set, sources
end

-- Looks at the state and loads what is new. Raises.
local function sync()
  local lock <close>, err = syncing:lock(WAIT_MS)
  if not lock then error(err, 0) end
  while dirty or not current do
    dirty = false
    local ok, set, sources = pcall(take_in)
    if not ok then
      dirty = true
      error(set, 0)
    end
    failures.keep(sources)
    current = set
    local whole = set.kv
    for _, entry in ipairs(set.list) do whole = whole and not entry.broken end
    if whole and not dirty then
      node.kv_policies(nil, set.revision, set.count, require("symphony.cluster.leader").here().name)
    end
  end
end

local function retry_broken(set)
  for _, entry in ipairs(set.list) do
    if entry.broken and sys.mono_ms() - (entry.tried or 0) > RETRY_MS then dirty = true end
  end
end

--- The set that runs now, in the sandbox: as above. In a task. Raises.
function M.ensure()
  if current then retry_broken(current) end
  if dirty or not current then sync() end
  return current
end

--- What is known of it, without a wait; nil: nothing yet.
function M.known()
  return current
end

--- Those of it that this manager's sandbox has not got: name -> why. Both it and we try again.
function M.broken()
  local out = {}
  for _, b in ipairs(next(loaded) and sandbox().stats().broken or {}) do out[b.name] = b.why end
  for _, entry in ipairs(current and current.list or {}) do
    if entry.broken then out[entry.name] = entry.broken.message end
  end
  return out
end

--- The state has other policies now, or may have: what is asked from here on goes by those.
function M.changed()
  dirty = true
  loop:wake()
end

local function on_watch(ended)
  if ended and watch then
    watch:close()
    watch = nil
  end
  M.changed()
end

local function turn()
  if not watch and node.started() then
    dirty = true
    watch = store.watch(M.PREFIX, store.revision(), on_watch)
  end
  local ok, err = xpcall(M.ensure, errors.handler)
  if not ok and err.code ~= "closed" then error(err, 0) end
  return ok and watch and REST_MS or RETRY_MS
end

loop = leading.loop("policy", RETRY_MS, turn, { first_ms = 0 })

--- Keeps the sandbox in step with the state until stop(). Said twice, it is one.
function M.start()
  loop:start()
end

function M.stop()
  loop:stop()
  if watch then watch:close() end
  for name in pairs(loaded) do
    sandbox().drop(name)
    loaded[name] = nil
  end
  watch, current, dirty = nil, nil, true
  failures.keep {}
  node.kv_policies(0)
end

--- Is there any enabled policy with @hook? From what is known now.
function M.has(hook)
  for _, entry in ipairs(current and current.list or {}) do
    for _, name in ipairs(entry.about.hooks) do
      if name == hook then return true end
    end
  end
  return false
end

--- The version of the enabled policy @name; nil: there is none, or it is not known yet.
function M.version(name)
  for _, entry in ipairs(current and current.list or {}) do
    if entry.name == name then return entry.version end
  end
end

return M
