--- Values as text that a person can read and, where possible, paste back. Metamethods are never called: what is shown
--- may be anybody's.
local M = {}

local DEPTH = 8
local ITEMS = 200
local SIZE = 256 * 1024
local STRING = 64 * 1024 -- of one string, in bytes
local SORTED = 10000     -- keys that are sorted; of more, those that come first are shown

local keywords = {}
for word in ([[and break do else elseif end false for function goto if in local nil not or repeat return then true until
  while]]):gmatch("%a+") do
  keywords[word] = true
end
M.keywords = keywords

local RESET = "\27[0m"
local COLORS = { string = "\27[32m", number = "\27[36m", word = "\27[33m", note = "\27[90m" }

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

-- A name for what has no text of its own.
local function name(v)
  return ("%s: %p"):format(type(v), v)
end

-- Numbers, then strings, each in their order, then the rest as it comes.
local function before(a, b)
  local ta, tb = type(a), type(b)
  if ta == tb and (ta == "number" or ta == "string") then
    return a < b
  elseif ta == "boolean" and tb == "boolean" then
    return not a and b
  elseif (order[ta] or 4) ~= (order[tb] or 4) then
    return (order[ta] or 4) < (order[tb] or 4)
  end
  return name(a) < name(b)
end

local Printer = {}
Printer.__index = Printer

function Printer:put(text, style)
  self.size = self.size + #text
  self.out[#self.out + 1] = style and self.color and COLORS[style] .. text .. RESET or text
end

function Printer:string(s)
  local more = #s - STRING
  if more <= 0 then
    return self:put(M.quote(s), "string")
  end
  local cut = utf8.offset(s, 0, STRING + 1) or STRING + 1
  self:put(M.quote(s:sub(1, cut - 1)), "string")
  self:put((" --[[ and %d more bytes ]]"):format(#s - cut + 1), "note")
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
  local keys, others = {}, 0
  for k in next, t do
    if not (math.type(k) == "integer" and k >= 1 and k <= n) then
      others = others + 1
      if others <= SORTED then keys[others] = k end
    end
  end
  table.sort(keys, before)
  local pad = ("  "):rep(depth + 1)
  local lines = n + others
  for i = 1, math.min(lines, ITEMS) do
    if self.size > SIZE then
      self:put(pad)
      self:put("-- and so on: too much to show", "note")
      return self:put("\n")
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
    self:put(pad)
    self:put(("-- and %d more"):format(lines - ITEMS), "note")
    self:put("\n")
  end
end

local function number(v)
  return math.type(v) == "integer" and tostring(v) or (("%.17g"):format(v):gsub("^(-?%d+)$", "%1.0"))
end

function Printer:value(v, depth)
  local kind = type(v)
  if kind == "string" then
    self:string(v)
  elseif kind == "number" then
    self:put(number(v), "number")
  elseif kind == "nil" or kind == "boolean" then
    self:put(tostring(v), "word")
  elseif kind ~= "table" then
    self:put("<" .. name(v) .. ">", "note")
  elseif self.inside[v] then
    self:put("<cycle>", "note")
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

--- @v as text, in colours if @color.
function M.show(v, color)
  local printer = setmetatable({ out = {}, size = 0, inside = {}, color = color }, Printer)
  printer:value(v, 0)
  return table.concat(printer.out)
end

--- The values of @results, {n =, ...}, one below the other.
function M.show_all(results, color)
  local printer = setmetatable({ out = {}, size = 0, inside = {}, color = color }, Printer)
  for i = 1, results.n do
    if i > ITEMS or printer.size > SIZE then
      printer:put(("-- and %d more values"):format(results.n - i + 1), "note")
      printer:put("\n")
      break
    end
    printer:value(results[i], 0)
    printer:put("\n")
  end
  return table.concat(printer.out)
end

return M
