--- The document of a resource: what people may say in it, and how it is checked, by its service too. What is not right
--- is raised.
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local json = require "symphony.json"
local registry = require "symphony.services.registry"
local schema = require "symphony.services.schema"
local sys = require "sym.sys"
local values = require "symphony.cluster.values"

local M = {}

local REPLICAS_MAX = 32 -- each takes an operation and a compare of a txn, which has 128
local ID_MAX = 63
local DOC_MAX = 128 * 1024
local TOLD_MAX = 640 * 1024 -- to twice as many nodes as it has, while it moves, and still in a txn of 1.5 MiB
local SECONDS_MAX = 7 * 86400
local KIND = "^%l[%l%d%-]*$"

--- A kind as it may come from outside.
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

--- The service of resources of @kind, and what it says of that kind.
function M.service_of(kind)
  local service, resource = registry.of(M.check_kind(kind))
  if not service then
    errors.raise("not_found", ("no service here has resources of the kind \"%s\""):format(kind),
      "the leader has to have it, in a --lua-dir of its own; `symphony reload` there tells what it has")
  end
  return service, resource
end

local function whole(v, what, min, max)
  if math.type(v) ~= "integer" or v < min or v > max then
    errors.raise("invalid", ("%s is a whole number from %d to %d"):format(what, min, max))
  end
  return v
end

--- What of a document people may set: name -> function(value) -> it.
M.fields = {
  replicas = function(v) return whole(v, "replicas", 0, REPLICAS_MAX) end,
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

-- What a field of @doc is that nobody has set: without replicas nothing would place it.
local function default(doc, name)
  if name == "move" then return registry.field(doc.kind, "move") or "stop-first" end
  if not M.is_placed(doc.kind) then return nil end
  return name == "replicas" and 1 or name == "constraints" and {} or nil
end

--- Sets what @body names on @doc; null: as if nobody had.
function M.set_fields(doc, body)
  for name, v in pairs(body) do
    local check = M.fields[name]
    if check and v ~= json.null and name ~= "move" and not M.is_placed(doc.kind) then
      errors.raise("invalid", ("a %s is no node's work: it has no %s"):format(doc.kind, name))
    elseif check then
      if v == json.null then doc[name] = default(doc, name) else doc[name] = check(v) end
    elseif name ~= "spec" and name ~= "id" and name ~= "generation" then
      errors.raise("invalid", ("a resource has no field \"%s\" that could be set"):format(
        json.clean(tostring(name):sub(1, 40))), "spec, replicas, constraints, move, move_after and rollout_s can be")
    end
  end
end

--- @spec as its service wants it; @old: the one before, or nil.
function M.check_spec(kind, spec, old)
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

--- @doc is as it will be stored. A rolling update keeps the spec of before beside the new one: there has to be room for
--- both. And one txn may have to tell all of its nodes.
function M.check_size(doc)
  local spec, stored = #json.encode(doc.spec), #json.encode(doc)
  if doc.update == "rolling" and not doc.stable then stored = stored + spec end
  if stored > DOC_MAX then
    errors.raise("too_big", "a resource takes at most 128 KiB, with two of its specs where updates are rolling")
  end
  local data = doc.data ~= nil and #json.encode(doc.data) or 0
  if (spec + data) * (doc.replicas or 0) > TOLD_MAX then
    errors.raise("too_big", "what all nodes of a resource have to be told takes at most 640 KiB")
  end
end

--- Are resources of @kind some nodes' work?
function M.is_placed(kind)
  return registry.field(kind, "placed") ~= false
end

--- What @body, from outside, makes of a new resource of @kind.
function M.new(kind, body, who)
  local service = M.service_of(kind)
  local now = math.floor(sys.now())
  local doc = { kind = kind, id = M.check_id(body.id), uid = crypto.hex(crypto.random(8)), service = service.kind,
    generation = 1, nodes = json.array {}, created = now, updated = now, by = who.name,
    update = registry.field(kind, "rollout") or "all", move = registry.field(kind, "move") or "stop-first" }
  if M.is_placed(kind) then doc.replicas, doc.constraints = 1, {} end
  M.set_fields(doc, body)
  doc.spec = M.check_spec(kind, body.spec == nil and {} or body.spec)
  M.check_size(doc)
  return doc
end

return M
