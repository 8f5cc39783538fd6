--- Figures of the nodes: how many are how, which are down. What the state says of them is read once and then followed
--- by a watch, from the first scrape on: with thousands of nodes a scrape must not read them all.
local async = require "symphony.async"
local errors = require "symphony.errors"
local json = require "symphony.json"
local log = require "sym.log"
local metrics = require "symphony.metrics"
local state = require "symphony.cluster.state"
local store = require "sym.store"

local gauge = metrics.gauge

local M = {}

local DOWN_SHOWN = 100

local PREFIXES = { node = "/node/", status = "/status/node/" }

local watches = {}       -- by kind
local nodes = {}         -- by id: {role, availability, name, status, since}; of one with a record only it counts
local counts = {}        -- role -> status -> how many
local availability = {}  -- "active" and so on -> how many
local names = {}         -- raft id -> name
local lock = async.mutex()

local function add(t, key, n)
  t[key] = (t[key] or 0) + n
end

-- The node in the sums, or (@n -1) out of them again.
local function sum(node, n)
  if not node.role then return end
  counts[node.role] = counts[node.role] or {}
  add(counts[node.role], node.status or "joining", n)
  add(availability, node.availability or "active", n)
end

-- What a changed record says; nil: it is gone. Bytes that are no record change nothing.
local function apply(kind, id, text)
  local record = text and json.decode(text)
  if text and type(record) ~= "table" then return end
  local node = nodes[id] or {}
  sum(node, -1)
  if kind == "node" then
    if node.raft_node_id then names[node.raft_node_id] = nil end
    record = record or {}
    node.role, node.availability, node.name, node.raft_node_id = record.role, record.availability, record.name,
      record.raft_node_id
    if node.raft_node_id then names[node.raft_node_id] = node.name end
  else
    node.status, node.since = record and record.status, record and record.since
  end
  sum(node, 1)
  nodes[id] = (node.role or node.status) and node or nil
end

--- Begins anew at the next scrape.
function M.reset()
  for kind, watch in pairs(watches) do
    watches[kind] = nil
    watch:close()
  end
  nodes, counts, availability, names = {}, {}, {}, {}
end

local function open(kind)
  local prefix = PREFIXES[kind]
  local watch, err = store.watch(prefix, store.revision(), function(failed, events)
    -- The history is gone, or the node was stopped: everything is read again when somebody asks.
    if failed then return M.reset() end
    for _, event in ipairs(events) do
      apply(kind, event.key:sub(#prefix + 1), not event.deleted and event.value or nil)
    end
  end)
  if not watch then return nil, err end
  watches[kind] = watch
  local ok, failed = state.each_raw(prefix, function(kv)
    if watches[kind] == watch then apply(kind, kv.key:sub(#prefix + 1), kv.value) end
  end)
  if not ok then return nil, failed end
  if watches[kind] ~= watch then return nil, errors.new("closed", "it ended while it was read") end
  return true
end

-- True when the sums are those of the state. In a task.
local function follow()
  local _ <close> = lock:lock()
  for kind in pairs(PREFIXES) do
    if not watches[kind] then
      local ok, err = open(kind)
      if not ok then
        M.reset()
        if err.code ~= "closed" then log.warn("metrics: cannot follow the nodes: " .. err.message) end
        return false
      end
    end
  end
  return true
end

--- The name of the manager with this raft id, if the nodes are being followed.
function M.name(raft_id)
  return names[raft_id]
end

local function sorted(t)
  local keys = {}
  for key in pairs(t) do keys[#keys + 1] = key end
  table.sort(keys)
  return keys
end

local function down()
  local family = gauge("symphony_node_down_since_seconds",
    "Nodes that are down: since when, in seconds since 1970; at most 100 of them.")
  local list = {}
  for id, node in pairs(nodes) do
    if node.role and node.status == "down" then list[#list + 1] = id end
  end
  table.sort(list)
  for i = 1, math.min(#list, DOWN_SHOWN) do
    local node = nodes[list[i]]
    family:add(tonumber(node.since) or 0, { node_id = list[i], name = node.name or "", role = node.role })
  end
  return family
end

function M.families()
  if not store.stats() or not follow() then return nil end
  local by_status = gauge("symphony_nodes", "Nodes by role and status, as this manager's state has them.")
  local by_availability = gauge("symphony_nodes_availability", "Nodes by availability.")
  local any_down = 0
  for _, role in ipairs(sorted(counts)) do
    local statuses = counts[role]
    for _, status in ipairs { "joining", "ready", "down", "left" } do statuses[status] = statuses[status] or 0 end
    any_down = any_down + statuses.down
    for _, status in ipairs(sorted(statuses)) do by_status:add(statuses[status], { role = role, status = status }) end
  end
  for _, name in ipairs(sorted(availability)) do by_availability:add(availability[name], { availability = name }) end
  return { by_status, by_availability, any_down > 0 and down() or nil }
end

function M.register()
  metrics.source("nodes", M.families)
end

return M
