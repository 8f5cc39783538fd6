-- The lines of an agent's stream (docs/api.md, GET /v1/agent) as they come from outside: what kind a line is, and
-- whether all in it is what it should be. Pure.
local address = require "symphony.cluster.address"
local errors = require "symphony.errors"
local json = require "symphony.json"
local keyring = require "symphony.cluster.keyring"

local M = {}

local NUMBER_MAX = 1 << 52
local ID_MAX, KEY_MAX = 64, 1024 -- of a node; of a public key, and of what is assigned
local PEM_MAX, MANAGERS_MAX = 64 * 1024, 64

local function is_text(v, max)
  return type(v) == "string" and #v > 0 and #v <= max
end

local function is_number(v)
  return math.type(v) == "integer" and v >= 0 and v <= NUMBER_MAX
end

-- A record of the state, which only has to be an object.
local function is_record(v)
  return v == json.null or (type(v) == "table" and rawlen(v) == 0)
end

local function is_mark(v)
  return is_text(v, 40) and v:find("^%d+%.%d+$") ~= nil
end

local function are_managers(list)
  if type(list) ~= "table" or rawlen(list) == 0 or rawlen(list) > MANAGERS_MAX then return false end
  for at, text in pairs(list) do
    if math.type(at) ~= "integer" or not address.valid(text) then return false end
  end
  return true
end

local function is_cluster(c)
  return type(c) == "table" and is_text(c.id, ID_MAX) and is_text(c.ca, PEM_MAX)
    and (c.name == nil or is_text(c.name, KEY_MAX)) and (c.sign == nil or is_text(c.sign, ID_MAX))
    and (c.epoch == nil or is_number(c.epoch)) and (c.trust == nil or (is_number(c.trust) and c.trust > 0))
    and are_managers(c.managers)
end

local function is_peer(m)
  return is_text(m.peer, ID_MAX) and not m.peer:find("%W")
    and (m.gone == true or (is_text(m.key, KEY_MAX) and (m.role == "manager" or m.role == "worker")))
end

local function is_client(m)
  return is_text(m.client, ID_MAX) and (m.gone == true
    or (is_text(m.fingerprint, ID_MAX) and (m.role == "reader" or m.role == "operator")))
end

-- In the order in which they are looked for: a line is of the first kind whose field it has.
local kinds = {
  { "error", function() return true end },
  { "cluster", function(m) return is_cluster(m.cluster) end },
  { "gossip", function(m) return keyring.read(m.gossip) ~= nil end },
  { "node", function(m) return is_record(m.node) end },
  { "status", function(m)
    return is_record(m.status) and (m.status == json.null or is_text(m.status.status, ID_MAX))
  end },
  { "peer", is_peer },
  { "client", is_client },
  { "clients", function(m) return m.clients == "all" end },
  { "put", function(m) return is_text(m.put, KEY_MAX) and m.value ~= nil and is_number(m.revision) end },
  { "delete", function(m) return is_text(m.delete, KEY_MAX) and is_number(m.revision) end },
  { "synced", function(m) return is_number(m.synced) and is_mark(m.peers) end },
  { "heartbeat", function(m)
    return is_number(m.heartbeat) and (m.alone == nil or type(m.alone) == "boolean")
  end },
  { "peers", function(m) return m.peers == "all" or m.peers == "same" or is_mark(m.peers) end },
}

-- Which kind the line @m (a decoded JSON array or object) is, by the field that it has; nil for one of another version.
-- Raises "protocol" when something in it is wrong.
function M.kind(m)
  for _, row in ipairs(kinds) do
    local kind, is_good = table.unpack(row)
    if m[kind] ~= nil then
      if is_good(m) then return kind end
      errors.raise("protocol", ("a line \"%s\" of the manager's stream cannot be read"):format(kind))
    end
  end
end

-- The error in a line of the kind "error", whatever is in there.
function M.error_of(m)
  local e = type(m.error) == "table" and m.error or {}
  return errors.new(is_text(e.code, ID_MAX) and e.code or "closed",
    is_text(e.message, 2000) and e.message or "the manager ended the stream",
    is_text(e.hint, 2000) and e.hint or nil)
end

return M
