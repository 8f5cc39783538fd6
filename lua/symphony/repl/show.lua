--- Values as text that a person can read and, where possible, paste back. Metamethods are never called: what is shown
--- may be anybody's.
local M = {}

local DEPTH = 8
local ITEMS = 200
local SIZE = 256 * 1024

local keywords = {}
for word in ([[and break do else elseif end false for function goto if in local nil not or repeat return then true until
  while]]):gmatch("%a+") do
  keywords[word] = true
end

--- @s as a Lua string literal in one line, UTF-8 kept.
function M.quote(s)
  local text = ("%q"):format(s):gsub("\\\n", "\\n"):gsub("\r", "\\r"):gsub("\t", "\\t")
  local out, from = {}, 1
  local len, bad = utf8.len(text)
  while not len do
    out[#out + 1] = text:sub(from, bad - 1) .. ("\\x%02x"):format(text:byte(bad))
    from = bad + 1
    len, bad = utf8.len(text, from)
  end
  return table.concat(out) .. text:sub(from)
end

local order = { number = 1, string = 2, boolean = 3 }

-- Numbers, then strings, each in their order, then the rest as it comes.
local function before(a, b)
  local ta, tb = type(a), type(b)
  if ta == tb and (ta == "number" or ta == "string") then
    return a < b
  elseif ta == tb then
    return tostring(order[ta] and a or ta) < tostring(order[tb] and b or tb)
  end
  return (order[ta] or 4) < (order[tb] or 4)
end

local Printer = {}
Printer.__index = Printer

function Printer:put(text)
  self.size = self.size + #text
  self.out[#self.out + 1] = text
end

local function name(v)
  -- tostring without __tostring and __name
  local mt = debug.getmetatable(v)
  if mt == nil or type(v) == "string" then
    return tostring(v)
  end
  return ("%s: %p"):format(type(v), v)
end

function Printer:key(k)
  if type(k) == "string" and k:match("^[%a_][%w_]*$") and not keywords[k] then
    self:put(k .. " = ")
  else
    self:put("[")
    self:value(k, DEPTH)
    self:put("] = ")
  end
end

function Printer:items(t, depth)
  local n = rawlen(t)
  local keys = {}
  for k in next, t do
    if not (math.type(k) == "integer" and k >= 1 and k <= n) then
      keys[#keys + 1] = k
    end
  end
  table.sort(keys, before)
  local pad = ("  "):rep(depth + 1)
  local lines = n + #keys
  for i = 1, math.min(lines, ITEMS) do
    if self.size > SIZE then
      return self:put(pad .. "-- and so on: too much to show\n")
    end
    self:put(pad)
    local k = i <= n and i or keys[i - n]
    if i > n then
      self:key(k)
    end
    self:value(rawget(t, k), depth + 1)
    self:put(",\n")
  end
  if lines > ITEMS then
    self:put(("%s-- and %d more\n"):format(pad, lines - ITEMS))
  end
end

function Printer:value(v, depth)
  local kind = type(v)
  if kind == "string" then
    self:put(M.quote(v))
  elseif kind == "number" then
    self:put(math.type(v) == "integer" and tostring(v) or ("%.17g"):format(v):gsub("^(-?%d+)$", "%1.0"))
  elseif kind ~= "table" then
    self:put(kind == "nil" and "nil" or kind == "boolean" and tostring(v) or "<" .. name(v) .. ">")
  elseif self.inside[v] then
    self:put("<cycle>")
  elseif next(v) == nil then
    self:put("{}")
  elseif depth >= DEPTH then
    self:put("{...}")
  else
    self.inside[v] = true
    self:put("{\n")
    self:items(v, depth)
    self:put(("  "):rep(depth) .. "}")
    self.inside[v] = nil
  end
end

--- @v as text.
function M.show(v)
  local printer = setmetatable({ out = {}, size = 0, inside = {} }, Printer)
  printer:value(v, 0)
  return table.concat(printer.out)
end

return M
