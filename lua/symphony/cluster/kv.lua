-- The users' own keys: limits, and their txns from JSON. Pure.
local errors = require "symphony.errors"
local json = require "symphony.json"
local values = require "symphony.cluster.values"

local M = {}

M.PREFIX = "/kv/"
M.KEY_MAX = 1024
M.VALUE_MAX = 1 << 20
M.OPS_MAX = 128
M.TXN_MAX = 3 << 19

-- A key as users write it; raises. @prefix: it may be empty.
function M.check_key(key, prefix)
  if type(key) ~= "string" then errors.raise("invalid", "a key is a string") end
  if key == "" and not prefix then errors.raise("invalid", "the key is empty") end
  if #key > M.KEY_MAX then
    errors.raise("too_big", ("the key has %d bytes; at most %d fit"):format(#key, M.KEY_MAX))
  end
  if key:find("\0", 1, true) then errors.raise("invalid", "a key holds no zero byte") end
  return key
end

function M.check_value(value)
  if #value > M.VALUE_MAX then
    errors.raise("too_big", ("the value has %d bytes; at most %d (1 MiB) fit"):format(#value, M.VALUE_MAX),
      "split it over several keys, or store it elsewhere and keep its address here")
  end
  return value
end

-- {key, value, create_revision, mod_revision} for people and programs, of a kv of the store.
function M.shown(kv)
  local row = { create_revision = kv.create_revision, mod_revision = kv.mod_revision }
  values.put_bytes(row, "key", kv.key:sub(#M.PREFIX + 1))
  return values.put_bytes(row, "value", kv.value)
end

local nullable = json.nullable

local function bytes(obj, name, what)
  local got, err = values.get_bytes(obj, name)
  if err then errors.raise("invalid", what .. ": " .. err.message) end
  return got
end

local function number(v, what)
  if math.type(v) ~= "integer" or v < 0 then errors.raise("invalid", what .. " is a whole number, 0 or more") end
  return v
end

-- One compare. Exactly one thing is compared.
local function compare(c, what)
  if type(c) ~= "table" then errors.raise("invalid", what .. " is not an object") end
  local prefix = bytes(c, "prefix", what)
  if prefix then
    M.check_key(prefix, true)
    local revision, count = nullable(c.revision), nullable(c.count)
    if (revision == nil) == (count == nil) then
      errors.raise("invalid", what .. ": a prefix takes one of revision, count")
    end
    return { prefix = M.PREFIX .. prefix, revision = revision and number(revision, what .. ".revision"),
      count = count and number(count, what .. ".count") }, #prefix
  end
  local key = bytes(c, "key", what)
  if not key then errors.raise("invalid", what .. " has no key and no prefix") end
  M.check_key(key)
  local value = bytes(c, "value", what)
  local found = { value = value, create_revision = nullable(c.create_revision), mod_revision = nullable(c.mod_revision),
    absent = nullable(c.absent) }
  local kinds = 0
  for _ in pairs(found) do kinds = kinds + 1 end
  if kinds ~= 1 then
    errors.raise("invalid", what .. " takes exactly one of value, create_revision, mod_revision, absent")
  end
  if value then M.check_value(value) end
  if found.create_revision then number(found.create_revision, what .. ".create_revision") end
  if found.mod_revision then number(found.mod_revision, what .. ".mod_revision") end
  if found.absent ~= nil and found.absent ~= true then errors.raise("invalid", what .. ".absent can only be true") end
  found.key = M.PREFIX .. key
  return found, #key + #(value or "")
end

local function operation(op, what)
  if type(op) ~= "table" then errors.raise("invalid", what .. " is not an object") end
  local put, delete = bytes(op, "put", what), bytes(op, "delete", what)
  if (put == nil) == (delete == nil) then errors.raise("invalid", what .. " takes one of put, delete") end
  M.check_key(put or delete)
  if delete then return { delete = M.PREFIX .. delete }, #delete end
  local value = bytes(op, "value", what)
  if not value then errors.raise("invalid", what .. ": put takes a value") end
  M.check_value(value)
  return { put = M.PREFIX .. put, value = value }, #put + #value
end

local function each(list, name, fn, size)
  list = nullable(list)
  if list == nil then return {}, size end
  if type(list) ~= "table" or (next(list) ~= nil and #list == 0) then
    errors.raise("invalid", name .. " is an array")
  end
  if #list > M.OPS_MAX then
    errors.raise("too_big", ("%d %s; at most %d fit in a txn"):format(#list, name, M.OPS_MAX))
  end
  local out = {}
  for i, item in ipairs(list) do
    local n
    out[i], n = fn(item, ("%s[%d]"):format(name, i))
    size = size + n
  end
  return out, size
end

-- Hostile JSON, decoded, to a txn for sym.raft.submit; raises "invalid" or "too_big".
function M.parse_txn(doc)
  if type(doc) ~= "table" or (nullable(doc.compare) == nil and nullable(doc.ops) == nil) then
    errors.raise("invalid", "a txn is {\"compare\": [...], \"ops\": [...]}",
      "for example {\"compare\": [{\"key\": \"a\", \"absent\": true}], \"ops\": [{\"put\": \"a\", \"value\": \"1\"}]}")
  end
  local txn, size = {}, 0
  txn.compare, size = each(doc.compare, "compare", compare, size)
  txn.ops, size = each(doc.ops, "ops", operation, size)
  if size > M.TXN_MAX then
    errors.raise("too_big", ("the txn has %d bytes of keys and values; at most %d (1.5 MiB) fit"):format(size,
      M.TXN_MAX), "split it; a txn is for what has to happen together")
  end
  return txn
end

-- The answer to a txn's result; raises "conflict".
function M.answer(result)
  if result.status == "conflict" then
    errors.raise("conflict", ("compare %d does not hold; nothing was changed"):format(result.failed or 0),
      "read again and decide anew")
  end
  return { revision = result.revision, repeated = result.repeated or nil, policies = result.policies }
end

return M
