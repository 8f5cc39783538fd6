--- JSON that keeps what it is given: sorted keys, exact integers, empty arrays. Reading is lua-cjson's work, with what
--- it loses (every number is a float, [] is {}) put right.
local cjson = require("cjson").new()
local errors = require "symphony.errors"

local M = {}

local MAX_DEPTH = 100
local MAX_EXACT = 2 ^ 53

cjson.decode_max_depth(MAX_DEPTH)
cjson.decode_invalid_numbers(false)

--- The value of a JSON null (nil would be no entry at all). It counts as true in a condition.
M.null = cjson.null

--- @v; nil where it is null.
function M.nullable(v)
  if v == M.null then return nil end
  return v
end

local array = { __name = "array" }

--- Makes @t (or a new table) an array also when it is empty.
function M.array(t)
  return setmetatable(t or {}, array)
end

-- Encoding ------------------------------------------------------------------------------------------------------------

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }
for byte = 0, 31 do
  local char = string.char(byte)
  escapes[char] = escapes[char] or ("\\u%04x"):format(byte)
end

local function damage(what)
  errors.raise("invalid", "cannot be written as JSON: " .. what)
end

local function encode_string(s)
  if not utf8.len(s) then
    damage("text that is not UTF-8")
  end
  return '"' .. s:gsub('[\0-\31"\\]', escapes) .. '"'
end

local function encode_number(n)
  if n ~= n or n == math.huge or n == -math.huge then
    damage(tostring(n))
  end
  if math.type(n) == "integer" then
    if n > MAX_EXACT or n < -MAX_EXACT then
      damage("an integer beyond 2^53; 64-bit values travel as text")
    end
    return tostring(n)
  end
  if n == math.floor(n) and n <= MAX_EXACT and n >= -MAX_EXACT then
    return ("%d"):format(n)
  end
  local short = ("%.15g"):format(n)
  return tonumber(short) == n and short or ("%.17g"):format(n)
end

local put

local function put_array(out, t, depth)
  local n = rawlen(t)
  for k in next, t do
    if math.type(k) ~= "integer" or k < 1 or k > n then
      damage("a table that is neither an array nor an object")
    end
  end
  out[#out + 1] = "["
  for i = 1, n do
    if i > 1 then
      out[#out + 1] = ","
    end
    put(out, rawget(t, i), depth)
  end
  out[#out + 1] = "]"
end

local function put_object(out, t, depth)
  local keys = {}
  for k in next, t do
    if type(k) ~= "string" then
      damage("a key that is not text")
    end
    keys[#keys + 1] = k
  end
  table.sort(keys)
  out[#out + 1] = "{"
  for i, k in ipairs(keys) do
    out[#out + 1] = (i > 1 and "," or "") .. encode_string(k) .. ":"
    put(out, rawget(t, k), depth)
  end
  out[#out + 1] = "}"
end

function put(out, v, depth)
  local kind = type(v)
  if kind == "string" then
    out[#out + 1] = encode_string(v)
  elseif kind == "number" then
    out[#out + 1] = encode_number(v)
  elseif kind == "boolean" then
    out[#out + 1] = tostring(v)
  elseif v == nil or v == M.null then
    out[#out + 1] = "null"
  elseif kind ~= "table" then
    damage("a " .. kind)
  elseif depth >= MAX_DEPTH then
    damage("too deep, or a cycle")
  elseif getmetatable(v) == array or rawlen(v) > 0 then
    put_array(out, v, depth + 1)
  else
    put_object(out, v, depth + 1)
  end
end

--- The text of @v: sorted keys, no white space. A table with an element 1 is an array; an empty one is an object unless
--- it was made by M.array or decoded from []. Raises on what it would damage.
function M.encode(v)
  local out = {}
  put(out, v, 0)
  return table.concat(out)
end

--- @text with every byte that is not UTF-8 replaced by U+FFFD: for messages that quote bytes from outside.
function M.clean(text)
  local len, bad = utf8.len(text)
  if len then
    return text
  end
  local out, from = {}, 1
  while not len do
    out[#out + 1] = text:sub(from, bad - 1) .. "\u{FFFD}"
    from = bad + 1
    len, bad = utf8.len(text, from)
  end
  return table.concat(out) .. text:sub(from)
end

-- Decoding ------------------------------------------------------------------------------------------------------------

-- cjson reads [] and {} as the same. So [] is given one element that stands for none: a text that nobody can know.
local EMPTY = ("[]%016x%016x"):format(math.random(0), math.random(0))
local EMPTY_TEXT = '"' .. EMPTY .. '"'

-- Position behind the string whose opening quote is at @p; nil if it never ends.
local function skip_string(text, p)
  repeat
    p = text:find('["\\]', p + 1)
    local escape = p and text:byte(p) == 92
    if escape then
      p = p + 1
    end
  until not escape
  return p and p + 1
end

local function mark_empty(text)
  if not text:find("%[[ \t\r\n]*%]") then
    return text
  end
  local out, from, at = {}, 1, 1
  while at do
    at = text:find('["%[]', at)
    if at and text:byte(at) == 34 then
      at = skip_string(text, at)
    elseif at then
      local behind = text:match("^[ \t\r\n]*%]()", at + 1)
      if behind then
        out[#out + 1] = text:sub(from, at) .. EMPTY_TEXT .. "]"
        from = behind
      end
      at = behind or at + 1
    end
  end
  return table.concat(out) .. text:sub(from)
end

local restore

local function restore_value(v)
  if math.type(v) == "float" then
    if v == math.huge or v == -math.huge then
      errors.raise("invalid", "not JSON that can be kept: a number is too large")
    end
    return v <= MAX_EXACT and v >= -MAX_EXACT and math.tointeger(v) or v
  elseif type(v) == "table" then
    return restore(v)
  end
  return v
end

function restore(t)
  if rawlen(t) == 1 and t[1] == EMPTY then
    return M.array()
  end
  for k, v in next, t do
    t[k] = restore_value(v)
  end
  return t
end

--- The value of @text | nil, err ("invalid"). Whole numbers are integers, null is M.null.
function M.decode(text)
  if not utf8.len(text) then
    return nil, errors.new("invalid", "not JSON: it is not UTF-8")
  end
  local ok, v = pcall(cjson.decode, mark_empty(text))
  if not ok then
    return nil, errors.new("invalid", "not JSON: " .. tostring(v))
  end
  ok, v = pcall(restore_value, v)
  if not ok then
    return nil, v
  end
  return v
end

return M
