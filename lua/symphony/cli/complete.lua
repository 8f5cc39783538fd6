--- What may come next on a command line: for `symphony __complete`, which the shells' completions ask. The daemon
--- answers, as it knows its own commands, nodes and keys; without one the client knows its commands and options.
---
--- What an argument or an option takes is told by its choices, by complete = {<its name in ctx.args> = ...} in the
--- module of its command or of one above, or by its argname. That is one of the kinds below, a kind of resource, a list
--- of words, or a function(typed) -> list.
local commands = require "symphony.cli.commands"

local M = {}

local GLOBALS = {
  { names = { "--socket" }, value = true, argname = "PATH", summary = "the daemon's control socket" },
  { names = { "--json" }, summary = "print JSON" },
  { names = { "--timeout" }, value = true, argname = "S", summary = "give up after so many seconds" },
  { names = { "--help" }, summary = "how a command is used" },
}
local VERSION = { names = { "--version" }, summary = "print the version" }

local BY_ARGNAME = { NODE = "node", MEMBER = "manager", KEY = "key", PREFIX = "key", FILE = "files", PATH = "files",
  DIR = "dirs", POLICY = "policy", SERVICE = "service" }
local SHELL = { files = ":files", dirs = ":dirs" } -- what the shell itself knows

local LIMIT = 200
local PLAIN = "^[%w%._/@:=+,%%-]+$" -- what needs no quoting in any shell

-- The arguments of commands ------------------------------------------------------------------------------------------

local Field = {}
Field.__index = function(_, name)
  return Field[name] or function(self) return self end
end
function Field:argname(name)
  self.named = type(name) == "string" and name or nil
  return self
end
function Field:choices(list)
  self.words = list
  return self
end
function Field:args(count)
  self.many = count == "*" or count == "+" or (type(count) == "number" and count > 1)
  return self
end

local function field(name, summary)
  local f = setmetatable({ names = {}, summary = summary }, Field)
  for word in name:gmatch("%S+") do f.names[#f.names + 1] = word end
  -- As lua-argparse names it: by its first long name.
  local target = f.names[1]
  for i = #f.names, 1, -1 do
    if f.names[i]:find("^%-%-") then target = f.names[i] end
  end
  f.target = target:gsub("^%-+", ""):gsub("%-", "_")
  return f
end

-- What the arguments of @spec are, without lua-argparse: {options, arguments}.
local function fields_of(spec)
  local out = { options = {}, arguments = {} }
  if not spec.args then return out end
  local parser = setmetatable({}, { __index = function(_, method)
    return function(self, name, summary)
      if method ~= "option" and method ~= "flag" and method ~= "argument" then return self end
      local f = field(name, summary)
      f.value = method == "option"
      table.insert(method == "argument" and out.arguments or out.options, f)
      return f
    end
  end })
  if not pcall(spec.args, parser) then return { options = {}, arguments = {} } end
  for _, list in pairs(out) do
    for i, f in ipairs(list) do
      list[i] = { names = f.names, target = f.target, summary = rawget(f, "summary"), value = rawget(f, "value"),
        words = rawget(f, "words"), argname = rawget(f, "named"), many = rawget(f, "many") }
    end
  end
  return out
end

-- What has been typed ------------------------------------------------------------------------------------------------

local function sub_of(spec, word)
  for _, sub in ipairs(spec.commands or {}) do
    if commands.is_called(sub, word) then return sub end
  end
end

local function option_of(options, word)
  for _, list in ipairs { options, GLOBALS } do
    for _, option in ipairs(list) do
      for _, name in ipairs(option.names) do
        if name == word then return option end
      end
    end
  end
end

local ROOT = {}

-- Goes through the words before the last one: the command that they name (ROOT: none yet), whether it is one to be
-- helped with, its fields, how many arguments it has, the option whose value comes next.
local function walk(words)
  local at = { spec = ROOT, fields = { options = {}, arguments = {} }, arguments = 0, complete = {} }
  local literal = false
  for i = 1, #words - 1 do
    local word = words[i]
    if at.option then
      at.option = nil
    elseif not literal and word == "--" then
      literal = true
    elseif not literal and word:find("^%-.") then
      local option = not word:find("=", 1, true) and option_of(at.fields.options, word)
      at.option = option and option.value and option or nil
    elseif at.spec == ROOT and word == "help" and not at.help then
      at.help = true
    else
      local sub
      if at.spec == ROOT then
        local ok, spec = pcall(commands.get, word)
        sub = ok and spec or nil
        if not sub then return nil end
      else
        sub = sub_of(at.spec, word)
      end
      if sub then
        at.spec, at.fields = sub, fields_of(sub)
        for name, how in pairs(sub.complete or {}) do at.complete[name] = how end -- also of all below it
      else
        at.arguments = at.arguments + 1
      end
    end
  end
  at.literal = literal
  return at
end

-- What may come ------------------------------------------------------------------------------------------------------

local function add(out, name, summary)
  out.list[#out.list + 1] = { name = name, summary = summary and summary:match("^[^\n.(]*") or nil }
end

local function add_options(out, options)
  for _, option in ipairs(options) do
    for _, name in ipairs(option.names) do
      if name:find("^%-%-") then add(out, name, option.summary) end
    end
  end
end

local function add_commands(out, spec)
  if spec == ROOT then
    for _, name in ipairs(commands.all_names()) do
      local ok, found = pcall(commands.get, name)
      add(out, name, ok and found and found.summary)
    end
  end
  for _, sub in ipairs(spec.commands or {}) do add(out, sub.name:match("%S+"), sub.summary) end
end

-- The values of @f, an option or an argument of the command at @at. @ask(kind, typed): those that only the daemon
-- knows.
local function add_values(out, at, f, typed, ask)
  local how = at.complete[f.target] or f.words or BY_ARGNAME[f.argname or ""]
  if type(how) == "function" then
    local ok, list = pcall(how, typed)
    how = ok and type(list) == "table" and list or {}
  end
  if type(how) == "table" then
    for _, word in ipairs(how) do add(out, tostring(word)) end
  elseif how and SHELL[how] then
    out.shell = SHELL[how]
  elseif how and ask then
    for _, word in ipairs(ask(how, typed) or {}) do add(out, word) end
  end
end

local function argument_of(at)
  local list = at.fields.arguments
  local found = list[at.arguments + 1]
  local last = list[#list]
  return found or (last and last.many and last) or nil
end

--- Candidates for the last of @words, which has been begun: {list = {{name, summary}, ...}, shell = ":files", ":dirs"
--- or nil: what the shell has to add}. @ask: see add_values, or nil.
function M.candidates(words, ask)
  local out, typed = { list = {} }, words[#words] or ""
  local at = walk(words)
  if not at then return out end
  if at.option then
    add_values(out, at, at.option, typed, ask)
  elseif at.help then
    add_commands(out, at.spec)
  elseif not at.literal and typed:find("^%-") then
    add_options(out, at.fields.options)
    add_options(out, GLOBALS)
    if at.spec == ROOT then add_options(out, { VERSION }) end
  elseif at.spec == ROOT or (at.spec.commands and at.arguments == 0) then
    add_commands(out, at.spec)
    add_options(out, at.fields.options)
    add_options(out, GLOBALS)
    if at.spec == ROOT then add_options(out, { VERSION }) end
  else
    local f = argument_of(at)
    if f then add_values(out, at, f, typed, ask) end
    if not at.literal and (not f or (#out.list == 0 and not out.shell)) then
      add_options(out, at.fields.options)
      add_options(out, GLOBALS)
    end
  end
  local fitting = {}
  for _, row in ipairs(out.list) do
    if row.name:sub(1, #typed) == typed then fitting[#fitting + 1] = row end
  end
  out.list = fitting
  return out
end

--- The same as lines: a candidate, a tab and what it is; at the end what the shell has to add.
function M.text(found)
  local lines = {}
  for _, row in ipairs(found.list) do
    if row.name:find(PLAIN) then
      local summary = row.summary and row.summary:gsub("[%c]", " "):gsub("%s+$", "")
      lines[#lines + 1] = row.name .. (summary and summary ~= "" and "\t" .. summary or "") .. "\n"
    end
  end
  lines[#lines + 1] = found.shell and found.shell .. "\n" or nil
  return table.concat(lines)
end

-- In the daemon ------------------------------------------------------------------------------------------------------

-- Local state, whatever it is worth: nobody waits for a quorum to see names.
local function records(prefix, fn)
  local rows = require("symphony.cluster.state").list(prefix, { limit = LIMIT }) or {}
  local out = {}
  for _, kv in ipairs(rows) do out[#out + 1] = fn(kv.value, kv.key) end
  return out
end

local function last_part(_, key) return key:match("[^/]*$") end

local function nodes(role)
  return records("/node/", function(n) return (not role or n.role == role) and n.name or nil end)
end

local kinds = {
  node = function() return nodes() end,
  manager = function() return nodes "manager" end,
  worker = function() return nodes "worker" end,
  policy = function() return records("/policy/", last_part) end,
  client = function() return records("/client/", last_part) end,
  pending = function() return records("/pending/", last_part) end,
  key = function(typed)
    local out = {}
    for i, kv in ipairs(require("symphony.cluster.state").list_raw("/kv/" .. typed, { limit = LIMIT }) or {}) do
      out[i] = kv.key:sub(5)
    end
    return out
  end,
  service = function()
    local out = {}
    for i, row in ipairs(require("symphony.services.registry").list()) do out[i] = row.module.kind end
    return out
  end,
}

-- A kind that is none of these is one of resources: their names.
local function ask_state(kind, typed)
  if require("symphony.cluster.identity").role() ~= "manager" then return {} end
  local fn = kinds[kind] or function() return records(("/res/%s/"):format(kind), last_part) end
  local ok, list = pcall(fn, typed)
  return ok and list or {}
end

--- The lines for @words, in a daemon.
function M.answer(words)
  return M.text(M.candidates(words, ask_state))
end

return M
