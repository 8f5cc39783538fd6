--- The command line, read by lua-argparse. It would print and end the process, so it runs with print and os of its own.
local commands = require "symphony.cli.commands"
local errors = require "symphony.errors"

local M = {}

local GLOBALS = "--socket, --json and --timeout go with every command: see `symphony help`."

local BELOW_ZERO = "^unknown option '%-%d'" -- how argparse refuses a number

-- Raised by argparse's exit.
local EXIT = {}
local printed = {}

local function load_argparse()
  local path = assert(package.searchpath("argparse", package.path))
  local env = setmetatable({
    _G = {},
    print = function(text)
      printed[#printed + 1] = text .. "\n"
    end,
    os = {
      exit = function()
        error(EXIT, 0)
      end,
    },
  }, { __index = _G })
  return assert(loadfile(path, "t", env))()
end

local function seconds(text)
  local n = tonumber(text)
  if not n or not (n > 0 and n <= 1e6) then
    return nil, ("'%s' is no number of seconds"):format(text)
  end
  return n
end

-- Level by level the chosen command is noted as "@<level>"; no option can have such a name.
local function add(parent, spec, level)
  local parser = parent:command(spec.name):target("@")
  parser:summary(spec.summary or ""):description(spec.description or spec.summary or ""):epilog(spec.epilog or GLOBALS)
  if spec.args then
    spec.args(parser)
  end
  if spec.commands then
    parser:command_target("@" .. level + 1)
    parser:require_command(not spec.run)
    for _, sub in ipairs(spec.commands) do
      add(parser, sub, level + 1)
    end
  end
end

-- A parser that knows command @name in full and of the others their names.
local function build(name)
  local root = load_argparse()("symphony"):require_command(false):command_target("@1"):usage_max_width(100)
  root:option("--socket", "The daemon's control socket (default $SYMPHONY_SOCKET, else ./control.sock).")
    :argname("PATH")
  root:flag("--json", "Print JSON.")
  root:option("--timeout", "Give up after so many seconds."):argname("S"):convert(seconds)
  root:flag("-V --version", "Print the version.")
  for _, known in ipairs(commands.all_names()) do
    add(root, known == name and commands.get(known) or { name = known }, 1)
  end
  root.get_help = function() return M.overview() end
  root.error = function(parser, message)
    local text, tip = message:match("^(.-)\nDid you mean (.*)$")
    local words = parser:get_usage():match("^Usage: symphony([%l%d %-]*)") or ""
    local hint = tip and "did you mean " .. tip or "symphony help" .. words:gsub("%s+$", "") .. " shows how it is used"
    if message:find(BELOW_ZERO) then hint = "what begins with - and is no option goes behind --" end
    error(errors.new("usage", text or message, hint), 0)
  end
  return root
end

-- @argv with each number below zero joined to the option before it, which then says what it takes: argparse sees
-- options of one letter in it.
local function joined(argv)
  local words, options = {}, true
  for _, word in ipairs(argv) do
    options = options and word ~= "--"
    local before = words[#words]
    if options and word:find("^%-%d") and before and before:find("^%-%-%l[%l%-]*$") then
      words[#words] = before .. "=" .. word
    else
      words[#words + 1] = word
    end
  end
  return words
end

-- Raises.
local function read(root, argv)
  local ok, result = pcall(root.parse, root, argv)
  if not ok and errors.is(result) and result.message:find(BELOW_ZERO) then
    local again_ok, again = pcall(root.parse, root, joined(argv))
    local is_flag = errors.is(again) and again.message:find("does not take arguments", 1, true)
    if not is_flag then ok, result = again_ok, again end
  end
  if not ok then error(result, 0) end
  return result
end

local roots = {} -- by command, built once: parsing leaves no trace in them

--- What commands there are has changed.
function M.forget()
  roots = {}
end

--- Raises what is wrong with the arguments of @spec, the module of a command.
function M.check(spec)
  add(load_argparse()("symphony"):command_target("@1"), spec, 1)
end

-- The specification that was chosen, and the words that chose it.
local function chosen(result)
  local spec, path = { commands = { result["@1"] and commands.get(result["@1"]) } }, {}
  while result["@" .. #path + 1] do
    local name = result["@" .. #path + 1]
    path[#path + 1] = name
    for _, sub in ipairs(spec.commands) do
      if commands.is_called(sub, name) then
        spec = sub
        break
      end
    end
  end
  return path[1] and spec or nil, path
end

--- Reads @argv (without the program's name): {spec = the command's module, nil if none was named; path = its words;
--- args = its arguments; json =, timeout = seconds, version =}, or {help = text}, or nil, err ("usage").
function M.parse(argv)
  local word = commands.scan(argv).words[1]
  local name = word and commands.has(word) and word or ""
  local root = roots[name] or build(name)
  roots[name] = root
  printed = {}
  local ok, result = pcall(read, root, argv)
  if not ok then
    if result == EXIT then
      return { help = table.concat(printed) }
    elseif errors.is(result) then
      return nil, result
    end
    error(result, 0)
  end
  local spec, path = chosen(result)
  local parsed = { spec = spec, path = path, args = {} }
  for k, v in pairs(result) do
    if k:sub(1, 1) ~= "@" then
      parsed.args[k] = v
    end
  end
  parsed.json, parsed.timeout, parsed.version = result.json, result.timeout, result.version
  return parsed
end

--- The help of the command that @words name, nil, err ("usage") if there is none.
function M.help(words)
  local argv = table.move(words, 1, #words, 1, {})
  argv[#argv + 1] = "--help"
  local parsed, err = M.parse(argv)
  if not parsed then
    return nil, err
  end
  return parsed.help
end

--- What there is, in one screen. @more: {{name, summary}} of commands that only the daemon knows; nil: none.
function M.overview(more)
  local lines = {
    "Usage: symphony [--socket PATH] [--json] [--timeout S] COMMAND ...",
    "",
    "Commands:",
  }
  local own = {}
  for _, spec in ipairs(commands.all()) do
    local name = spec.name:match("%S+")
    local list = commands.file_of(name) and own or lines
    list[#list + 1] = ("  %-9s %s"):format(name, spec.summary or "")
  end
  for _, row in ipairs(more or {}) do
    own[#own + 1] = ("  %-9s %s"):format(row.name, row.summary)
  end
  if #own > 0 then
    lines[#lines + 1] = ""
    lines[#lines + 1] = "Commands of this daemon's --lua-dir:"
    table.move(own, 1, #own, #lines + 1, lines)
  end
  for _, line in ipairs {
    "",
    "Options for every command:",
    "  --socket PATH  the daemon's control socket (default $SYMPHONY_SOCKET, else ./control.sock)",
    "  --json         print JSON",
    "  --timeout S    give up after so many seconds",
    "  -h, --help     how a command is used; also: symphony help COMMAND",
    "  -V, --version  print the version",
  } do
    lines[#lines + 1] = line
  end
  return table.concat(lines, "\n") .. "\n"
end

return M
