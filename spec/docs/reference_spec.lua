-- The references are whole: every route and error code is in docs/api.md, every command and option in symphony(1).
local cluster = require "spec.support.cluster"
local commands = require "spec.support.commands"
local proc = require "spec.support.proc"

local api = assert(proc.read_file("docs/api.md"))

-- The routes as "GET /v1/nodes/<id>", from where they are registered. Those in C have one function for several methods.
local function routes()
  local found = {}
  local list = proc.run({ "find", "lua", "-name", "*.lua" }).out
  for path in list:gmatch("[^\n]+") do
    for method, route in assert(proc.read_file(path)):gmatch('router%.route%("(%u+)", "([^"]+)"') do
      found[method .. " " .. route:gsub("{(%w+)%*?}", "<%1>")] = path
    end
  end
  return found
end

local function routes_in_c()
  local found = {}
  for path in assert(proc.read_file("src/daemon/api.c")):gmatch('"(/[%w/]+)"') do
    if path:find("^/v1/") or not path:find("/", 2, true) then found[path] = true end
  end
  return found
end

-- What stands in the tables of api.md: routes, and statuses by code.
local function documented()
  local shown, status = {}, {}
  for line in api:gmatch("[^\n]+") do
    local first, second = line:match("^| ([^|]+) | ([^|]+) |")
    for route in (first or ""):gmatch("`(%u+ /[^`]*)`") do shown[route] = true end
    local number = (first or ""):match("^%(?(%d+)%)?$")
    if number then status[second:match("`([%l_]+)`")] = tonumber(number) end
  end
  return shown, status
end

describe("docs/api.md", function()
  it("has every route, and no other", function()
    local shown, count = documented(), 0
    for route, path in pairs(routes()) do
      count = count + 1
      assert.is_true(shown[route], ("%s of %s is not in docs/api.md"):format(route, path))
    end
    assert.is_true(count > 15, count)
    local known, in_c = routes(), routes_in_c()
    assert.is_true(in_c["/v1/kv"] and in_c["/v1/watch"] and in_c["/healthz"])
    for path in pairs(in_c) do
      assert.is_true(shown["GET " .. path], path .. " of src/daemon/api.c is not in docs/api.md")
    end
    for route in pairs(shown) do
      local path = route:match("^%u+ (.-)/?<key>$") or route:match(" (.*)$")
      assert.truthy(known[route] or in_c[path], "docs/api.md has " .. route .. ", and the daemon has not")
    end
  end)

  it("has every error code with its status, and no other", function()
    local _, shown = documented()
    local known = {}
    for code, status in assert(proc.read_file("src/base/err.h")):gmatch('X%(E%u+, "([%l_]+)", (%d+)%)') do
      known[code] = tonumber(status)
    end
    local in_lua = assert(proc.read_file("lua/symphony/errors.lua")):match("local http = (%b{})")
    for code, status in in_lua:gmatch("([%l_]+) = (%d+)") do known[code] = tonumber(status) end
    assert.equal(507, known.no_space)
    assert.equal(409, known.no_cluster)
    assert.same(known, shown)
  end)
end)

describe("symphony(1)", function()
  -- Its entries as plain text, from one .TP to the next; lines that name what an entry is about begin with "@".
  local function entries()
    local list = {}
    local text = assert(proc.read_file("docs/man/man1/symphony.1"))
      :gsub("\n%.TP\n", "%0@"):gsub("\n%.TQ\n", "\n@"):gsub("\\f.", ""):gsub("\\", ""):gsub('"', "")
      :gsub("\n(@?)%.%u+ ", "\n%1"):gsub(" +", " ")
    for entry in (text .. "\n.TP"):gmatch("(.-)\n%.[TS][PSH]%f[%W]") do list[#list + 1] = entry .. "\n" end
    return list
  end

  it("has every command with all its options", function()
    local list = entries()
    for _, command in ipairs(commands.list()) do
      local entry
      for _, text in ipairs(list) do
        local words = command.words:gsub("%-", "%%-")
        if #command.subs == 0 and text:find("@[^\n]*%f[%w]" .. words .. "%f[%W]") then entry = entry or text end
      end
      assert.is_true(entry ~= nil or #command.subs > 0, "symphony(1) has no entry for " .. command.words)
      for _, option in ipairs(command.options) do
        assert.truthy(entry:find(option.name, 1, true), ("symphony(1) lacks %s of %s: %s"):format(option.name,
          command.words, entry))
      end
    end
  end)

  it("has the options for every command", function()
    local all = table.concat(entries(), "\n")
    for option in cluster.cli("/nonexistent", "help").out:gmatch("%-%-[%l-]+") do
      assert.truthy(all:find(option, 1, true), option)
    end
  end)
end)

describe("symphony help", function()
  it("shows examples that are right, for every command", function()
    local parser = require "symphony.cli.parser"
    local count = 0
    for _, command in ipairs(commands.list()) do
      local needs_none = #command.subs > 0 or command.words == "help" or command.words == "version"
      assert.is_true(needs_none or #command.examples > 0, command.words .. " has no example")
      for _, example in ipairs(command.examples) do
        -- As a shell takes it apart.
        local said = proc.run({ "sh", "-c", "symphony() { printf '%s\\n' \"$@\"; }; " .. example })
        local argv = {}
        for word in said.out:gmatch("([^\n]*)\n") do argv[#argv + 1] = word end
        local parsed, err = parser.parse(argv)
        assert.truthy(parsed, example .. ": " .. tostring(err))
        assert.equal(command.words, table.concat(parsed.path, " "), example)
        count = count + 1
      end
    end
    assert.is_true(count > 20, count)
  end)
end)
