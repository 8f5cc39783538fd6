--- What may follow a piece of Lua at its end. Nothing is evaluated: values are looked up as rawget does, and through an
--- __index only where that is a table.
local show = require "symphony.repl.show"

local M = {}

M.ITEMS = 500
local LEVELS = 20
local LOOKED_AT = 100000 -- keys of tables in all
local TEXT_MAX = 4096
local NAME_MAX = 1024

-- Arguments that are keys of the state, or names that are: what stands before them there.
local KEYS = {
  ["kv.get"] = "/kv/", ["kv.put"] = "/kv/", ["kv.rm"] = "/kv/", ["kv.ls"] = "/kv/", ["kv.watch"] = "/kv/",
  ["state.get"] = "", ["state.list"] = "", ["state.count"] = "", ["watch"] = "",
  ["node"] = "/name/", ["cluster.node"] = "/name/",
}

-- The tables in which fields of @v are looked up, in their order.
local function layers(v)
  local list = {}
  for _ = 1, LEVELS do
    if type(v) == "table" then list[#list + 1] = v end
    local mt = debug.getmetatable(v)
    v = type(mt) == "table" and rawget(mt, "__index") or nil
    if type(v) ~= "table" then break end
  end
  return list
end

local function field(v, key)
  for _, layer in ipairs(layers(v)) do
    local found = rawget(layer, key)
    if found ~= nil then return found end
  end
end

--- The value at @path, a list of keys, below @env; nil if there is none.
function M.lookup(env, path)
  local v = env
  for i, key in ipairs(path) do
    if i > LEVELS or v == nil then return nil end
    v = field(v, key)
  end
  return v
end

-- Where the text ends: inside of a string (its opening quote's position), in a comment (true), or in code.
local function context(text)
  local at, n = 1, #text
  while at <= n do
    local c = text:sub(at, at)
    if c == '"' or c == "'" then
      local stop = at + 1
      while stop <= n and text:sub(stop, stop) ~= c do
        stop = stop + (text:sub(stop, stop) == "\\" and 2 or 1)
      end
      if stop > n then return at end
      at = stop
    elseif text:find("^%-%-", at) then
      local stop = text:find("\n", at, true)
      if not stop then return nil, true end
      at = stop
    end
    at = at + 1
  end
end

-- What stands before an index at the end of @text, and its key; nil if there is none there.
local function index_of(text)
  local before, key = text:match('^(.*%S)%s*%[%s*"([^"\\]*)"%s*%]$')
  if not before then before, key = text:match("^(.*%S)%s*%[%s*'([^'\\]*)'%s*%]$") end
  if before then return before, key end
  before, key = text:match("^(.*%S)%s*%[%s*(%-?%d+)%s*%]$")
  return before, math.tointeger(tonumber(key))
end

-- The keys that the expression at the end of @text, such as `a.b["c"][1]`, goes along; nil for one that would have to
-- be evaluated.
local function path_of(text)
  local path = {}
  while #path < LEVELS do
    text = text:match("^(.-)%s*$")
    local before, key = index_of(text)
    if before then
      table.insert(path, 1, key)
      text = before
    else
      local name
      before, name = text:match("^(.-)([%a_][%w_]*)$")
      if not name or show.keywords[name] or before:find("[%w_]$") then return nil end
      table.insert(path, 1, name)
      before = before:match("^(.-)%s*$")
      if before:find(":$") then return nil end
      if not before:find("%.$") or before:find("%.%.$") then return path end
      text = before:sub(1, -2)
    end
  end
end

local function sorted(set)
  local items = {}
  for text in pairs(set) do items[#items + 1] = text end
  table.sort(items)
  local more = #items > M.ITEMS
  for i = #items, M.ITEMS + 1, -1 do items[i] = nil end
  return items, more
end

-- The text keys of @v that begin with @part and that @fit(key, value) accepts.
local function fields(v, part, fit, into)
  local looked = 0
  for _, layer in ipairs(layers(v)) do
    for key, value in next, layer do
      looked = looked + 1
      if looked > LOOKED_AT then return into end
      if type(key) == "string" and #key <= NAME_MAX and key:sub(1, #part) == part and fit(key, value) then
        into[key] = true
      end
    end
  end
  return into
end

local function is_name(key)
  return key:find("^[%a_][%w_]*$") and not show.keywords[key]
end

local function is_method(key, value)
  return is_name(key) and type(value) == "function"
end

local function is_quotable(key)
  return not key:find("[%c\"'\\]") and utf8.len(key)
end

-- Keys of the state up to their next slash, by way of @list(prefix, after): a page of keys behind @after.
local function keys(list, above, part)
  local set, count, after = {}, 0, nil
  while count <= M.ITEMS do
    local page = list(above .. part, after)
    if not page or #page == 0 then break end
    for _, key in ipairs(page) do
      after = key
      local item = key:sub(#above + 1)
      local slash = item:find("/", math.max(#part, 1) + 1, true)
      item = slash and item:sub(1, slash) or item
      if is_quotable(item) and not set[item] then
        set[item], count = true, count + 1
      end
      if slash then
        after = above .. item .. "\xff\xff\xff\xff"
        break
      end
    end
  end
  return set
end

local function in_string(env, text, quote, list)
  local part, before = text:sub(quote + 1), text:sub(1, quote - 1)
  local table_text = before:match("^(.*%S)%s*%[%s*$")
  local path = table_text and path_of(table_text)
  if path then
    return fields(M.lookup(env, path), part, is_quotable, {}), quote + 1
  end
  local called = before:match("([%a_][%w_.]*)%s*%(?%s*$")
  local above = KEYS[called]
  if called == "require" then
    return fields(package.loaded, part, is_quotable, fields(package.preload, part, is_quotable, {})), quote + 1
  elseif above and list then
    return keys(list, above, part), quote + 1
  end
  return {}, quote + 1
end

--- {items = what the word at the end of @text could be, sorted; from = where that word begins, in bytes from 1; more =
--- true if there are more than 500}. @env is where names are looked up; @list(prefix, after) gives a page of the keys
--- of the state (nil: none).
function M.complete(env, text, list)
  local cut = math.max(0, #text - TEXT_MAX)
  text = text:sub(cut + 1)
  local quote, comment = context(text)
  local set, from
  if comment then
    set, from = {}, #text + 1
  elseif quote then
    set, from = in_string(env, text, quote, list)
  else
    local part = text:match("[%w_]*$")
    from = #text - #part + 1
    local before = text:sub(1, from - 1)
    local above, sign = before:match("^(.*%S)%s*([.:])%s*$")
    if above and not (sign == "." and above:find("%.$")) and not above:find("^%s*$") then
      local path = path_of(above)
      local literal = not path and (" " .. above):find("[%s=,({]%(([\"'])[^\"']*%1%)$")
      local v = path and M.lookup(env, path) or literal and "" or nil
      set = fields(v, part, sign == ":" and is_method or is_name, {})
    elseif part:find("^%d") then
      set = {}
    else
      set = fields(env, part, is_name, {})
      for word in pairs(show.keywords) do
        if word:sub(1, #part) == part then set[word] = true end
      end
    end
  end
  local items, more = sorted(set)
  return { items = items, from = cut + from, more = more or nil }
end

return M
