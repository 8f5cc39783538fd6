--- What workers say of what they have to do (POST /v1/agent/status), on the leader: each of its own, and of nothing
--- else.
local document = require "symphony.services.document"
local errors = require "symphony.errors"
local events = require "symphony.cluster.events"
local json = require "symphony.json"
local limiter = require "symphony.cluster.limiter"
local resources = require "symphony.services.resources"
local state = require "symphony.cluster.state"
local sys = require "sym.sys"

local M = {}

M.ITEMS_MAX = 32            -- in a report
local MESSAGE_MAX, DETAIL_MAX, FIELD_MAX = 500, 16, 256
local NUMBER_MAX = 1 << 52

-- Of items that write, by the node: a burst, then some a second.
local limit = limiter.new(200, 0.05, 8192)

local function invalid(message)
  errors.raise("invalid", message)
end

local function text(v, name, max)
  if type(v) ~= "string" or #v > max or not utf8.len(v) then
    invalid(("%s is text of at most %d bytes"):format(name, max))
  end
  return v
end

-- A few plain values, for people and programs that look at the resource.
local function check_detail(detail)
  if detail == nil or detail == json.null then return nil end
  if type(detail) ~= "table" or rawlen(detail) > 0 then invalid "detail is an object" end
  local out, count = {}, 0
  for key, v in pairs(detail) do
    count = count + 1
    if count > DETAIL_MAX or type(key) ~= "string" or not key:find("^%l[%w_]*$") or #key > 32 then
      invalid(("detail has at most %d fields"):format(DETAIL_MAX))
    end
    if type(v) == "string" then
      out[key] = text(v, "detail." .. key, FIELD_MAX)
    elseif type(v) == "boolean" or (type(v) == "number" and v == v and math.abs(v) <= NUMBER_MAX) then
      out[key] = v
    else
      invalid("detail holds text, numbers and booleans")
    end
  end
  return next(out) and out or nil
end

--- Hostile JSON to a list of {kind, id, uid, generation, state, message?, detail?}. Raises.
function M.check(fields)
  if type(fields) ~= "table" or type(fields.status) ~= "table" or rawlen(fields.status) == 0 then
    invalid "status is an array of what there is to say"
  end
  local out = {}
  if rawlen(fields.status) > M.ITEMS_MAX then invalid(("at most %d at once"):format(M.ITEMS_MAX)) end
  for i = 1, rawlen(fields.status) do
    local item = fields.status[i]
    if type(item) ~= "table" then invalid "a status is an object" end
    local uid = text(item.uid, "uid", 64)
    if math.type(item.generation) ~= "integer" or item.generation < 0 or item.generation > NUMBER_MAX then
      invalid "generation is a whole number"
    end
    local word = text(item.state, "state", 32)
    if not word:find("^%l[%l%-]*$") then invalid "state is a word" end
    local message = item.message ~= json.null and item.message or nil
    out[i] = { kind = document.check_kind(item.kind), id = document.check_id(item.id), uid = uid,
      generation = item.generation, state = word, message = message and text(message, "message", MESSAGE_MAX),
      detail = check_detail(item.detail) }
  end
  return out
end

local BAD = { failed = "resource.failed" }

-- The txn that takes @item of node @n in; nil: it says nothing new; "gone": it is not that node's any more.
local function item_txn(n, item)
  local assign_key = resources.assign_key(n.node_id, item.kind, item.id)
  local assigned, assign_kv = state.get(assign_key)
  if not assigned or assigned.uid ~= item.uid then return nil, "gone" end
  if item.generation > assigned.generation then
    invalid(("generation %d has not been given to this node"):format(item.generation))
  end
  local key = resources.status_prefix(item.kind, item.id) .. n.node_id
  local old, kv = state.get(key)
  local now = math.floor(sys.now())
  local fresh = { uid = item.uid, generation = item.generation, state = item.state, message = item.message,
    detail = item.detail, since = now }
  if old and old.uid == fresh.uid then
    if old.state == fresh.state and old.generation == fresh.generation then fresh.since = old.since end
    if json.encode(old) == json.encode(fresh) then return nil, "same" end
  end
  if not limit:allow(n.node_id, sys.mono_ms() / 1000) then
    errors.raise("busy", "this node says too much of what it has to do", "say it again in some seconds")
  end
  local txn = { compare = { state.unchanged(assign_kv), kv and state.unchanged(kv) or state.absent(key) },
    ops = { state.put(key, fresh) } }
  local was = old and old.uid == item.uid and old.state or nil
  if item.state ~= was and (BAD[item.state] or (BAD[was or ""] and item.state == "running")) then
    events.add(txn, { kind = BAD[item.state] or "resource.recovered", node = n, resource = item.kind .. "/" .. item.id,
      reason = item.message, message = ("%s %s is %s on %s"):format(item.kind, item.id, item.state, n.name) })
  end
  return txn, "taken"
end

--- On the leader, in a task: what node @n (its record) says, from outside. Returns {gone = {"kind/id", ...}}: of what
--- it speaks that it does not have to do (any more). Raises.
function M.take(n, fields)
  local items, gone = M.check(fields), json.array {}
  for _, item in ipairs(items) do
    local answer = assert(state.update(function() return item_txn(n, item) end))
    if answer == "gone" then gone[#gone + 1] = item.kind .. "/" .. item.id end
  end
  return { gone = gone }
end

return M
