--- The commands that there are, in the order in which the overview shows them. Each is a module beside this file:
---   {name =, summary =, description =, args = function(parser), run = function(ctx)}      or
---   {name =, summary =, commands = {sub, ...}}, where a sub is the same again
--- A name may be followed by aliases ("ls list"). where = "client" has it run in the client instead of the daemon;
--- reads = true: it changes nothing, whatever its arguments, so that nothing is in doubt when it is cut short.
local M = {}

M.names = { "manager", "block", "token", "node", "cert", "policy", "events", "kv", "txn", "cluster", "lua", "reload",
  "help", "version" }

local own, own_order = {}, {} -- by name: {spec, file}: those of --lua-dir, in a daemon

local function module_of(name)
  return "symphony.cli.commands." .. name
end

--- Whether @name is one of symphony itself, also of a part that is not installed: nobody else may have it.
function M.is_built_in(name)
  for _, known in ipairs(M.names) do
    if known == name then
      return true
    end
  end
  return false
end

--- Whether there is a command @name. One of a part that is not installed is none.
function M.has(name)
  if M.is_built_in(name) then
    local module = module_of(name)
    return package.loaded[module] ~= nil or package.searchpath(module, package.path) ~= nil
  end
  return own[name] ~= nil
end

--- The module of command @name; nil if there is none.
function M.get(name)
  if own[name] then
    return own[name].spec
  end
  return M.has(name) and require(module_of(name)) or nil
end

--- The names of all, those of the operator last.
function M.all_names()
  local list = {}
  for _, name in ipairs(M.names) do
    list[#list + 1] = M.has(name) and name or nil
  end
  for _, row in ipairs(own_order) do
    list[#list + 1] = row.spec.name
  end
  return list
end

--- All modules.
function M.all()
  local list = {}
  for _, name in ipairs(M.all_names()) do
    list[#list + 1] = M.get(name)
  end
  return list
end

--- The operator's own commands are these from now on: {{spec = module, file = path}, ...}.
function M.set_own(list)
  own, own_order = {}, list
  for _, row in ipairs(list) do
    own[row.spec.name] = row
  end
end

--- They, as set_own was given them.
function M.own_list()
  return own_order
end

--- The file that command @name comes from; nil for one of symphony itself.
function M.file_of(name)
  return own[name] and own[name].file
end

--- What can be said of a command line without lua-argparse (which takes longer to load than most commands take to run),
--- in agreement with it: {words = what is no option, help =, json =, version =, socket =, timeout =}.
function M.scan(argv)
  local found, options = { words = {} }, true
  local i = 1
  while i <= #argv do
    local arg = argv[i]
    local name, value = arg:match("^(%-%-%l+)=(.*)$")
    if arg == "--socket" or arg == "--timeout" then
      name, value = arg, argv[i + 1]
      i = options and i + 1 or i
    end
    if not options or arg:sub(1, 1) ~= "-" then
      table.insert(found.words, arg)
    elseif name == "--socket" or name == "--timeout" then
      found[name:sub(3)] = value
    elseif arg == "--json" then
      found.json = true
    elseif arg == "-h" or arg == "--help" then
      found.help = true
    elseif arg == "--version" or arg == "-V" then
      found.version = true
    elseif arg == "--" then
      options = false
    end
    i = i + 1
  end
  return found
end

--- True if @word is @spec's name or one of its aliases.
function M.is_called(spec, word)
  for name in spec.name:gmatch("%S+") do
    if name == word then
      return true
    end
  end
  return false
end

-- The command that @words name, and where it runs; whether all was well, and then nil if there is none.
local function find(words)
  local ok, spec = pcall(M.get, words[1])
  if not ok or not spec then
    return ok
  end
  local where = spec.where
  for i = 2, #words do
    local found
    for _, sub in ipairs(spec.commands or {}) do
      found = found or M.is_called(sub, words[i]) and sub
    end
    if not found then
      break
    end
    spec, where = found, found.where or where
  end
  return true, spec, where
end

--- Whether the command that @words name runs in the client: it needs what is there, a file or the terminal.
function M.is_local(words)
  local ok, spec, where = find(words)
  -- One that this client does not know the daemon may know, or says that there is none.
  return ok and spec ~= nil and where == "client"
end

--- Whether the command that @words name changes nothing.
function M.only_reads(words)
  local _, spec = find(words)
  return spec ~= nil and spec.reads == true
end

return M
