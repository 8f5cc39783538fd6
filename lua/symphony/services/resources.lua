--- The resources of services in the state, and the changes that people make to them.
---   /res/<kind>/<id>                {kind, id, uid, service, generation, replicas, constraints, spec, nodes, move,
---                                   move_after, rollout, stable, data, created, updated, by}
---   /assign/<node>/<kind>/<id>      {kind, id, uid, generation, spec, data, since}: what that node has to do
---   /status/res/<kind>/<id>/<node>  {uid, generation, state, message, detail, since}: what it says of that
--- uid tells a resource from one of the same name before it; generation counts its specs.
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local json = require "symphony.json"
local log = require "sym.log"
local placement = require "symphony.services.placement"
local registry = require "symphony.services.registry"
local schema = require "symphony.services.schema"
local seam = require "symphony.services.seam"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"
local values = require "symphony.cluster.values"
local world = require "symphony.services.world"

local M = {}

M.REPLICAS_MAX = 32 -- each takes an operation and a compare of a txn, which has 128
local ID_MAX = 63
local DOC_MAX = 128 * 1024
local TOLD_MAX = 640 * 1024 -- to twice as many nodes as it has, while it moves, and still in a txn of 1.5 MiB
local SECONDS_MAX = 7 * 86400
local SHOWN_MAX = 500 -- candidates, of whom a policy or a service chooses
local KIND = "^%l[%l%d%-]*$"

-- Keys ---------------------------------------------------------------------------------------------------------------

function M.key(kind, id) return ("/res/%s/%s"):format(kind, id) end
function M.assign_key(node, kind, id) return ("/assign/%s/%s/%s"):format(node, kind, id) end
function M.status_prefix(kind, id) return ("/status/res/%s/%s/"):format(kind, id) end

--- A kind as it may come from outside. Raises.
function M.check_kind(kind)
  if type(kind) ~= "string" or #kind > 32 or not kind:find(KIND) then
    errors.raise("invalid", "a kind of resource is 1 to 32 of a-z, 0-9 and -, beginning with a letter")
  end
  return kind
end

function M.check_id(id)
  if type(id) ~= "string" or #id > ID_MAX or not id:find("^%w[%w%._%-]*$") then
    errors.raise("invalid", ("a resource's name is 1 to %d letters, digits, dots, dashes and underscores, beginning "
      .. "with a letter or digit"):format(ID_MAX))
  end
  return id
end

local function service_of(kind)
  local service, resource = registry.of(M.check_kind(kind))
  if not service then
    errors.raise("not_found", ("no service here has resources of the kind \"%s\""):format(kind),
      "the leader has to have it, in a --lua-dir of its own; `symphony reload` there tells what it has")
  end
  return service, resource
end

-- Documents ----------------------------------------------------------------------------------------------------------

local function whole(v, what, min, max)
  if math.type(v) ~= "integer" or v < min or v > max then
    errors.raise("invalid", ("%s is a whole number from %d to %d"):format(what, min, max))
  end
  return v
end

-- What of a document people may set, and how it is checked.
local FIELDS = {
  replicas = function(v) return whole(v, "replicas", 0, M.REPLICAS_MAX) end,
  constraints = function(v)
    local ok, err = values.check_labels(v)
    if not ok then error(err, 0) end
    return v
  end,
  move = function(v)
    if v ~= "stop-first" and v ~= "start-first" then
      errors.raise("invalid", "move is stop-first or start-first")
    end
    return v
  end,
  move_after = function(v) return whole(v, "move_after", 0, SECONDS_MAX) end,
  rollout_s = function(v) return whole(v, "rollout_s", 1, SECONDS_MAX) end,
}

-- Sets what @body names on @doc. Raises.
local function set_fields(doc, body)
  for name, v in pairs(body) do
    local check = FIELDS[name]
    if check then
      if v == json.null then doc[name] = nil else doc[name] = check(v) end
    elseif name ~= "spec" and name ~= "id" and name ~= "generation" then
      errors.raise("invalid", ("a resource has no field \"%s\" that could be set"):format(
        json.clean(tostring(name):sub(1, 40))), "spec, replicas, constraints, move, move_after and rollout_s can be")
    end
  end
end

-- @spec as its service wants it. Raises.
local function check_spec(kind, spec, old)
  local checked, err = schema.check(registry.field(kind, "schema") or {}, spec)
  if not checked then error(err, 0) end
  local validate = registry.field(kind, "validate")
  if validate then
    local ok, why = validate(checked, old)
    if not ok then
      if errors.is(why) then error(why, 0) end
      errors.raise("invalid", tostring(why or "this spec is not possible"))
    end
  end
  return checked
end

-- @doc is as it will be stored. A rolling update keeps the spec of before beside the new one: there has to be room for
-- both. And one txn may have to tell all of its nodes. Raises.
local function check_size(doc)
  local spec, whole = #json.encode(doc.spec), #json.encode(doc)
  if doc.update == "rolling" and not doc.stable then whole = whole + spec end
  if whole > DOC_MAX then
    errors.raise("too_big", "a resource takes at most 128 KiB, with two of its specs where updates are rolling")
  end
  local data = doc.data ~= nil and #json.encode(doc.data) or 0
  if (spec + data) * (doc.replicas or 0) > TOLD_MAX then
    errors.raise("too_big", "what all nodes of a resource have to be told takes at most 640 KiB")
  end
end

local function is_placed(kind)
  return registry.field(kind, "placed") ~= false
end

-- @doc as policies amend it; they may change what people may set, and no more. @old: before, or nil. Raises.
local function admit(admission, action, doc, old, kv, who)
  admission:begin()
  local input = admission:decide("admit.change", { kind = (doc or old).kind, key = (doc or old).id, action = action,
    old = old, new = doc and json.decode(json.encode(doc)), old_revision = kv and kv.mod_revision or 0, who = who })
  if not doc then return nil end
  local new = input.new
  if type(new) ~= "table" then
    errors.raise("policy_failed", "a policy made something else of the resource than a document")
  end
  local out, given = {}, {}
  for k, v in pairs(doc) do out[k] = v end
  for name in pairs(FIELDS) do given[name] = new[name] == nil and json.null or new[name] end
  set_fields(out, given)
  -- What nobody has touched is not looked at again: the service may ask for more by now than it did.
  if json.encode(new.spec == nil and json.null or new.spec) ~= json.encode(doc.spec) then
    out.spec = check_spec(doc.kind, new.spec, old and old.spec)
  end
  check_size(out)
  return out
end

-- state.update, which tells when a policy has refused @what. Raises.
local function carry_out(build, what)
  local answer, err = state.update(build)
  if answer then return answer end
  seam.note_refusal(err, what)
  error(err, 0)
end

-- What a change would be: the row that show() makes, or who refuses it. @build as for state.update.
local function plan_of(admission, build, show)
  admission.dry = true
  assert(state.read())
  local ok, _, answer = pcall(build)
  if not ok then
    if not errors.is(_) or _.code == "internal" then error(_, 0) end
    return { plan = true, allow = false, refuse = _.message, code = _.code, policy = _.policy,
      policies = admission.trace }
  end
  local row = show(answer)
  row.plan, row.allow, row.policies = true, true, admission.trace
  return row
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
  check_size(fresh)
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

--- On the leader: node @n (its record) asks for a change of what the service keeps in a resource that it has. @body,
--- from outside: {kind, id, uid, name, body}. Returns {data}. Raises.
function M.serve_proposal(n, body)
  local kind, id = M.check_kind(body.kind), M.check_id(body.id)
  local service = service_of(kind)
  local fn = type(body.name) == "string" and (service.proposals or {})[body.name]
  if not fn then errors.raise("not_found", ("%s has no such proposal"):format(service.kind)) end
  local given = body.body ~= json.null and body.body or {}
  if type(given) ~= "table" then errors.raise("invalid", "body is an object") end
  local nodes = assert(world.load())
  return assert(state.update(function()
    local doc, kv = state.get(M.key(kind, id))
    local assigned, assign_kv = state.get(M.assign_key(n.node_id, kind, id))
    if not doc or not assigned or doc.uid ~= body.uid or assigned.uid ~= body.uid then
      errors.raise("denied", ("%s %s is not this node's to change"):format(kind, id))
    end
    local ctx = M.surroundings(M.states(doc), nodes)
    ctx.node_id = n.node_id
    local data, text = fn(doc, ctx, given)
    if data == nil then error(errors.from(text or errors.new("conflict", "the proposal is refused")), 0) end
    local txn = M.data_txn(doc, kv, data, text)
    if not txn then return nil, { data = data } end
    -- What is proposed counts only as long as it is this node's.
    table.insert(txn.compare, state.unchanged(assign_kv))
    return txn, { data = data }
  end))
end

-- Changing -----------------------------------------------------------------------------------------------------------

local function title(doc)
  return ("%s %s"):format(doc.kind, doc.id)
end
M.title = title

function M.event(txn, kind, doc, message, more)
  local fields = { kind = kind, message = message, resource = doc.kind .. "/" .. doc.id }
  for k, v in pairs(more or {}) do fields[k] = v end
  events.add(txn, fields)
end
local event = M.event

local function new_doc(kind, body, who)
  local service = service_of(kind)
  local now = math.floor(sys.now())
  local doc = { kind = kind, id = M.check_id(body.id), uid = crypto.hex(crypto.random(8)), service = service.kind,
    generation = 1, nodes = json.array {}, created = now, updated = now, by = who.name,
    update = registry.field(kind, "rollout") or "all", move = registry.field(kind, "move") or "stop-first" }
  if is_placed(kind) then doc.replicas, doc.constraints = 1, {} end
  set_fields(doc, body)
  doc.spec = check_spec(kind, body.spec == nil and {} or body.spec)
  check_size(doc)
  return doc
end

-- The txn that makes @wanted, and what it does.
local function create_txn(admission, wanted, nodes, who)
  local kind, key = wanted.kind, M.key(wanted.kind, wanted.id)
  if state.text(key) then
    errors.raise("exists", ("there is a %s already"):format(title(wanted)), "choose another name, or update it")
  end
  local doc = admit(admission, "put", wanted, nil, nil, who)
  doc.nodes = json.array {}
  local txn, missing, why = { compare = { state.absent(key) }, ops = {} }, 0, nil
  if is_placed(kind) then
    local plan = placement.plan(doc, nodes, {}, sys.now(), M.chooser(doc, nodes))
    for i, id in ipairs(plan.add) do
      doc.nodes[i] = id
      M.assign(txn, doc, id, doc.spec, doc.generation, doc.created)
    end
    missing, why = plan.missing, plan.why
  end
  table.insert(txn.ops, state.put(key, doc))
  event(txn, "resource.created", doc, title(doc) .. " is made" .. admission:amendments(),
    { policies = admission:policies() })
  admission:bind(txn)
  return txn, { doc = doc, missing = missing, why = why }
end

--- On the leader: makes a resource of @kind. @body, from outside: {id, spec, replicas, constraints, move, move_after,
--- rollout_s}; @opts: plan (only says what would happen). Returns it as get() does. Raises.
function M.serve_create(kind, body, who, opts)
  local wanted = new_doc(kind, body, who)
  local nodes, admission = assert(world.load()), seam.admission()
  local function build() return create_txn(admission, wanted, nodes, who) end
  if opts and opts.plan then
    return plan_of(admission, build, function(answer)
      local row = M.row(answer.doc, {}, nodes)
      row.missing, row.why = answer.missing, answer.why
      return row
    end)
  end
  local answer = carry_out(build, title(wanted))
  log.info(("services: %s is made"):format(title(answer.doc)))
  local row = M.get(kind, wanted.id)
  row.why, row.policies = answer.missing > 0 and answer.why or nil, admission:policies()
  return row
end

local function changed_fields(old, new)
  local list = {}
  for name in pairs(FIELDS) do
    if json.encode(old[name] == nil and json.null or old[name])
      ~= json.encode(new[name] == nil and json.null or new[name]) then list[#list + 1] = name end
  end
  table.sort(list)
  return list
end

-- What @body makes of @old: the new document, what is another than before, in words, and whether the spec is.
local function changed(admission, old, body, who, kv)
  local doc = {}
  for k, v in pairs(old) do doc[k] = v end
  set_fields(doc, body)
  if body.spec ~= nil then
    if type(body.spec) ~= "table" then errors.raise("invalid", "spec is an object") end
    doc.spec = check_spec(old.kind, schema.patch(old.spec, body.spec), old.spec)
  end
  local admitted = admit(admission, "put", doc, old, kv, who)
  local list = changed_fields(old, admitted)
  local same_spec = json.encode(old.spec) == json.encode(admitted.spec)
  if not same_spec then table.insert(list, 1, "spec") end
  return admitted, list, not same_spec
end

-- The txn of a changed document. A new spec goes to all nodes in it, or from one to the next by and by (loop.lua).
local function update_txn(kv, old, doc, new_spec, now)
  local txn = { compare = { state.unchanged(kv) }, ops = {} }
  doc.updated = now
  if new_spec then
    doc.generation = old.generation + 1
    if old.update == "rolling" and #old.nodes > 0 then
      if not old.rollout or old.rollout.state ~= "rolling" and old.rollout.state ~= "stopped" then
        doc.stable = { spec = old.spec, generation = old.generation }
      end
      doc.rollout = { state = "rolling", since = now }
      check_size(doc)
    else
      for _, id in ipairs(doc.nodes) do
        if state.text("/node/" .. id) then M.assign(txn, doc, id, doc.spec, doc.generation, now) end
      end
    end
  end
  table.insert(txn.ops, state.put(kv.key, doc))
  return txn
end

local function existing(kind, id)
  local key = M.key(M.check_kind(kind), M.check_id(id))
  local doc, kv = state.get(key)
  if doc then return doc, kv end
  if kv then error(kv, 0) end
  errors.raise("not_found", ("there is no %s %s"):format(kind, id))
end

--- On the leader: changes a resource. @body, from outside: what of the document is another, and of spec which fields
--- (null: its default); generation: only if that is still the one. @opts: plan. Returns it, with changes. Raises.
function M.serve_update(kind, id, body, who, opts)
  service_of(kind)
  local admission = seam.admission()
  local function build()
    local old, kv = existing(kind, id)
    if body.generation ~= nil and body.generation ~= old.generation then
      errors.raise("conflict", ("%s is of generation %d"):format(title(old), old.generation), "look at it again")
    end
    local doc, list, new_spec = changed(admission, old, body, who, kv)
    if #list == 0 then return nil, { changes = list, doc = old } end
    local txn = update_txn(kv, old, doc, new_spec, math.floor(sys.now()))
    event(txn, "resource.updated", doc, ("%s: %s%s"):format(title(doc), table.concat(list, ", "),
      admission:amendments()), { policies = admission:policies() })
    admission:bind(txn)
    return txn, { changes = list, doc = doc }
  end
  if opts and opts.plan then
    local nodes = assert(world.load())
    return plan_of(admission, build, function(answer)
      local row = M.row(answer.doc, M.states(answer.doc), nodes)
      row.changes = json.array(answer.changes)
      return row
    end)
  end
  local answer = carry_out(build, ("%s %s"):format(kind, id))
  local row = M.get(kind, id)
  row.changes, row.policies = json.array(answer.changes), #answer.changes > 0 and admission:policies() or nil
  return row
end

--- On the leader: takes a resource out, with all that nodes have to do for it. Returns {kind, id, uid}. Raises.
function M.serve_remove(kind, id, who, opts)
  local admission = seam.admission()
  local function build()
    local doc, kv = existing(kind, id)
    admit(admission, "delete", nil, doc, kv, who)
    local txn = { compare = { state.unchanged(kv) }, ops = { state.delete(kv.key) } }
    for _, node in ipairs(doc.nodes) do table.insert(txn.ops, state.delete(M.assign_key(node, kind, id))) end
    event(txn, "resource.removed", doc, title(doc) .. " is removed", { policies = admission:policies() })
    admission:bind(txn)
    return txn, { kind = kind, id = id, uid = doc.uid }
  end
  if opts and opts.plan then return plan_of(admission, build, function(answer) return answer end) end
  local answer = carry_out(build, ("the removal of %s %s"):format(kind, id))
  answer.policies = admission:policies()
  log.info(("services: %s %s is removed"):format(kind, id))
  return answer
end

-- Reading ------------------------------------------------------------------------------------------------------------

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
  local doc = existing(kind, id)
  return M.row(doc, M.states(doc), nodes_of(doc, {}))
end

--- All of @kind, in the order of their names, from local state. In a task. Raises.
function M.list(kind)
  local out, cache = json.array {}, {}
  local known = registry.of(M.check_kind(kind)) ~= nil
  assert(state.each(("/res/%s/"):format(kind), function(kv)
    local doc = kv.value
    out[#out + 1] = M.row(doc, M.states(doc), nodes_of(doc, cache))
  end))
  if #out == 0 and not known then service_of(kind) end
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
