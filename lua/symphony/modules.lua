--- The operator's own modules, trusted like a configuration file: of every --lua-dir DIR, in their order,
---   DIR/commands/NAME.lua   a command, as those of symphony/cli/commands are: {name =, summary =, args =, run =}
---   DIR/services/NAME.lua   a cloud service: see symphony/services/registry.lua
--- They are loaded at the start, and all again by reload(). What cannot be loaded is told with its file and line; what
--- that file gave before stays. What they `require` from the same folders is loaded again with them.
local uv = require "luv"
local log = require "sym.log"
local sys = require "sym.sys"
local errors = require "symphony.errors"
local json = require "symphony.json"

local M = {}

local FILES_MAX = 256    -- in a folder
local SERVICES_MAX = 15  -- a worker's record has place for 16 names, with its own
local NAME = "^%l[%l%d%-]*$"
local NAME_MAX, DEPTH_MAX = 32, 3

local loaded = {}        -- path -> {kind = "command"|"service", module =, file =}: what it gave when it was last good
local failures = json.array {}
local listeners = {}

local function dirs()
  return sys.options().lua_dirs or {}
end

-- Finding and running files -------------------------------------------------------------------------------------------

-- The Lua files in @folder, in order; none when there is no such folder. nil, err.
local function files(folder)
  local list = {}
  local scan, err, name = uv.fs_scandir(folder)
  if not scan then
    if name == "ENOENT" or name == "ENOTDIR" then return list end
    return nil, errors.new("io", ("cannot read %s: %s"):format(folder, err))
  end
  while #list < FILES_MAX do
    local entry = uv.fs_scandir_next(scan)
    if not entry then break end
    if entry:find("^[^.].*%.lua$") then list[#list + 1] = folder .. "/" .. entry end
  end
  table.sort(list)
  return list
end

-- Where something went wrong as @path was loaded, in it or in what it requires, and what: {file, line, message}.
local function failure(path, err)
  local text = type(err) == "table" and err.message or tostring(err)
  text = text:gsub("^error loading module '[^\n]*\n%s*", "") -- which says so again, with the line
  text = text:match("^[^\n]*")
  local file, line, message = text:match("^([^\n:]*%.lua):(%d+): (.*)$")
  local tail = file and file:gsub("^%.%.%.", "") -- Lua shortens what is long
  if file and path:sub(-#tail) ~= tail then return { file = path, message = json.clean(text) } end
  return { file = path, line = line and math.tointeger(tonumber(line)), message = json.clean(message or text) }
end

local function run(path)
  local chunk, err = loadfile(path, "t")
  if not chunk then return nil, err end
  local ok, module = xpcall(chunk, errors.handler, path)
  if not ok then return nil, module end
  if type(module) ~= "table" then return nil, "it returns no table" end
  return module
end

-- Commands ------------------------------------------------------------------------------------------------------------

local function check_names(name, depth)
  if type(name) ~= "string" then return nil, "a command has no name" end
  for word in name:gmatch("%S+") do
    if not word:match(NAME) or #word > NAME_MAX then
      return nil, ("\"%s\" is no name of a command: a-z, 0-9 and -, beginning with a letter"):format(word)
    end
  end
  if not name:match("%S") or (depth == 1 and name:find("%s")) then return nil, "a command has one name" end
  return true
end

-- Is @spec a command, with all below it? true; nil, why.
local function check_command(spec, depth)
  if type(spec) ~= "table" then return nil, "a command is a table" end
  local ok, why = check_names(spec.name, depth)
  if not ok then return nil, why end
  local is = ("command %s: "):format(spec.name)
  if depth > DEPTH_MAX then return nil, is .. "commands go three deep" end
  if spec.where ~= nil then return nil, is .. "an own command runs in the daemon (no \"where\")" end
  for field, kind in pairs { summary = "string", description = "string", epilog = "string", args = "function",
    run = "function", commands = "table", complete = "table" } do
    if spec[field] ~= nil and type(spec[field]) ~= kind then
      return nil, ("%s%s is no %s"):format(is, field, kind)
    end
  end
  if not spec.run and not (spec.commands and #spec.commands > 0) then
    return nil, is .. "it has neither run nor commands"
  end
  for _, sub in ipairs(spec.commands or {}) do
    ok, why = check_command(sub, depth + 1)
    if not ok then return nil, why end
  end
  return true
end

-- A command from @path. nil, why.
local function command_of(module, path)
  if module.name == nil then module.name = path:match("([^/]*)%.lua$") end
  local ok, why = check_command(module, 1)
  if not ok then return nil, why end
  local built
  built, why = pcall(require("symphony.cli.parser").check, module)
  if not built then return nil, why end
  return module
end

-- A service from @path. nil, why.
local function service_of(module)
  local ok, why = require("symphony.services.registry").check(module)
  if not ok then return nil, why end
  if not module.commands then return module end
  local command = { name = module.kind, summary = module.summary, description = module.description,
    commands = module.commands }
  ok, why = check_command(command, 1)
  if not ok then return nil, why end
  ok, why = pcall(require("symphony.cli.parser").check, command)
  if not ok then return nil, why end
  return module
end

local kinds = { { "commands", "command", command_of }, { "services", "service", service_of } }

-- Taking them into use ------------------------------------------------------------------------------------------------

-- The command that @entry brings; nil if it brings none.
local function command_in(entry)
  local module = entry.module
  if entry.kind == "command" then return module end
  return module.commands and { name = module.kind, summary = module.summary or "", description = module.description,
    commands = module.commands, complete = module.complete }
end

-- Gives out names, the first come first: {commands, services}, and what had to be left out, as failures.
local function give_out(entries)
  local commands = require "symphony.cli.commands"
  local list, services, taken, out = {}, {}, {}, {}
  for _, entry in ipairs(entries) do
    local command, why = command_in(entry), nil
    if command and commands.is_built_in(command.name) then
      why = ("\"%s\" is a command of symphony itself: choose another name"):format(command.name)
    elseif command and taken[command.name] then
      why = ("\"%s\" is a command already, of %s"):format(command.name, taken[command.name])
    elseif entry.kind == "service" then
      local registry = require "symphony.services.registry"
      why = registry.clash(registry.built_in(), entry.module) or registry.clash(services, entry.module)
      if not why and #services >= SERVICES_MAX then why = ("there are %d services already"):format(SERVICES_MAX) end
    end
    if why then
      out[#out + 1] = { file = entry.file, message = why }
    else
      if command then
        taken[command.name] = entry.file
        list[#list + 1] = { spec = command, file = entry.file }
      end
      if entry.kind == "service" then services[#services + 1] = { module = entry.module, file = entry.file } end
    end
  end
  return list, services, out
end

-- What was loaded by `require` from the operator's folders: {name = module}. It is loaded again, too.
local function required()
  local places, found = {}, {}
  for _, dir in ipairs(dirs()) do places[#places + 1] = ("%s/?.lua;%s/?/init.lua"):format(dir, dir) end
  local path = table.concat(places, ";")
  for name, module in pairs(package.loaded) do
    if not name:find("^symphony%.") and not name:find("^sym%.") and package.searchpath(name, path) then
      found[name] = module
    end
  end
  return found
end

local function load_all()
  local before, failed, entries, kept = required(), json.array {}, {}, loaded
  for name in pairs(before) do package.loaded[name] = nil end
  loaded = {}
  for _, dir in ipairs(dirs()) do
    for _, row in ipairs(kinds) do
      local folder, kind, check = table.unpack(row)
      local list, err = files(dir .. "/" .. folder)
      if not list then failed[#failed + 1] = { file = dir .. "/" .. folder, message = err.message } end
      for _, path in ipairs(list or {}) do
        local module, why = run(path)
        if module then module, why = check(module, path) end
        if not module then
          local row_of = failure(path, why)
          row_of.kept = kept[path] ~= nil
          failed[#failed + 1] = row_of
        end
        loaded[path] = module and { kind = kind, module = module, file = path } or kept[path]
        entries[#entries + 1] = loaded[path]
      end
    end
  end
  for name, module in pairs(before) do
    if package.loaded[name] == nil then package.loaded[name] = module end
  end
  return entries, failed
end

local function place(name, text)
  return name .. (text and ":" .. text or "")
end

--- Loads all of them. Returns {commands = {{name, summary, file}}, services = {{kind, resources, file}}, failed =
--- {{file, line, message, kept}}}: what there is now, and what could not be loaded; kept: an earlier one stays.
function M.reload()
  local commands, registry = require "symphony.cli.commands", require "symphony.services.registry"
  local entries, failed = load_all()
  local list, services, clashes = give_out(entries)
  for _, row in ipairs(clashes) do
    row.kept = false
    failed[#failed + 1] = row
  end
  commands.set_own(list)
  if package.loaded["symphony.cli.parser"] then require("symphony.cli.parser").forget() end
  registry.set_own(services)
  failures = failed
  for _, row in ipairs(failed) do
    log.error(("%s: %s%s"):format(place(row.file, row.line), row.message,
      row.kept and " (the earlier one stays)" or ""))
  end
  for _, fn in ipairs(listeners) do fn() end
  return M.list()
end

--- What is loaded, as reload() returns it.
function M.list()
  local out = { commands = json.array {}, services = json.array {}, failed = failures }
  for _, row in ipairs(require("symphony.cli.commands").own_list()) do
    table.insert(out.commands, { name = row.spec.name, summary = row.spec.summary or "", file = row.file })
  end
  for _, row in ipairs(require("symphony.services.registry").list()) do
    local names = json.array {}
    for name in pairs(row.module.resources) do names[#names + 1] = name end
    table.sort(names)
    table.insert(out.services, { kind = row.module.kind, summary = row.module.summary or "", resources = names,
      file = row.file })
  end
  return out
end

--- fn() after every reload.
function M.on_reload(fn)
  listeners[#listeners + 1] = fn
end

--- At the daemon's start.
function M.start()
  if #dirs() > 0 then M.reload() end
  if require("symphony.cluster.identity").role() == "worker" then
    M.on_reload(function() require("symphony.services.worker").reloaded() end)
  end
end

return M
