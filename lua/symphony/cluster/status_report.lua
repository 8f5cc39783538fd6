-- What a node says of itself (POST /v1/agent/report), checked and set against what is recorded. Pure.
local address = require "symphony.cluster.address"
local core = require "symphony.cluster.status_core"
local errors = require "symphony.errors"
local json = require "symphony.json"

local M = {}

local SERVICES_MAX = 16
local STARTS_MAX = 1 << 53

local function invalid(message)
  return nil, errors.new("invalid", message)
end

--- The services of a worker, hostile: names in order, none twice; nil, err.
function M.check_services(list)
  if type(list) ~= "table" or rawlen(list) > SERVICES_MAX then
    return invalid(("services is an array of at most %d names"):format(SERVICES_MAX))
  end
  local out, seen = json.array {}, {}
  for k in pairs(list) do
    local name = math.type(k) == "integer" and list[k] or nil
    if type(name) ~= "string" or #name > 32 or not name:match("^%l[%l%d%-]*$") then
      return invalid("a service's name is 1 to 32 of a-z, 0-9 and -, beginning with a letter")
    end
    if not seen[name] then out[#out + 1] = name end
    seen[name] = true
  end
  table.sort(out)
  return out
end

local function check_addresses(addresses)
  if type(addresses) ~= "table" then return invalid("addresses is an object") end
  local out = {}
  for _, kind in ipairs { "remote", "gossip" } do
    local text = addresses[kind]
    if text ~= nil and text ~= json.null then
      local host, err = address.parse(text)
      if not host then return nil, err end
      out[kind] = text
    end
  end
  return out
end

local optional = {
  version = function(v)
    if type(v) ~= "string" or #v == 0 or #v > 64 or v:find("[^\x21-\x7e]") then
      return invalid("version is no version")
    end
    return v
  end,
  services = M.check_services,
  addresses = check_addresses,
  trust = function(v)
    if math.type(v) ~= "integer" or v < 0 or v > STARTS_MAX then return invalid("trust is no generation") end
    return v
  end,
}

--- Hostile JSON to {status = "ready"|"left", starts, instance, version?, services?, addresses?, trust?}; nil, err.
function M.check(fields)
  if type(fields) ~= "table" then return invalid("the report is not a JSON object") end
  if fields.status ~= "ready" and fields.status ~= "left" then return invalid("status must be ready or left") end
  local starts, instance = fields.starts, fields.instance
  if math.type(starts) ~= "integer" or starts < 0 or starts > STARTS_MAX then
    return invalid("starts is no count of starts")
  end
  if type(instance) ~= "string" or #instance > 64 or not instance:match("^%x+$") then
    return invalid("instance is 1 to 64 hex digits")
  end
  local out = { status = fields.status, starts = starts, instance = instance }
  for name, check in pairs(optional) do
    local given = fields[name]
    if given ~= nil and given ~= json.null then
      local value, err = check(given)
      if value == nil then return nil, err end
      out[name] = value
    end
  end
  return out
end

local COPY_HINT = "keep one of the two folders and wipe the other; a node joins with a folder of its own"

-- @copied marks what is told as an event.
local function copied(message, hint)
  local err = errors.new("conflict", message, hint or COPY_HINT)
  err.copied = true
  return err
end

--- Does the process that reports (@r, from check) go on with what @record, the node's status or nil, says of its last
--- one? true; nil, err ("conflict").
function M.check_start(record, r, name)
  local starts = record and record.starts
  if not starts or r.starts > starts then return true end
  if r.starts < starts then
    return nil, copied(("this folder is an older copy of that of %s: it says start %d, and start %d has been here "
      .. "already"):format(name, r.starts, starts))
  end
  if record.instance == r.instance then return true end
  return nil, copied(("another process has been %s since start %d: its folder was copied, or put back from a copy")
    :format(name, starts))
end

--- The address at which an earlier process of @node may still be running, when @r comes from another one: nil if there
--- is none to be asked.
function M.other_address(node, record, r)
  local now = r.addresses and r.addresses.remote
  local started = record and record.status == "ready" and record.starts and r.starts > record.starts
  return started and r.status == "ready" and now and now ~= node.remote_address and node.remote_address or nil
end

--- The error for a node whose earlier process still answers at @other.
function M.copy(name, other)
  return copied(("%s is running at %s: this folder is a copy of its folder"):format(name, other),
    COPY_HINT .. "; to move a node, stop it first")
end

local function same(a, b)
  return json.encode(a == nil and json.null or a) == json.encode(b == nil and json.null or b)
end

-- The node's record with what @r says anew; nil if that is nothing; and what has changed, in words.
local function node_with(node, r)
  local fresh, changed = {}, {}
  for k, v in pairs(node) do fresh[k] = v end
  local function set(field, value, text)
    if value ~= nil and not same(fresh[field], value) then
      fresh[field] = value
      changed[#changed + 1] = text
    end
  end
  local at = r.addresses or {}
  set("version", r.version, "version " .. (r.version or ""))
  set("services", r.services, "services " .. table.concat(r.services or {}, ","))
  set("remote_address", at.remote, "remote address " .. (at.remote or ""))
  set("gossip_address", at.gossip, "gossip address " .. (at.gossip or ""))
  return #changed > 0 and fresh or nil, table.concat(changed, ", ")
end

-- What status a node with @record gets that reports @r at @wall; and why.
local function next_status(record, r, wall)
  if r.status == "left" then return "left", "it was stopped in order" end
  if not record or record.status == "ready" then return "ready" end
  -- What is on its way out does not come back: a report that was under way, or one about having been called left.
  local same_process = record.starts == r.starts and record.instance == r.instance
  if record.status == "left" and same_process and math.abs(wall - record.since) < core.LEFT_S then
    return "left", record.reason
  end
  local hold = core.hold(record.flaps)
  if hold > 0 and (record.status == "down" or wall - record.since < hold) then return record.status, record.reason end
  return "ready"
end

--- What a report changes. @node: its record; @record: its status, or nil. Returns {status = the new status record or
--- nil, node = the new node record or nil, turned = the status if that is another one, changed = text}; nil when
--- everything is as it was.
function M.merge(node, record, r, wall)
  local status, reason = next_status(record, r, wall)
  local fresh = {}
  for k, v in pairs(record or {}) do fresh[k] = v end
  local turned = not record or record.status ~= status
  if turned then
    fresh.status, fresh.since, fresh.reason = status, math.floor(wall), reason
    local flaps = core.flaps(record, status, wall)
    fresh.flaps = flaps > 0 and flaps or nil
  end
  fresh.starts, fresh.instance = r.starts, r.instance
  fresh.version, fresh.trust = r.version or fresh.version, r.trust or fresh.trust
  local fresh_node, changed = node_with(node, r)
  if record and same(record, fresh) then fresh = nil end
  if not fresh and not fresh_node then return nil end
  return { status = fresh, node = fresh_node, turned = turned and status or nil, changed = changed }
end

return M
