--- Documentation from comments. An entry is a block of lines that begin with three dashes, the first of which is what
--- is called: "kv.get(key) -> entry"; or "# kv: what it is", which heads those that follow. Lines that are indented by
--- two spaces or more are examples; behind "-->" stands what they print.
---
--- Of other modules, PARTS, the entries are what stands at their top, and above their functions.
local show = require "symphony.repl.show"

local M = {}

--- The modules whose comments docs/lua.md shows and help() knows: of the prompt, which the overview shows, and of what
--- runs elsewhere.
M.PROMPT = { "symphony.repl.env", "symphony.repl.env_keys", "symphony.repl.env_cluster", "symphony.repl.env_std" }
M.ELSEWHERE = { "symphony.policy.reference" }

--- What own services and commands are made of. functions: which are shown, true for all; without them the comment at
--- the top alone, or with `above` that of one function.
M.PARTS = {
  { name = "command", title = "what a module in DIR/commands of --lua-dir returns", module = "symphony.cli.commands" },
  { name = "service", title = "what a module in DIR/services of --lua-dir returns",
    module = "symphony.services.registry" },
  { name = "schema", title = "the fields of a resource", module = "symphony.services.schema" },
  { name = "ctx", title = "what the functions of a service are given", module = "symphony.services.worker",
    above = "context" },
  { name = "commands", title = 'require "symphony.services.commands"', module = "symphony.services.commands",
    functions = true },
  { name = "resources", title = 'require "symphony.services.resources"', module = "symphony.services.resources",
    functions = { get = true, list = true } },
  { name = "ask", title = 'require "symphony.services.ask"', module = "symphony.services.ask",
    functions = { call = true } },
  { name = "async", title = 'require "symphony.async"', module = "symphony.async", functions = true },
  { name = "errors", title = 'require "symphony.errors"', module = "symphony.errors", functions = true },
}

local SIZE_MAX = 1 << 20
local NAME_MAX, LOOKED_AT = 100, 1000 -- bytes of a name, keys of a table

local function read(path)
  return (require("sym.sys").read_file(path, SIZE_MAX))
end

local function entry_of(block)
  local first = block[1]
  local entry = { text = table.concat(block, "\n", 2) }
  local heading, title = first:match("^# ([%w_.]+): (.*)$")
  if heading then
    entry.name, entry.title = heading, title
    return entry
  end
  local name = first:match("^([%a_][%w_.:]*)%(.*%)")
  if not name then return nil end
  entry.name, entry.signature = name, first
  return entry
end

-- The blocks of comments in @source: {{lines..., behind = the line that follows}, ...}.
local function blocks(source)
  local list, block = {}, nil
  for line in (source .. "\n"):gmatch("([^\n]*)\n") do
    local text = line:match("^%s*%-%-%- ?(.*)$")
    if text then
      block = block or {}
      block[#block + 1] = text
    elseif block then
      block.behind = line
      list[#list + 1], block = block, nil
    end
  end
  return list
end

--- The entries of a module's @source: a list of {name, text} with signature (a function) or title (what heads others).
function M.parse(source)
  local list = {}
  for _, block in ipairs(blocks(source)) do list[#list + 1] = entry_of(block) end
  return list
end

--- The entries of one of PARTS, whose module has this @source.
function M.part(part, source)
  local found = blocks(source)
  local head = { name = part.name, title = part.title, text = found[1] and table.concat(found[1], "\n") or "" }
  local list = { head }
  for _, block in ipairs(found) do
    local of, sign, name, args = block.behind:match("^function ([%a_]+)([.:])([%w_]+)(%b())")
    local text = table.concat(block, "\n")
    if name and name == part.above then
      head.text = text
    elseif name and part.functions and (part.functions == true or part.functions[name]) then
      name = (of == "M" and part.name or of:lower()) .. sign .. name
      list[#list + 1] = { name = name, signature = name .. args, text = text }
    end
  end
  return list
end

--- The lines of an entry's examples: {code, prints = what stands behind "-->" or nil}.
function M.examples(entry)
  local list = {}
  for line in (entry.text .. "\n"):gmatch("([^\n]*)\n") do
    local code = line:match("^  +(.*)$")
    if code then
      local before, prints = code:match("^(.-)%s*%-%->%s*(.*)$")
      list[#list + 1] = { code = before or code, prints = prints }
    end
  end
  return list
end

local function source_of(module)
  local path = package.searchpath(module, package.path)
  return path and read(path) or ""
end

--- The entries of these modules, in their order.
function M.of(modules)
  local list = {}
  for _, name in ipairs(modules) do
    local entries = M.parse(source_of(name))
    table.move(entries, 1, #entries, #list + 1, list)
  end
  return list
end

--- The entries of all PARTS.
function M.parts()
  local list = {}
  for _, part in ipairs(M.PARTS) do
    local entries = M.part(part, source_of(part.module))
    table.move(entries, 1, #entries, #list + 1, list)
  end
  return list
end

--- The comment right above the definition of a function written in Lua; nil if there is none, or no file to read.
function M.comment(fn)
  local info = debug.getinfo(fn, "S")
  local path = info.source:match("^@(.*)$")
  local source = path and path:find("%.lua$") and require("symphony.repl.source").read(path)
  if not source then return nil end
  local lines, n = {}, 0
  for line in source:gmatch("([^\n]*)\n") do
    n = n + 1
    if n > info.linedefined then break end
    lines[n] = line
  end
  local comment = {}
  for i = info.linedefined - 1, 1, -1 do
    local text = lines[i] and lines[i]:match("^%s*%-%-+ ?(.*)$")
    if not text then break end
    table.insert(comment, 1, text)
  end
  local head = (lines[info.linedefined] or ""):match("^%s*(.-)%s*$")
  return #comment > 0 and head .. "\n" .. table.concat(comment, "\n") or nil
end

local function sentence(text)
  return (text:gsub("\n", " "):match("^(.-[.:;])%s") or text:gsub("\n", " ")):gsub("[:;]$", ".")
end

local function overview(list)
  local out = { "The code runs in the daemon; what waits looks like a plain call. help(x) tells more of x." }
  for _, entry in ipairs(list) do
    if entry.title then
      out[#out + 1] = ("\n%s: %s"):format(entry.name, entry.title)
    else
      out[#out + 1] = ("  %-36s %s"):format(entry.signature:gsub("%s*%->.*", ""), sentence(entry.text))
    end
  end
  out[#out + 1] = "\n_ is the last value. A line that is not finished asks for more."
  out[#out + 1] = "Ctrl-C stops what runs, Ctrl-D ends."
  return table.concat(out, "\n")
end

local function described(entry, list)
  local out = { entry.signature or ("%s: %s"):format(entry.name, entry.title) }
  if entry.text ~= "" then out[2] = entry.text end
  if entry.title then
    for _, other in ipairs(list) do
      if other.signature and other.name:find(entry.name .. ".", 1, true) == 1 then
        out[#out + 1] = ("  %-36s %s"):format(other.signature, sentence(other.text))
      end
    end
  end
  return table.concat(out, "\n")
end

--- What there is to say of @v, a value, of which nothing is called, or a name: text. @lookup(name) gives the value that
--- the name has here. Without @v (nil) an overview.
function M.help(v, lookup)
  local list = M.of(M.PROMPT)
  if v == nil then return overview(list) end
  for _, entry in ipairs(list) do
    if entry.name == v or (type(v) ~= "string" and rawequal(lookup(entry.name), v)) then
      return described(entry, list)
    end
  end
  for _, others in ipairs(type(v) == "string" and { M.of(M.ELSEWHERE), M.parts() } or {}) do
    for _, entry in ipairs(others) do
      if entry.name == v then return described(entry, others) end
    end
  end
  if type(v) == "string" and lookup(v) ~= nil then v = lookup(v) end
  if type(v) == "function" then
    local comment = M.comment(v)
    return comment or debug.getinfo(v, "S").what == "C" and "A function in C; Lua's own are in its manual."
      or "There is no comment at its definition."
  elseif type(v) == "table" then
    local names, looked = {}, 0
    for key, value in next, v do
      looked = looked + 1
      if looked > LOOKED_AT then break end
      if type(key) == "string" and #key <= NAME_MAX and type(value) == "function" then names[#names + 1] = key end
    end
    table.sort(names)
    return #names > 0 and "A table with the functions " .. table.concat(names, ", ") or "A table: name it to see it."
  elseif type(v) == "string" then
    return ("Nothing here is called %s."):format(show.quote(v:sub(1, 80)))
  end
  return "A " .. type(v) .. "."
end

return M
