--- The changes that people make to resources (resources.lua), and those that nodes propose: on the leader, past the
--- policies.
local document = require "symphony.services.document"
local errors = require "symphony.errors"
local json = require "symphony.json"
local log = require "sym.log"
local placement = require "symphony.services.placement"
local resources = require "symphony.services.resources"
local schema = require "symphony.services.schema"
local seam = require "symphony.services.seam"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"
local world = require "symphony.services.world"

local M = {}

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
  for name in pairs(document.fields) do given[name] = new[name] == nil and json.null or new[name] end
  document.set_fields(out, given)
  -- What nobody has touched is not looked at again: the service may ask for more by now than it did.
  if json.encode(new.spec == nil and json.null or new.spec) ~= json.encode(doc.spec) then
    out.spec = document.check_spec(doc.kind, new.spec, old and old.spec)
  end
  document.check_size(out)
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

-- The txn that makes @wanted, and what it does.
local function create_txn(admission, wanted, nodes, who)
  local kind, key = wanted.kind, resources.key(wanted.kind, wanted.id)
  if state.text(key) then
    errors.raise("exists", ("there is a %s already"):format(resources.title(wanted)),
      "choose another name, or update it")
  end
  local doc = admit(admission, "put", wanted, nil, nil, who)
  doc.nodes = json.array {}
  local txn, missing, why = { compare = { state.absent(key) }, ops = {} }, 0, nil
  if document.is_placed(kind) then
    local plan = placement.plan(doc, nodes, {}, sys.now(), resources.chooser(doc, nodes))
    for i, id in ipairs(plan.add) do
      doc.nodes[i] = id
      resources.assign(txn, doc, id, doc.spec, doc.generation, doc.created)
    end
    missing, why = plan.missing, plan.why
  end
  table.insert(txn.ops, state.put(key, doc))
  resources.event(txn, "resource.created", doc, resources.title(doc) .. " is made" .. admission:amendments(),
    { policies = admission:policies() })
  admission:bind(txn)
  return txn, { doc = doc, missing = missing, why = why }
end

--- On the leader: makes a resource of @kind. @body, from outside: {id, spec, replicas, constraints, move, move_after,
--- rollout_s}; @opts: plan (only says what would happen). Returns it as get() does. Raises.
function M.serve_create(kind, body, who, opts)
  local wanted = document.new(kind, body, who)
  local nodes, admission = assert(world.load()), seam.admission()
  local function build() return create_txn(admission, wanted, nodes, who) end
  if opts and opts.plan then
    return plan_of(admission, build, function(answer)
      local row = resources.row(answer.doc, {}, nodes)
      row.missing, row.why = answer.missing, answer.why
      return row
    end)
  end
  local answer = carry_out(build, resources.title(wanted))
  log.info(("services: %s is made"):format(resources.title(answer.doc)))
  local row = resources.get(kind, wanted.id)
  row.why, row.policies = answer.missing > 0 and answer.why or nil, admission:policies()
  return row
end

local function changed_fields(old, new)
  local list = {}
  for name in pairs(document.fields) do
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
  document.set_fields(doc, body)
  if body.spec ~= nil then
    if type(body.spec) ~= "table" then errors.raise("invalid", "spec is an object") end
    doc.spec = document.check_spec(old.kind, schema.patch(old.spec, body.spec), old.spec)
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
      document.check_size(doc)
    else
      for _, id in ipairs(doc.nodes) do
        if state.text("/node/" .. id) then resources.assign(txn, doc, id, doc.spec, doc.generation, now) end
      end
    end
  end
  table.insert(txn.ops, state.put(kv.key, doc))
  return txn
end

--- On the leader: changes a resource. @body, from outside: what of the document is another, and of spec which fields
--- (null: its default); generation: only if that is still the one. @opts: plan. Returns it, with changes. Raises.
function M.serve_update(kind, id, body, who, opts)
  document.service_of(kind)
  local admission = seam.admission()
  local function build()
    local old, kv = resources.existing(kind, id)
    if body.generation ~= nil and body.generation ~= old.generation then
      errors.raise("conflict", ("%s is of generation %d"):format(resources.title(old), old.generation),
        "look at it again")
    end
    local doc, list, new_spec = changed(admission, old, body, who, kv)
    if #list == 0 then return nil, { changes = list, doc = old } end
    local txn = update_txn(kv, old, doc, new_spec, math.floor(sys.now()))
    resources.event(txn, "resource.updated", doc, ("%s: %s%s"):format(resources.title(doc), table.concat(list, ", "),
      admission:amendments()), { policies = admission:policies() })
    admission:bind(txn)
    return txn, { changes = list, doc = doc }
  end
  if opts and opts.plan then
    local nodes = assert(world.load())
    return plan_of(admission, build, function(answer)
      local row = resources.row(answer.doc, resources.states(answer.doc), nodes)
      row.changes = json.array(answer.changes)
      return row
    end)
  end
  local answer = carry_out(build, ("%s %s"):format(kind, id))
  local row = resources.get(kind, id)
  row.changes, row.policies = json.array(answer.changes), #answer.changes > 0 and admission:policies() or nil
  return row
end

--- On the leader: takes a resource out, with all that nodes have to do for it. Returns {kind, id, uid}. Raises.
function M.serve_remove(kind, id, who, opts)
  local admission = seam.admission()
  local function build()
    local doc, kv = resources.existing(kind, id)
    admit(admission, "delete", nil, doc, kv, who)
    local txn = { compare = { state.unchanged(kv) }, ops = { state.delete(kv.key) } }
    for _, node in ipairs(doc.nodes) do table.insert(txn.ops, state.delete(resources.assign_key(node, kind, id))) end
    resources.event(txn, "resource.removed", doc, resources.title(doc) .. " is removed",
      { policies = admission:policies() })
    admission:bind(txn)
    return txn, { kind = kind, id = id, uid = doc.uid }
  end
  if opts and opts.plan then return plan_of(admission, build, function(answer) return answer end) end
  local answer = carry_out(build, ("the removal of %s %s"):format(kind, id))
  answer.policies = admission:policies()
  log.info(("services: %s %s is removed"):format(kind, id))
  return answer
end

--- On the leader: node @n (its record) asks for a change of what the service keeps in a resource that it has. @body,
--- from outside: {kind, id, uid, name, body}. Returns {data}. Raises.
function M.serve_proposal(n, body)
  local kind, id = document.check_kind(body.kind), document.check_id(body.id)
  local service = document.service_of(kind)
  local fn = type(body.name) == "string" and (service.proposals or {})[body.name]
  if not fn then errors.raise("not_found", ("%s has no such proposal"):format(service.kind)) end
  local given = body.body ~= json.null and body.body or {}
  if type(given) ~= "table" then errors.raise("invalid", "body is an object") end
  local nodes = assert(world.load())
  return assert(state.update(function()
    local doc, kv = state.get(resources.key(kind, id))
    local assigned, assign_kv = state.get(resources.assign_key(n.node_id, kind, id))
    if not doc or not assigned or doc.uid ~= body.uid or assigned.uid ~= body.uid then
      errors.raise("denied", ("%s %s is not this node's to change"):format(kind, id))
    end
    local ctx = resources.surroundings(resources.states(doc), nodes)
    ctx.node_id = n.node_id
    local data, text = fn(doc, ctx, given)
    if data == nil then error(errors.from(text or errors.new("conflict", "the proposal is refused")), 0) end
    local txn = resources.data_txn(doc, kv, data, text)
    if not txn then return nil, { data = data } end
    -- What is proposed counts only as long as it is this node's.
    table.insert(txn.compare, state.unchanged(assign_kv))
    return txn, { data = data }
  end))
end

return M
