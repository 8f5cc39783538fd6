-- The commands of `symphony`, from their modules, as documentation and completion have to know them.
package.path = "lua/?.lua;lua/?/init.lua;" .. package.path
local commands = require "symphony.cli.commands"

local M = {}

-- Stands in for the parser of lua-argparse, and notes the options.
local function options_of(spec)
  local found = {}
  local recorder = setmetatable({}, { __index = function(_, method)
    return function(self, name)
      if method == "option" or method == "flag" then
        local option = { value = method == "option" }
        for word in name:gmatch("%S+") do
          if word:find("^%-%-") then option.name = word else option.short = word end
        end
        found[#found + 1] = option
      end
      return self
    end
  end })
  if spec.args then spec.args(recorder) end
  return found
end

-- All commands: {{words = "kv ls", alias = "kv list" | nil, options = {{name = "--limit", short =, value = bool}},
-- subs = {"put", ...}, examples = {"symphony kv ls", ...}}}, those with subcommands before these.
function M.list()
  local out = {}
  local function walk(spec, above)
    local name, alias = spec.name:match("^(%S+) ?(%S*)$")
    local row = { words = above .. name, alias = alias ~= "" and above .. alias or nil, options = options_of(spec),
      subs = {}, examples = {} }
    for line in ((spec.description or ""):match("\nExample:(.*)") or ""):gmatch("\n  ([^\n]*symphony [^\n]*)") do
      row.examples[#row.examples + 1] = line
    end
    out[#out + 1] = row
    for _, sub in ipairs(spec.commands or {}) do
      row.subs[#row.subs + 1] = sub.name:match("%S+")
      walk(sub, row.words .. " ")
    end
  end
  for _, spec in ipairs(commands.all()) do walk(spec, "") end
  return out
end

-- Their first words.
function M.names()
  return table.move(commands.names, 1, #commands.names, 1, {})
end

return M
