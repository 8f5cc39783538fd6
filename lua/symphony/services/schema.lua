--- What a resource may hold: a table of fields, each {type =, ...}. Pure.
---   type      "string", "integer", "number", "boolean", "array" (of =), "map" (of =, keys are text), "object" (with
---             fields =)
---   required  true: it has to be given                default   what stands for it when it is not
---   one_of    {values}                                 pattern   a Lua pattern (string)
---   min, max  of a number; of a string, an array or a map how many bytes or entries
---   of        the field that every entry of an array or a map is
---   keys      a Lua pattern for the keys of a map
---   check     function(value) -> true, or nil, what is wrong with it
local errors = require "symphony.errors"
local json = require "symphony.json"

local M = {}

local TEXT_MAX, COUNT_MAX, DEPTH_MAX = 4096, 256, 8
local TYPES = { string = true, integer = true, number = true, boolean = true, array = true, map = true, object = true }

-- Is @field a field? Raises what is wrong with it; for the author of a service.
local function check_field(field, what, depth)
  if type(field) ~= "table" or not TYPES[field.type] then error(("%s: a field has a type"):format(what), 0) end
  if depth > DEPTH_MAX then error(("%s: too deep"):format(what), 0) end
  if field.type == "array" or field.type == "map" then check_field(field.of, what .. "[]", depth + 1) end
  if field.type == "object" then M.check_schema(field.fields, what, depth + 1) end
end

--- Raises unless @schema is one.
function M.check_schema(schema, what, depth)
  if type(schema) ~= "table" then error(("%s: a schema is a table of fields"):format(what), 0) end
  for name, field in pairs(schema) do
    if type(name) ~= "string" or not name:find("^%l[%w_]*$") then
      error(("%s: \"%s\" is no name of a field"):format(what, tostring(name)), 0)
    end
    check_field(field, what .. "." .. name, depth or 1)
  end
end

local function fail(...)
  errors.raise("invalid", (...):format(select(2, ...)))
end

local function bounds(field, n, what, unit, most)
  local max = field.max or most
  if field.min and n < field.min then fail("%s: at least %s%s", what, field.min, unit) end
  if max and n > max then fail("%s: at most %s%s", what, max, unit) end
end

local function one_of(field, v, what)
  if not field.one_of then return end
  local words = {}
  for i, word in ipairs(field.one_of) do
    if word == v then return end
    words[i] = tostring(word)
  end
  fail("%s is one of %s", what, table.concat(words, ", "))
end

local check_value

local takes = {
  string = function(field, v, what)
    if type(v) ~= "string" then fail("%s is a string", what) end
    if not utf8.len(v) or v:find("\0", 1, true) then fail("%s is text", what) end
    bounds(field, #v, what, " bytes", TEXT_MAX)
    if field.pattern and not v:find(field.pattern) then fail("%s is not what it should be", what) end
    return v
  end,
  integer = function(field, v, what)
    local n = math.type(v) == "integer" and v or nil
    if not n then fail("%s is a whole number", what) end
    bounds(field, n, what, "")
    return n
  end,
  number = function(field, v, what)
    if type(v) ~= "number" or v ~= v or math.abs(v) == math.huge then fail("%s is a number", what) end
    bounds(field, v, what, "")
    return v
  end,
  boolean = function(_, v, what)
    if type(v) ~= "boolean" then fail("%s is true or false", what) end
    return v
  end,
  array = function(field, v, what, depth)
    if type(v) ~= "table" or (next(v) ~= nil and rawlen(v) == 0) then fail("%s is an array", what) end
    bounds(field, rawlen(v), what, " entries", COUNT_MAX)
    local out = json.array {}
    for i = 1, rawlen(v) do out[i] = check_value(field.of, v[i], ("%s[%d]"):format(what, i), depth + 1) end
    return out
  end,
  map = function(field, v, what, depth)
    if type(v) ~= "table" or rawlen(v) > 0 then fail("%s is an object", what) end
    local out, count = {}, 0
    for key, entry in pairs(v) do
      count = count + 1
      bounds({ max = field.max }, count, what, " entries", COUNT_MAX)
      if type(key) ~= "string" or #key > 255 or (field.keys and not key:find(field.keys)) then
        fail("%s: \"%s\" is no key for it", what, json.clean(tostring(key):sub(1, 40)))
      end
      out[key] = check_value(field.of, entry, ("%s.%s"):format(what, json.clean(key)), depth + 1)
    end
    bounds({ min = field.min }, count, what, " entries")
    return out
  end,
  object = function(field, v, what, depth)
    return M.fill(field.fields, v, what .. ".", depth + 1)
  end,
}

function check_value(field, v, what, depth)
  if v == json.null or v == nil then fail("%s is missing", what) end
  local out = takes[field.type](field, v, what, depth)
  one_of(field, out, what)
  if field.check then
    local ok, why = field.check(out)
    if not ok then fail("%s: %s", what, why or "it is not what it should be") end
  end
  return out
end

-- As M.check, raising; @under: what stands before the names of fields in messages.
function M.fill(schema, value, under, depth)
  if type(value) ~= "table" or rawlen(value) > 0 then
    fail("%s is an object", under == "" and "the spec" or under:sub(1, -2))
  end
  for name in pairs(value) do
    if not schema[name] then
      fail("there is no field \"%s%s\"", under, json.clean(tostring(name):sub(1, 40)))
    end
  end
  local out, names = {}, {}
  for name in pairs(schema) do names[#names + 1] = name end
  table.sort(names) -- what is wrong is said in the same order every time
  for _, name in ipairs(names) do
    local field, v = schema[name], value[name]
    if v == json.null or v == nil then
      if field.required then fail("%s%s is missing", under, name) end
      v = field.default
    end
    if v ~= nil then out[name] = check_value(field, v, under .. name, depth or 1) end
  end
  return out
end

--- @value, decoded JSON from outside, as @schema wants it: a copy with the defaults, and nothing else in it. nil, err
--- ("invalid").
function M.check(schema, value)
  local ok, out = pcall(M.fill, schema, value, "", 1)
  if ok then return out end
  if errors.is(out) then return nil, out end
  error(out, 0)
end

--- @old with what @patch names; a null takes a field away. Not checked yet.
function M.patch(old, patch)
  local out = {}
  for k, v in pairs(old) do out[k] = v end
  for k, v in pairs(patch) do
    if v == json.null then v = nil end
    out[k] = v
  end
  return out
end

return M
