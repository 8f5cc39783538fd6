--- The resources of services in the state.
---   /res/<kind>/<id>                {kind, id, uid, service, generation, replicas, constraints, spec, nodes, move,
---                                   move_after, rollout, stable, data, created, updated, by}
---   /assign/<node>/<kind>/<id>      {kind, id, uid, generation, spec, data, since}: what that node has to do
---   /status/res/<kind>/<id>/<node>  {uid, generation, state, message, detail, since}: what it says of that
--- uid tells a resource from one of the same name before it; generation counts its specs.
local document = require "symphony.services.document"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local json = require "symphony.json"
local log = require "sym.log"
local placement = require "symphony.services.placement"
local registry = require "symphony.services.registry"
local seam = require "symphony.services.seam"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"

local M = {}

local SHOWN_MAX = 500 -- candidates, of whom a policy or a service chooses

-- Keys ---------------------------------------------------------------------------------------------------------------

function M.key(kind, id) return ("/res/%s/%s"):format(kind, id) end
function M.assign_key(node, kind, id) return ("/assign/%s/%s/%s"):format(node, kind, id) end
function M.status_prefix(kind, id) return ("/status/res/%s/%s/"):format(kind, id) end

--- "jar figs".
function M.title(doc)
  return ("%s %s"):format(doc.kind, doc.id)
end

--- Adds to @txn the event @kind about @doc; @more: further fields of it.
function M.event(txn, kind, doc, message, more)
  local fields = { kind = kind, message = message, resource = doc.kind .. "/" .. doc.id }
  for k, v in pairs(more or {}) do fields[k] = v end
  events.add(txn, fields)
end

-- Placing ------------------------------------------------------------------------------------------------------------

--- A function that puts the candidates for @doc in order, best first: what a policy says, then what the service says,
--- then those with least to do. In a task.
function M.chooser(doc, nodes)
  return function(list, want)
    local function shown(also)
      local out = json.array {}
      local function show(n)
        out[#out + 1] = { node_id = n.node_id, name = n.name, labels = n.labels, services = n.services, load = n.load }
      end
      for i, n in ipairs(placement.order(list)) do
        if i <= SHOWN_MAX then show(n) end
      end
      for _, id in ipairs(also or {}) do
        if nodes[id] then show(nodes[id]) end
      end
      return out
    end
    -- Where it is now counts for who wants to spread it.
    local prefer = seam.place(doc.kind, { resource = doc, candidates = shown(doc.nodes), want = doc.replicas,
      current = json.array(doc.nodes or {}) })
    local place = registry.field(doc.kind, "place")
    if not prefer and place then
      local ok, answer = pcall(place, doc, shown(), { want = want, nodes = nodes })
      if ok then
        prefer = type(answer) == "table" and answer or nil
      else
        log.error(("services: place of %s: %s"):format(doc.kind, tostring(errors.from(answer).message)))
      end
    end
    return placement.order(list, prefer)
  end
end

--- Adds to @txn what gives @doc, with @spec of @generation, to node @id: its assignment, and that the node is as it was
--- when it was chosen.
function M.assign(txn, doc, id, spec, generation, now)
  local n, kv = state.get("/node/" .. id)
  if not n then errors.raise("conflict", "a node that was chosen is gone", "say it again") end
  table.insert(txn.compare, state.unchanged(kv))
  table.insert(txn.ops, state.put(M.assign_key(id, doc.kind, doc.id), { kind = doc.kind, id = doc.id, uid = doc.uid,
    generation = generation, spec = spec, data = doc.data, since = now }))
end

-- What a service's functions on the leader are told beside the document.
function M.surroundings(states, nodes)
  return { nodes = nodes, states = states, now = sys.now() }
end

--- The txn that makes @data what the service keeps in @doc, for all of its nodes; nil when it is so. @text: for an
--- event, or nil. Raises.
function M.data_txn(doc, kv, data, text)
  if type(data) ~= "table" then errors.raise("invalid", "data is a table") end
  if json.encode(data) == json.encode(doc.data == nil and json.null or doc.data) then return nil end
  local fresh, txn = {}, { compare = { state.unchanged(kv) }, ops = {} }
  for k, v in pairs(doc) do fresh[k] = v end
  fresh.data = data
  document.check_size(fresh)
  table.insert(txn.ops, state.put(kv.key, fresh))
  for _, id in ipairs(doc.nodes) do
    local assigned, assign_kv = state.get(M.assign_key(id, doc.kind, doc.id))
    if assigned then
      assigned.data = data
      table.insert(txn.compare, state.unchanged(assign_kv))
      table.insert(txn.ops, state.put(assign_kv.key, assigned))
    end
  end
  if text then M.event(txn, "resource.changed", doc, tostring(text)) end
  return txn
end

-- Reading ------------------------------------------------------------------------------------------------------------

--- The document of a resource, and its kv, from local state. Raises.
function M.existing(kind, id)
  local key = M.key(document.check_kind(kind), document.check_id(id))
  local doc, kv = state.get(key)
  if doc then return doc, kv end
  if kv then error(kv, 0) end
  errors.raise("not_found", ("there is no %s %s"):format(kind, id))
end

--- What owners say of @doc: node id -> status, of this resource and not of one of the same name before it.
function M.states(doc)
  local out, prefix = {}, M.status_prefix(doc.kind, doc.id)
  for _, kv in ipairs(assert(state.list_raw(prefix))) do
    local status = json.decode(kv.value)
    if type(status) == "table" and status.uid == doc.uid then out[kv.key:sub(#prefix + 1)] = status end
  end
  return out
end

--- @doc as people and programs see it. @states: see M.states; @nodes: by id: {name, status}.
function M.row(doc, states, nodes)
  local row = { kind = doc.kind, id = doc.id, uid = doc.uid, service = doc.service, generation = doc.generation,
    replicas = doc.replicas, constraints = doc.constraints, spec = doc.spec, move = doc.move, created = doc.created,
    updated = doc.updated, by = doc.by, data = doc.data, move_after = doc.move_after, rollout_s = doc.rollout_s,
    rollout = doc.rollout,
    nodes = json.array {}, running = 0 }
  for i, id in ipairs(doc.nodes) do
    local n, said = nodes[id] or {}, states[id]
    local current = said and (n.status == "ready" and said.state or "unknown") or "assigned"
    row.nodes[i] = { node_id = id, name = n.name, node_status = n.status or "gone", state = current,
      generation = said and said.generation or nil, message = said and said.message or nil,
      detail = said and said.detail or nil, since = said and said.since or nil }
    if current == "running" then row.running = row.running + 1 end
  end
  row.missing = math.max(0, (doc.replicas or 0) - #doc.nodes)
  return row
end

-- What is needed to show @doc: its nodes, by id.
local function nodes_of(doc, cache)
  for _, id in ipairs(doc.nodes) do
    if cache[id] == nil then
      local n = state.get("/node/" .. id)
      local said = state.get("/status/node/" .. id)
      cache[id] = n and { name = n.name, status = said and said.status or "joining" } or false
    end
  end
  return setmetatable({}, { __index = function(_, id) return cache[id] or nil end })
end

--- The resource, from local state. Raises.
function M.get(kind, id)
  local doc = M.existing(kind, id)
  return M.row(doc, M.states(doc), nodes_of(doc, {}))
end

--- All of @kind, in the order of their names, from local state. In a task. Raises.
function M.list(kind)
  local out, cache = json.array {}, {}
  local known = registry.of(document.check_kind(kind)) ~= nil
  assert(state.each(("/res/%s/"):format(kind), function(kv)
    local doc = kv.value
    out[#out + 1] = M.row(doc, M.states(doc), nodes_of(doc, cache))
  end))
  if #out == 0 and not known then document.service_of(kind) end
  return out
end

--- The kinds that there are: those of services that are known here, and those of which there are resources.
function M.kinds()
  local out, seen = json.array {}, {}
  for _, row in ipairs(registry.list()) do
    for kind, resource in pairs(row.module.resources) do
      seen[kind] = { kind = kind, service = row.module.kind, summary = resource.summary or row.module.summary }
    end
  end
  local after = nil
  while true do
    local rows = assert(state.list_raw("/res/", { after = after, limit = 1 }))
    if not rows[1] then break end
    local kind = rows[1].key:match("^/res/([^/]+)/")
    seen[kind] = seen[kind] or { kind = kind }
    after = ("/res/%s/\255"):format(kind)
  end
  for _, row in pairs(seen) do out[#out + 1] = row end
  table.sort(out, function(a, b) return a.kind < b.kind end)
  return out
end

return M
